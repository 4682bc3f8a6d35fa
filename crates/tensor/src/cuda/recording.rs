//! CUDA graphs: what was asked of a GPU once, asked again as a whole.

use super::gpu::{Gpu, Turn, lock};
use super::memory::{Blocks, Buffer};
use crate::Result;
use cudarc::driver::sys;
use std::sync::Arc;

/// A recorded graph, ready to be launched, and the memory that it works in.
pub(crate) struct Recording {
    gpu: &'static Gpu,
    graph: sys::CUgraphExec,
    /// Blocks that the graph writes to; nobody else gets them while it lives.
    blocks: Option<Blocks>,
    /// Where its weights arrive that wait on the host.
    _ring: Option<Arc<Buffer>>,
    /// Its launches' counters.
    _counters: Option<Buffer>,
}

// SAFETY: the graph is launched on the GPU's one stream, from whichever thread; nothing else touches the handle.
unsafe impl Send for Recording {}

/// A capture of the GPU's stream that has begun, and the memory set apart for it. Dropped before [`Capture::end`], by an
/// error or a panic, it leaves the stream and the pool as they were.
struct Capture<'a> {
    gpu: &'static Gpu,
    open: bool,
    _turn: Turn<'a>,
}

impl Capture<'_> {
    fn begin(gpu: &'static Gpu) -> Result<Capture<'static>> {
        gpu.bind()?;
        let turn = gpu.turn_to_record()?;
        // Its memory may be that of the recording's own.
        gpu.close_ring();
        gpu.begin_counters()?;
        lock(&gpu.pool).set_apart();
        let mut capture = Capture { gpu, open: false, _turn: turn };
        let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as the process.
        gpu.check("starting a recording", unsafe { sys::cuStreamBeginCapture_v2(gpu.stream(), relaxed) })?;
        capture.open = true;
        Ok(capture)
    }

    /// Ends the capture: what can be launched, and the memory that it works in.
    fn end(mut self) -> Result<Recording> {
        let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
        let counters = self.gpu.end_counters();
        self.open = false;
        // SAFETY: ends what `begin` started; the results go to places of their types, and the graph is destroyed once,
        // after what is launched was made of it.
        let made = unsafe {
            let ended = sys::cuStreamEndCapture(self.gpu.stream(), &mut graph);
            let made = self.gpu.check("ending a recording", ended).and_then(|()| {
                let counters = counters.map(|counters| counters.gather(self.gpu, graph)).transpose()?;
                let made = sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
                self.gpu.check("preparing a recording", made).map(|()| counters)
            });
            if !graph.is_null() {
                sys::cuGraphDestroy(graph);
            }
            made
        };
        let _counters = made?;
        // Only now: until the recording has ended, memory for others could not be waited for.
        let ring = self.gpu.close_ring();
        Ok(Recording { gpu: self.gpu, graph: ready, blocks: lock(&self.gpu.pool).take_apart(), _ring: ring, _counters })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.open {
            let mut graph = std::ptr::null_mut();
            // SAFETY: ends what `begin` started; nothing was made of the graph.
            unsafe {
                sys::cuStreamEndCapture(self.gpu.stream(), &mut graph);
                if !graph.is_null() {
                    sys::cuGraphDestroy(graph);
                }
            }
        }
        // None are left where the recording has ended well.
        self.gpu.end_counters();
        self.gpu.close_ring();
        let mut pool = lock(&self.gpu.pool);
        if let Some(blocks) = pool.take_apart() {
            pool.give_back(blocks);
        }
    }
}

/// Runs `body` while everything it asks of the GPU is written down instead of done; other threads wait with what they
/// want of it. What `body` reads from the host is part of the record, so it may bring no numbers from there.
pub(crate) fn record<T>(gpu: &'static Gpu, body: impl FnOnce() -> Result<T>) -> Result<(Recording, T)> {
    let capture = Capture::begin(gpu)?;
    // Its own complaint comes first: it is the cause of the other.
    let value = body()?;
    Ok((capture.end()?, value))
}

impl Recording {
    /// Asks for everything again, on the numbers that its inputs hold now.
    pub(crate) fn replay(&self) -> Result<()> {
        self.gpu.bind()?;
        let _turn = self.gpu.turn();
        // Its products share their scratch memory with those of other threads, of which some are several launches.
        let _blas = self.gpu.blas.as_ref().map(lock);
        // SAFETY: the graph is alive, and its memory is its own.
        self.gpu.check("replaying a recording", unsafe { sys::cuGraphLaunch(self.graph, self.gpu.stream()) })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.graph.is_null() && self.gpu.bind().is_ok() {
            // SAFETY: destroyed once; a replay that still runs keeps what it needs.
            unsafe { sys::cuGraphExecDestroy(self.graph) };
        }
        if let Some(blocks) = self.blocks.take() {
            lock(&self.gpu.pool).give_back(blocks);
        }
    }
}
