//! Memory of a thread in whole lines of the cache: a tile's row that crosses one costs two loads.

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Numbers of 32 bits, of which nothing is known but that they are some.
#[derive(Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// The first `count` numbers, which keep what they were.
    pub(crate) fn get(&mut self, count: usize) -> &mut [u32] {
        let lines = count.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 16]));
        }
        // SAFETY: the lines hold as many u32.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<u32>(), count) }
    }

    /// As [`Lines::get`], as floating-point numbers.
    pub(crate) fn floats(&mut self, count: usize) -> &mut [f32] {
        let numbers = self.get(count);
        // SAFETY: f32 and u32 have the same size and alignment, and every pattern is a number.
        unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast::<f32>(), count) }
    }

    /// Where number `at` lies.
    pub(crate) fn at(&self, at: usize) -> *const u32 {
        self.0.as_ptr().cast::<u32>().wrapping_add(at)
    }
}

/// Asks for `count` numbers that will be read soon, which need not exist, into the second-level cache.
#[inline]
pub(crate) fn fetch(from: *const u32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..count).step_by(16) {
        // SAFETY: asking for memory reads nothing, whatever the address.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(from.wrapping_add(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, count);
}
