//! One GPU: its context, its stream, and launching kernels on it.

use super::counters::Counters;
use super::failure::Lost;
use super::fork::{LazySide, aside};
use super::kernels::Kernels;
use super::memory::Pool;
use super::parked::Lobbies;
use super::product::Blas;
use super::profile::Profile;
use super::staging::Stagings;
use super::{conv::Dnn, libraries};
use crate::{Device, Error, Result};
use cudarc::driver::sys;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// An opened GPU. Opened once and kept for the life of the process: tensors may outlive every other owner.
pub(crate) struct Gpu {
    pub(crate) index: usize,
    pub(crate) name: String,
    /// Compute capability, 90 for Hopper.
    pub(super) arch: i32,
    pub(super) multiprocessors: i32,
    /// Bytes of shared memory that a block may ask for.
    pub(super) shared: usize,
    pub(super) context: sys::CUcontext,
    stream: sys::CUstream,
    /// For work beside other work.
    pub(super) side: LazySide,
    pub(super) pool: Mutex<Pool>,
    pub(super) staging: Stagings,
    /// Where weights arrive that wait on the host.
    pub(super) lobby: Lobbies,
    pub(super) lost: Lost,
    /// Of the recording that is being made.
    pub(super) counters: Mutex<Option<Counters>>,
    /// Held for writing while a thread records: what others asked for would become part of the record.
    turns: RwLock<()>,
    pub(super) kernels: Kernels,
    pub(super) profile: Profile,
    /// cuBLASLt and cuDNN, where they are found.
    pub(super) blas: Option<Mutex<Blas>>,
    pub(super) dnn: Option<Mutex<Dnn>>,
}

// SAFETY: contexts and streams may be used from any thread that made the context current, which `bind` does; everything
// else that changes is behind a lock.
unsafe impl Send for Gpu {}
unsafe impl Sync for Gpu {}

/// Opened GPUs by number.
static OPENED: Mutex<BTreeMap<usize, &'static Gpu>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The GPU whose context is current in this thread.
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether this thread is the one that records.
    static RECORDS: Cell<bool> = const { Cell::new(false) };
}

/// The right to record, for as long as it lives.
pub(super) struct Turn<'a>(#[allow(dead_code, reason = "held, not read")] RwLockWriteGuard<'a, ()>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        RECORDS.set(false);
    }
}

/// Whether this thread records.
pub(super) fn records() -> bool {
    RECORDS.get()
}

/// A lock whose holder cannot have left half a change behind.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the driver says about a result; none where it is success.
pub(super) fn complaint(result: sys::CUresult) -> Option<String> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return None;
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver library is loaded, as it gave the result; the text it points to is static.
    let said = unsafe {
        let found = sys::cuGetErrorString(result, &mut text) == sys::CUresult::CUDA_SUCCESS && !text.is_null();
        found.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    Some(said.unwrap_or_else(|| format!("{result:?}")))
}

/// How many GPUs the driver shows; 0 where there is none or no driver.
pub(crate) fn count() -> usize {
    devices().unwrap_or(0)
}

/// Starts the driver and counts its devices.
fn devices() -> std::result::Result<usize, String> {
    libraries::driver()?;
    let mut count = 0;
    // SAFETY: the driver library is there; initialising it again has no effect.
    let failed = unsafe { complaint(sys::cuInit(0)).or_else(|| complaint(sys::cuDeviceGetCount(&mut count))) };
    match failed {
        None => Ok(count.max(0) as usize),
        Some(said) => Err(format!(
            "the NVIDIA driver does not start ({said}); `nvidia-smi` tells more, and the CPU works without it"
        )),
    }
}

/// The GPU of a number, opened at its first use.
pub(crate) fn gpu(index: usize) -> Result<&'static Gpu> {
    let mut opened = lock(&OPENED);
    if let Some(gpu) = opened.get(&index) {
        gpu.check_lost()?;
        return Ok(gpu);
    }
    let missing = |reason: String| Error::NoDevice { device: Device::Cuda(index).to_string(), reason };
    let there = devices().map_err(missing)?;
    if index >= there {
        return Err(missing(match there {
            0 => "the NVIDIA driver shows no GPU; choose the CPU".into(),
            1 => "there is one GPU, cuda:0".into(),
            _ => format!("there are {there} GPUs, cuda:0 to cuda:{}", there - 1),
        }));
    }
    libraries::compiler().map_err(missing)?;
    let gpu: &'static Gpu = Box::leak(Box::new(Gpu::open(index)?));
    opened.insert(index, gpu);
    drop(opened);
    Ok(gpu)
}

/// A kernel's argument: its bytes are copied when the kernel is launched.
pub(super) trait Argument {
    fn address(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast::<c_void>().cast_mut()
    }
}
impl Argument for u64 {}
impl Argument for i64 {}
impl Argument for i32 {}
impl Argument for f32 {}
impl<const N: usize> Argument for [u64; N] {}
impl<const N: usize> Argument for [f32; N] {}
impl<const N: usize> Argument for [i32; N] {}

impl Gpu {
    fn open(index: usize) -> Result<Gpu> {
        let failed = |said: String| Error::NoDevice { device: Device::Cuda(index).to_string(), reason: said };
        let check = |result| complaint(result).map_or(Ok(()), |said| Err(failed(said)));
        let (mut device, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        let mut name = [0 as std::ffi::c_char; 256];
        // SAFETY: the driver is started and `index` is one of its devices; all results go to places of the right type.
        unsafe {
            check(sys::cuDeviceGet(&mut device, index as i32))?;
            check(sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device))?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            check(sys::cuCtxSetCurrent(context))?;
            check(sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
        }
        CURRENT.set(Some(index));
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: as above.
            check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }).map(|()| value)
        };
        use sys::CUdevice_attribute as A;
        let arch = 10 * attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if arch < 70 {
            return Err(failed(format!(
                "its compute capability is {}.{}, and 7.0 (Volta, 2017) is the oldest that works; choose the CPU",
                arch / 10,
                arch % 10
            )));
        }
        // SAFETY: the driver wrote a text with its end into the larger array.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Gpu {
            index,
            name,
            arch,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.max(0) as usize,
            context,
            stream,
            side: LazySide::new(),
            pool: Mutex::default(),
            staging: Stagings::default(),
            lobby: Lobbies::default(),
            lost: Lost::default(),
            counters: Mutex::default(),
            turns: RwLock::default(),
            kernels: Kernels::default(),
            profile: Profile::default(),
            blas: Blas::open().map(Mutex::new),
            dnn: Dnn::open(stream).map(Mutex::new),
        })
    }

    /// The device's name as users write it.
    pub(super) fn device(&self) -> Device {
        Device::Cuda(self.index)
    }

    /// Where this thread's work is asked for.
    pub(super) fn stream(&self) -> sys::CUstream {
        match self.side.get() {
            Some(Some(side)) if aside() => side.stream,
            _ => self.stream,
        }
    }

    /// An error of this device.
    pub(super) fn failed(&self, doing: &str, reason: impl Into<String>) -> Error {
        Error::Failed { device: self.device().to_string(), doing: doing.into(), reason: reason.into() }
    }

    /// Waits until no other thread records; to be held while something is asked of the stream, and never twice.
    pub(super) fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        (!records()).then(|| self.turns.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until nobody else asks anything of the stream; from then on this thread records.
    pub(super) fn turn_to_record(&self) -> Result<Turn<'_>> {
        if records() {
            return Err(self.failed("recording", "this thread records already"));
        }
        let turn = Turn(self.turns.write().unwrap_or_else(PoisonError::into_inner));
        RECORDS.set(true);
        Ok(turn)
    }

    /// Makes this GPU's context the thread's.
    pub(super) fn bind(&self) -> Result<()> {
        if CURRENT.get() != Some(self.index) {
            // SAFETY: the context lives as long as the process.
            self.check("taking the device", unsafe { sys::cuCtxSetCurrent(self.context) })?;
            CURRENT.set(Some(self.index));
        }
        Ok(())
    }

    /// Waits for all that was asked of this GPU.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        let _turn = self.turn();
        // SAFETY: the stream lives as long as the process.
        self.check("the work", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Bytes free and in all.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both places are of the right type.
        self.check("reading its memory's size", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// Launches a kernel.
    ///
    /// # Safety
    /// The arguments are of the kernel's own types and number, and the addresses among them are of this GPU and reach as
    /// far as the kernel goes with this grid.
    pub(super) unsafe fn launch(
        &self,
        doing: &'static str,
        kernel: sys::CUfunction,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        arguments: &[&dyn Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let mut addresses: [*mut c_void; 24] = [std::ptr::null_mut(); 24];
        for (slot, argument) in addresses.iter_mut().zip(arguments) {
            *slot = argument.address();
        }
        let [x, y, z] = grid;
        let _turn = self.turn();
        let launch = || {
            // SAFETY: the caller vouches for the arguments, which the driver copies before it returns.
            unsafe {
                sys::cuLaunchKernel(
                    kernel,
                    x,
                    y,
                    z,
                    threads,
                    1,
                    1,
                    shared,
                    self.stream(),
                    addresses.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
        };
        let result = self.watch(|| self.said(doing, grid), launch);
        self.check(doing, result)
    }
}
