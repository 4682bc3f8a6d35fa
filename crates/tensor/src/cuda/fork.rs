//! Two pieces of work that do not need each other, side by side within a recording: kernels of one fill the
//! multiprocessors that those of the other leave idle.

use super::gpu::{Gpu, lock, records};
use cudarc::cudnn::sys as dnn;
use cudarc::driver::sys;
use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    /// Whether this thread asks for work of the second stream.
    static ASIDE: Cell<bool> = const { Cell::new(false) };
    /// Whether two pieces are being recorded.
    static FORKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread asks for work of the second stream.
pub(super) fn aside() -> bool {
    ASIDE.get()
}

/// The second stream of a GPU, and the events by which the two wait for each other.
pub(super) struct Side {
    pub(super) stream: sys::CUstream,
    begun: sys::CUevent,
    done: sys::CUevent,
}

/// Made when it is first needed; none where it could not be.
pub(super) type LazySide = OnceLock<Option<Side>>;

impl Side {
    fn new() -> Option<Side> {
        let made = |result| (result == sys::CUresult::CUDA_SUCCESS).then_some(());
        let (mut stream, mut begun, mut done) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: a context is current; the results go to places of their types and live as long as the process.
        unsafe {
            made(sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
            made(sys::cuEventCreate(&mut begun, untimed))?;
            made(sys::cuEventCreate(&mut done, untimed))?;
        }
        Some(Side { stream, begun, done })
    }
}

/// Puts what a fork changed back, also where the work panics.
struct Forked<'a>(&'a Gpu);

impl Drop for Forked<'_> {
    fn drop(&mut self) {
        self.0.turn_aside(false);
        FORKED.set(false);
        lock(&self.0.pool).join();
    }
}

impl Gpu {
    /// From now on this thread asks for work of the second stream, or of the first again.
    fn turn_aside(&self, aside: bool) {
        if ASIDE.replace(aside) == aside {
            return;
        }
        lock(&self.pool).turn_aside(aside);
        if let Some(dnn) = &self.dnn {
            // SAFETY: handle and stream are alive. If this failed, its work would stay in the other stream, which the
            // recording then refuses for waiting on nobody, or which waits for longer than it needs.
            unsafe { dnn::cudnnSetStream(lock(dnn).handle, self.stream().cast()) };
        }
    }
}

/// Does both; side by side where this thread records, so that neither may use what the other makes.
pub(crate) fn both<A, B>(gpu: &'static Gpu, one: impl FnOnce() -> A, other: impl FnOnce() -> B) -> (A, B) {
    let fork = || {
        // Weights that wait on the host arrive in one order.
        if std::env::var_os("SAMEFACE_ONE").is_some()
            || !records()
            || FORKED.get()
            || gpu.parks()
            || gpu.bind().is_err()
        {
            return None;
        }
        let side = gpu.side.get_or_init(Side::new).as_ref()?;
        // SAFETY: streams and events live as long as the process; the second stream joins the capture by waiting.
        let begun = unsafe {
            sys::cuEventRecord(side.begun, gpu.stream()) == sys::CUresult::CUDA_SUCCESS
                && sys::cuStreamWaitEvent(side.stream, side.begun, 0) == sys::CUresult::CUDA_SUCCESS
        };
        begun.then_some(side)
    };
    let Some(side) = fork() else {
        return (one(), other());
    };
    FORKED.set(true);
    lock(&gpu.pool).fork();
    let forked = Forked(gpu);
    gpu.turn_aside(true);
    let first = one();
    gpu.turn_aside(false);
    let second = other();
    drop(forked);
    // SAFETY: as above. If one of them failed, the recording cannot be ended and says so.
    unsafe {
        sys::cuEventRecord(side.done, side.stream);
        sys::cuStreamWaitEvent(gpu.stream(), side.done, 0);
    }
    (first, second)
}
