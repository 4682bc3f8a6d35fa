//! The CPU back end: one file for each operator family, over one block product (`gemm`).

pub(crate) mod amx;
pub(crate) mod attention;
pub(crate) mod columns;
pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod epilogue;
pub(crate) mod gemm;
pub(crate) mod isa;
pub(crate) mod linear;
pub(crate) mod lines;
pub(crate) mod math;
pub(crate) mod micro;
pub(crate) mod norm;
pub(crate) mod rows;
pub(crate) mod shape;
pub(crate) mod split;
pub(crate) mod tiles;
pub(crate) mod vector;
pub(crate) mod winograd;

/// A pointer that threads may share while they write disjoint parts behind it.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T);

// SAFETY: users write disjoint ranges only; each use says why its ranges are disjoint.
unsafe impl<T> Send for SharedMut<T> {}
unsafe impl<T> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr())
    }

    /// Where element `start` lies, for what writes lines and tiles at once. Tasks keep to disjoint places.
    pub(crate) fn at(&self, start: usize) -> *mut T {
        self.0.wrapping_add(start)
    }

    /// # Safety
    /// The range lies in the slice, and no other thread uses it while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
