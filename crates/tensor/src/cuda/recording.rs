//! CUDA graphs: what was asked of a GPU once, asked again as a whole.

use super::gpu::{Gpu, lock};
use super::memory::Blocks;
use crate::Result;
use cudarc::driver::sys;

/// A recorded graph, ready to be launched, and the memory that it works in.
pub(crate) struct Recording {
    gpu: &'static Gpu,
    graph: sys::CUgraphExec,
    /// Blocks that the graph writes to; nobody else gets them while it lives.
    blocks: Option<Blocks>,
}

// SAFETY: the graph is launched on the GPU's one stream, from whichever thread; nothing else touches the handle.
unsafe impl Send for Recording {}

/// Runs `body` while everything it asks of the GPU is written down instead of done; other threads wait with what they
/// want of it. What `body` reads from the host is part of the record, so it may bring no numbers from there.
pub(crate) fn record<T>(gpu: &'static Gpu, body: impl FnOnce() -> Result<T>) -> Result<(Recording, T)> {
    gpu.bind()?;
    let turn = gpu.turn_to_record()?;
    lock(&gpu.pool).set_apart();
    let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream lives as long as the process.
    let began = gpu.check("starting a recording", unsafe { sys::cuStreamBeginCapture_v2(gpu.stream(), relaxed) });
    if let Err(error) = began {
        lock(&gpu.pool).take_apart();
        return Err(error);
    }
    let done = body();
    let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: ends what was started above, whatever became of it; the results go to places of their types, and the
    // graph is destroyed once, after what is launched was made of it.
    let made = unsafe {
        let ended = gpu.check("ending a recording", sys::cuStreamEndCapture(gpu.stream(), &mut graph));
        let made = ended
            .and_then(|()| gpu.check("preparing a recording", sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0)));
        if !graph.is_null() {
            sys::cuGraphDestroy(graph);
        }
        made
    };
    // Only now: until the recording has ended, memory for others could not be waited for.
    let blocks = lock(&gpu.pool).take_apart();
    drop(turn);
    let recording = Recording { gpu, graph: ready, blocks };
    // The body's own complaint comes first: it is the cause of the other.
    let value = done?;
    made.map(|()| (recording, value))
}

impl Recording {
    /// Asks for everything again, on the numbers that its inputs hold now.
    pub(crate) fn replay(&self) -> Result<()> {
        self.gpu.bind()?;
        let _turn = self.gpu.turn();
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
