//! Memory of the host from which a GPU copies by itself: weights are read into one buffer while the other is on its way.

use super::gpu::{Gpu, records};
use super::{place, transfer};
use crate::tensor::elements;
use crate::{DType, Error, Result, Tensor};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::sync::{Mutex, TryLockError};

/// Bytes of a buffer: all but a few weights of the largest networks.
const BYTES: usize = 64 << 20;
/// Below this the driver's own staging is as fast.
const LEAST: usize = 256 << 10;

/// Two buffers in turn.
#[derive(Default)]
pub(super) struct Staging {
    buffers: Vec<Buffer>,
    next: usize,
    /// The system gave none; nobody asks again.
    refused: bool,
}

struct Buffer {
    at: *mut c_void,
    /// Recorded behind the last copy out of it.
    copied: sys::CUevent,
}

// SAFETY: the memory is the process's own and the event a handle that any thread may use; both lie behind a lock.
unsafe impl Send for Staging {}

fn ok(result: sys::CUresult) -> Option<()> {
    (result == sys::CUresult::CUDA_SUCCESS).then_some(())
}

impl Buffer {
    /// None where the system gives no such memory.
    fn new() -> Option<Buffer> {
        let (mut at, mut copied) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a context is current; the results go to places of their types and are kept for the process's life.
        unsafe {
            ok(sys::cuEventCreate(&mut copied, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32))?;
            ok(sys::cuMemHostAlloc(&mut at, BYTES, 0))?;
            // So that it is initialised whatever reads it.
            std::ptr::write_bytes(at.cast::<u8>(), 0, BYTES);
        }
        Some(Buffer { at, copied })
    }
}

impl Staging {
    /// A buffer that nothing is copied from any more.
    fn take(&mut self, gpu: &Gpu) -> Result<Option<&Buffer>> {
        if self.buffers.len() < 2 && !self.refused {
            match Buffer::new() {
                Some(buffer) => self.buffers.push(buffer),
                None => self.refused = true,
            }
        }
        if self.buffers.is_empty() {
            return Ok(None);
        }
        self.next = (self.next + 1) % self.buffers.len();
        let buffer = &self.buffers[self.next];
        // SAFETY: the event is alive; before its first recording there is nothing to wait for.
        gpu.check("copying to it", unsafe { sys::cuEventSynchronize(buffer.copied) })?;
        Ok(Some(buffer))
    }
}

/// A type of numbers for which every pattern of bits is one.
pub(crate) trait Bits: Copy + Default {}
impl Bits for f32 {}
impl Bits for u16 {}

/// A tensor whose numbers `write` gives, in the tensor's own type or its bits.
pub(crate) fn written<T: Bits, E: From<Error>>(
    gpu: &'static Gpu,
    dtype: DType,
    shape: &[usize],
    write: impl FnOnce(&mut [T]) -> std::result::Result<(), E>,
) -> std::result::Result<Tensor, E> {
    let count = elements("write", shape)?;
    let bytes = count * size_of::<T>();
    gpu.bind()?;
    // Another thread at the same: the driver's own staging takes this one.
    let mut staging = match gpu.staging.try_lock() {
        Ok(staging) => Some(staging),
        Err(TryLockError::Poisoned(staging)) => Some(staging.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let buffer = match &mut staging {
        Some(staging) if (LEAST..=BYTES).contains(&bytes) && !records() => staging.take(gpu)?,
        _ => None,
    };
    let Some(buffer) = buffer else {
        drop(staging);
        let mut host = vec![T::default(); count];
        write(&mut host)?;
        return Ok(transfer::upload(gpu, dtype, shape, &host)?);
    };
    // SAFETY: the buffer is that large, begins at a page, is initialised, and is nobody else's while the lock is held;
    // every pattern of bits is a number.
    write(unsafe { std::slice::from_raw_parts_mut(buffer.at.cast::<T>(), count) })?;
    let out = transfer::empty(gpu, dtype, shape)?;
    let (_, at) = place(&out)?;
    let _turn = gpu.turn();
    // SAFETY: the tensor is that large; the buffer is not written to before the event has happened.
    unsafe {
        gpu.check("copying to it", sys::cuMemcpyHtoDAsync_v2(at, buffer.at, bytes, gpu.stream()))?;
        gpu.check("copying to it", sys::cuEventRecord(buffer.copied, gpu.stream()))?;
    }
    drop(_turn);
    drop(staging);
    Ok(out)
}

/// The buffers of one GPU.
pub(super) type Stagings = Mutex<Staging>;
