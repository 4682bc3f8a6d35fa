//! Weights that wait on the host: a GPU fetches each by itself shortly before the kernel that needs it, into a ring of
//! memory in which the next ones arrive while this one is read.
//!
//! The host asks for kernels long before they run, so copies are asked for early, too, and a stream of their own makes
//! them as soon as the ring has room: what was read there last is waited for, and nothing else. In a recording the same
//! dependencies become those of the graph, whose ring belongs to it alone.

use super::gpu::{Gpu, lock, records};
use super::memory::Buffer;
use super::{place, transfer};
use crate::storage::Storage;
use crate::{DType, Device, Result, Tensor};
use cudarc::driver::sys;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, Weak};

/// Bytes of a ring at the most: three of SDXL's largest weights in 16 bits.
const RING: usize = 192 << 20;
/// Bytes of a ring at the least.
const NARROW: usize = 128 << 10;
/// Weights begin at multiples of this, as blocks of the pool do, so that the same algorithms take them.
const ALIGN: usize = 512;
/// Bytes of the first and of the largest piece of host memory.
const SLABS: [usize; 2] = [16 << 20, 256 << 20];

/// Bytes of a ring through which `waiting` bytes of weights pass.
pub fn ring(waiting: usize) -> usize {
    (waiting / 4).clamp(NARROW, RING)
}

/// The place of a GPU where weights arrive.
#[derive(Default)]
pub(super) struct Lobby {
    /// Copies run here.
    stream: Option<Stream>,
    /// The piece of host memory that is being filled, and how far it is.
    slab: Option<(Weak<Slab>, usize)>,
    /// Bytes that wait.
    waiting: usize,
    ring: Option<Ring>,
    /// Events that nobody will wait for any more.
    events: Vec<Event>,
    /// Counts what was lent.
    next: u64,
}

pub(super) type Lobbies = Mutex<Lobby>;

#[derive(Clone, Copy)]
struct Stream(sys::CUstream);
#[derive(Clone, Copy)]
struct Event(sys::CUevent);
// SAFETY: handles that any thread may use, and which live as long as the process.
unsafe impl Send for Stream {}
unsafe impl Send for Event {}

/// Host memory, from which the GPU copies by itself where the system gives such memory.
struct Slab {
    gpu: &'static Gpu,
    at: *mut c_void,
    bytes: usize,
    pinned: bool,
}
// SAFETY: memory of the process; weights in it are written once, by the GPU, before anything reads them.
unsafe impl Send for Slab {}
unsafe impl Sync for Slab {}

/// A weight on the host.
pub(crate) struct Parked {
    slab: Arc<Slab>,
    offset: usize,
    shape: Vec<usize>,
    dtype: DType,
}

/// Where weights arrive one after the other, and from the beginning again.
struct Ring {
    memory: Arc<Buffer>,
    order: Order,
    /// Of what was lent and given back, by its number.
    read: Vec<(u64, Event)>,
}

/// A weight that was lent, in the ring's memory.
pub(super) struct Lent {
    gpu: &'static Gpu,
    _memory: Arc<Buffer>,
    number: u64,
}

/// Which parts of a ring are taken, the oldest first: start, bytes, number.
#[derive(Default)]
struct Order {
    bytes: usize,
    head: usize,
    taken: VecDeque<(usize, usize, u64)>,
}

impl Order {
    /// A part of `bytes`, and the numbers of those that were there before and must have been read; none where it does not
    /// fit, or where one of them is `held` still.
    fn take(&mut self, bytes: usize, number: u64, held: impl Fn(u64) -> bool) -> Option<(usize, Vec<u64>)> {
        let bytes = bytes.next_multiple_of(ALIGN);
        if bytes > self.bytes {
            return None;
        }
        let wraps = self.head + bytes > self.bytes;
        let start = if wraps { 0 } else { self.head };
        // What lies behind the head is the oldest, and is passed over by beginning again.
        let passed = |at: usize, len: usize| (wraps && at >= self.head) || (at < start + bytes && start < at + len);
        let count = self.taken.iter().take_while(|(at, len, _)| passed(*at, *len)).count();
        if self.taken.iter().take(count).any(|(_, _, number)| held(*number)) {
            return None;
        }
        let before = self.taken.drain(..count).map(|(_, _, number)| number).collect();
        self.taken.push_back((start, bytes, number));
        self.head = start + bytes;
        Some((start, before))
    }
}

impl Slab {
    fn new(gpu: &'static Gpu, bytes: usize) -> Result<Slab> {
        let mut at = std::ptr::null_mut();
        gpu.bind()?;
        // SAFETY: a context is current; the result goes to a place of its type.
        if unsafe { sys::cuMemHostAlloc(&mut at, bytes, 0) } == sys::CUresult::CUDA_SUCCESS {
            return Ok(Slab { gpu, at, bytes, pinned: true });
        }
        let none = || crate::Error::OutOfMemory { bytes, device: Device::Cpu.to_string(), advice: String::new() };
        let at = crate::pages::take(bytes, ALIGN).ok_or_else(none)?;
        Ok(Slab { gpu, at: at.as_ptr().cast(), bytes, pinned: false })
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // What was copied from here was waited for by the stream that is waited for now. A device that failed reads no
        // more.
        let _ = self.gpu.synchronize();
        match std::ptr::NonNull::new(self.at.cast::<u8>()) {
            // SAFETY: allocated so in `new`, and freed once.
            Some(_) if self.pinned => unsafe {
                sys::cuMemFreeHost(self.at);
            },
            // SAFETY: as above.
            Some(at) => unsafe { crate::pages::give_back(at, self.bytes, ALIGN) },
            None => {}
        }
    }
}

impl Lobby {
    /// Room for a weight on the host.
    fn room(&mut self, gpu: &'static Gpu, bytes: usize) -> Result<(Arc<Slab>, usize)> {
        let bytes = bytes.next_multiple_of(ALIGN);
        let current = self.slab.take().and_then(|(slab, used)| Some((slab.upgrade()?, used)));
        if let Some((slab, used)) = &current
            && used + bytes <= slab.bytes
        {
            self.slab = Some((Arc::downgrade(slab), used + bytes));
            return Ok((slab.clone(), *used));
        }
        let larger = current.map_or(SLABS[0], |(slab, _)| (2 * slab.bytes).min(SLABS[1]));
        let slab = Arc::new(Slab::new(gpu, larger.max(bytes))?);
        self.slab = Some((Arc::downgrade(&slab), bytes));
        Ok((slab, 0))
    }

    fn event(&mut self, gpu: &Gpu) -> Result<Event> {
        if let Some(event) = self.events.pop() {
            return Ok(event);
        }
        let mut event = std::ptr::null_mut();
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: a context is current; the result goes to a place of its type.
        gpu.check("preparing a copy", unsafe { sys::cuEventCreate(&mut event, untimed) })?;
        Ok(Event(event))
    }

    fn stream(&mut self, gpu: &Gpu) -> Result<sys::CUstream> {
        if let Some(Stream(stream)) = self.stream {
            return Ok(stream);
        }
        let mut stream = std::ptr::null_mut();
        let apart = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: as above.
        gpu.check("preparing a copy", unsafe { sys::cuStreamCreate(&mut stream, apart) })?;
        self.stream = Some(Stream(stream));
        Ok(stream)
    }

    /// Makes one stream wait for what another was asked so far.
    fn follow(&mut self, gpu: &Gpu, later: sys::CUstream, earlier: sys::CUstream) -> Result<()> {
        let event = self.event(gpu)?;
        // SAFETY: streams and event are alive; waiting takes the event as it is recorded now, so it may be used again.
        unsafe {
            gpu.check("ordering a copy", sys::cuEventRecord(event.0, earlier))?;
            gpu.check("ordering a copy", sys::cuStreamWaitEvent(later, event.0, 0))?;
        }
        self.events.push(event);
        Ok(())
    }

    /// The ring, made where there is none: whatever used its memory before, and what wrote the weights to the host, comes
    /// first.
    fn prepare(&mut self, gpu: &'static Gpu) -> Result<()> {
        if self.ring.is_none() {
            let bytes = ring(self.waiting);
            let memory = Arc::new(gpu.allocate(bytes)?);
            let copies = self.stream(gpu)?;
            self.follow(gpu, copies, gpu.stream())?;
            self.ring = Some(Ring { memory, order: Order { bytes, ..Order::default() }, read: Vec::new() });
        }
        Ok(())
    }

    /// Ends the use of a ring: whoever comes next gets a new one.
    fn close(&mut self) -> Option<Arc<Buffer>> {
        let ring = self.ring.take()?;
        self.events.extend(ring.read.into_iter().map(|(_, event)| event));
        Some(ring.memory)
    }
}

impl Parked {
    /// Brings a tensor to the host.
    pub(crate) fn new(x: &Tensor) -> Result<Parked> {
        let (gpu, from) = place(x)?;
        let bytes = x.len() * x.dtype().bytes();
        gpu.bind()?;
        let _turn = gpu.turn();
        let mut lobby = lock(&gpu.lobby);
        let (slab, offset) = lobby.room(gpu, bytes)?;
        // The next ring is made behind the copy below, and large enough.
        lobby.close();
        lobby.waiting += bytes;
        let parked = Parked { slab, offset, shape: x.shape().to_vec(), dtype: x.dtype() };
        // SAFETY: both sides hold that many bytes; the room is this weight's own.
        gpu.check("copying from it", unsafe { sys::cuMemcpyDtoHAsync_v2(parked.at(), from, bytes, gpu.stream()) })?;
        Ok(parked)
    }

    fn at(&self) -> *mut c_void {
        // SAFETY: the offset lies within the slab.
        unsafe { self.slab.at.byte_add(self.offset) }
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }

    /// The weight on the GPU, for what is launched before it is dropped again.
    pub(crate) fn at_hand(&self) -> Result<Tensor> {
        let (gpu, bytes) = (self.slab.gpu, self.bytes());
        if records() && !self.slab.pinned {
            return Err(gpu.failed("recording", "weights wait in memory from which it cannot copy by itself"));
        }
        gpu.bind()?;
        // Before the lock, which the thread that records needs too.
        let _turn = gpu.turn();
        let mut lobby = lock(&gpu.lobby);
        lobby.prepare(gpu)?;
        let copies = lobby.stream(gpu)?;
        let number = lobby.next;
        lobby.next += 1;
        let Some(ring) = &mut lobby.ring else { return Err(gpu.failed("copying to it", "there is no ring")) };
        let read = &ring.read;
        let held = |number: u64| !read.iter().any(|(other, _)| *other == number);
        let Some((start, before)) = ring.order.take(bytes, number, held) else {
            // Larger than the ring, or all of it is in others' hands.
            drop(lobby);
            let out = transfer::empty(gpu, self.dtype, &self.shape)?;
            let (_, to) = place(&out)?;
            // SAFETY: both sides hold that many bytes; the host's is never written again, and freed after a wait.
            gpu.check("copying to it", unsafe { sys::cuMemcpyHtoDAsync_v2(to, self.at(), bytes, gpu.stream()) })?;
            return Ok(out);
        };
        let memory = ring.memory.clone();
        let (passed, rest) = ring.read.drain(..).partition::<Vec<_>, _>(|(number, _)| before.contains(number));
        ring.read = rest;
        let to = memory.address() + start as u64;
        for (_, event) in passed {
            // SAFETY: stream and event are alive.
            gpu.check("ordering a copy", unsafe { sys::cuStreamWaitEvent(copies, event.0, 0) })?;
            lobby.events.push(event);
        }
        // SAFETY: as above; the ring's part is this weight's until it is given back.
        gpu.check("copying to it", unsafe { sys::cuMemcpyHtoDAsync_v2(to, self.at(), bytes, copies) })?;
        lobby.follow(gpu, gpu.stream(), copies)?;
        let lent = Lent { gpu, _memory: memory, number };
        Ok(Tensor::of(gpu.device(), self.dtype, &self.shape, Storage::Cuda(Buffer::lent(to, bytes, lent))))
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        let bytes = self.bytes();
        let mut lobby = lock(&self.slab.gpu.lobby);
        lobby.waiting = lobby.waiting.saturating_sub(bytes);
    }
}

impl Lent {
    pub(super) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let gpu = self.gpu;
        if gpu.bind().is_err() {
            return;
        }
        let _turn = gpu.turn();
        let mut lobby = lock(&gpu.lobby);
        let here = |ring: &Ring| ring.order.taken.iter().any(|(_, _, number)| *number == self.number);
        // A ring that was closed meanwhile has no later weights that would have to wait.
        if !lobby.ring.as_ref().is_some_and(here) {
            return;
        }
        // Without the event its part stays taken, and later weights find other memory.
        let Ok(event) = lobby.event(gpu) else { return };
        // SAFETY: stream and event are alive.
        if unsafe { sys::cuEventRecord(event.0, gpu.stream()) } == sys::CUresult::CUDA_SUCCESS
            && let Some(ring) = &mut lobby.ring
        {
            ring.read.push((self.number, event));
        }
    }
}

impl Gpu {
    /// Whether weights wait on the host.
    pub(super) fn parks(&self) -> bool {
        lock(&self.lobby).waiting > 0
    }

    /// Ends the use of a ring, whose memory the caller gets: a recording has one of its own.
    pub(super) fn close_ring(&self) -> Option<Arc<Buffer>> {
        lock(&self.lobby).close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is handed out overlaps nothing that was not named as read before, in any order of sizes.
    #[test]
    fn parts_of_a_ring_wait_for_those_they_cover() {
        let mut order = Order { bytes: 64 * ALIGN, ..Order::default() };
        let mut live: Vec<(usize, usize, u64)> = Vec::new();
        let mut state = 1u64;
        for number in 0..10_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bytes = ((state >> 33) as usize % 40 + 1) * ALIGN - (state >> 60) as usize;
            let (start, before) = order.take(bytes, number, |_| false).unwrap();
            live.retain(|(_, _, other)| !before.contains(other));
            assert!(start % ALIGN == 0 && start + bytes <= order.bytes);
            assert!(live.iter().all(|(at, len, _)| at + len <= start || start + bytes <= *at), "{number}");
            live.push((start, bytes, number));
        }
        assert!(order.take(65 * ALIGN, 0, |_| false).is_none(), "larger than the ring");
        // A part that is still read is not handed out, and nothing is lost by asking.
        let oldest = order.taken.front().unwrap().2;
        let (head, taken) = (order.head, order.taken.len());
        assert!(order.take(64 * ALIGN, 0, |number| number == oldest).is_none());
        assert_eq!((order.head, order.taken.len()), (head, taken));
    }
}
