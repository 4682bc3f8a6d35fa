//! A tensor as it lies in a file: a strided window on a storage, and the cheap changes of such a window.

use crate::dtype::Dtype;
use crate::source::Storage;

/// A strided window on a storage. Strides and offset count elements. The constructor guarantees that every element lies
/// inside the storage and that there are no more elements than the storage holds, so memory for a copy is bounded by
/// what the file has.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) storage: Storage,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) offset: usize,
}

/// More axes than any network's weights have; bounds the work on a hostile file.
pub(crate) const MOST_AXES: usize = 8;

impl Stored {
    /// The whole of `storage` as a contiguous tensor, or a sentence on why it cannot be one.
    pub(crate) fn contiguous(storage: Storage, dtype: Dtype, shape: Vec<usize>) -> Result<Stored, String> {
        let strides = contiguous_strides(&shape).ok_or_else(|| format!("its shape {shape:?} is too large"))?;
        Stored::strided(storage, dtype, shape, strides, 0)
    }

    /// A window on `storage`, or a sentence on why it does not fit.
    pub(crate) fn strided(
        storage: Storage,
        dtype: Dtype,
        shape: Vec<usize>,
        mut strides: Vec<usize>,
        mut offset: usize,
    ) -> Result<Stored, String> {
        if shape.len() != strides.len() {
            return Err(format!("it has {} axes and {} strides", shape.len(), strides.len()));
        }
        let held = storage.len / dtype.size() as u64;
        let count = count(&shape).filter(|&n| n as u64 <= held);
        let last = last_index(&shape, &strides, offset).filter(|&i| i < held || shape.contains(&0));
        if count.is_none() || last.is_none() {
            return Err(format!(
                "its shape {shape:?} with strides {strides:?} from {offset} reaches beyond a storage of {held} elements"
            ));
        }
        // Strides that no element is reached by may be anything: they must not overflow later.
        let empty = shape.contains(&0);
        if empty {
            offset = 0;
        }
        for (stride, &size) in strides.iter_mut().zip(&shape) {
            if empty || size == 1 {
                *stride = 0;
            }
        }
        Ok(Stored { storage, dtype, shape, strides, offset })
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }
}

/// The product of a shape, if it and its byte size fit.
pub(crate) fn count(shape: &[usize]) -> Option<usize> {
    // A zero must not hide an overflow: the product of the others is checked too.
    let product = shape.iter().filter(|&&n| n != 0).try_fold(1usize, |a, &b| a.checked_mul(b))?;
    product.checked_mul(8)?;
    Some(if shape.contains(&0) { 0 } else { product })
}

/// Row-major strides.
pub(crate) fn contiguous_strides(shape: &[usize]) -> Option<Vec<usize>> {
    count(shape)?;
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    Some(strides)
}

fn last_index(shape: &[usize], strides: &[usize], offset: usize) -> Option<u64> {
    let mut last = offset as u64;
    for (&size, &stride) in shape.iter().zip(strides) {
        let span = (size.max(1) as u64 - 1).checked_mul(stride as u64)?;
        last = last.checked_add(span)?;
    }
    Some(last)
}
