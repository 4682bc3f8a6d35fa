//! Moving elements: concatenation, splitting, cropping, resizing, table rows. Bound: memory.

use crate::meter::watch;
use crate::tensor::Element;
use crate::{Result, Tensor};
use rayon::prelude::*;

/// Joins tensors along an axis; `outer` is the product of the dimensions before it.
pub(crate) fn concat<T: Element>(parts: &[&Tensor], shape: &[usize], outer: usize) -> Result<Tensor> {
    let _watch = watch(|| format!("join {shape:?}"));
    let first = parts[0];
    let sources: Vec<(&[T], usize)> = parts.iter().map(|p| (p.data::<T>(), p.len() / outer.max(1))).collect();
    let row: usize = sources.iter().map(|(_, n)| n).sum();
    Tensor::build::<T>(first.device(), shape, |out| {
        // Several short rows make one task.
        let rows = (1usize << 14).div_ceil(row.max(1));
        out.par_chunks_mut((row * rows).max(1)).enumerate().for_each(|(task, chunk)| {
            for (i, line) in chunk.chunks_mut(row).enumerate() {
                let mut at = 0;
                for (source, n) in &sources {
                    line[at..at + n].copy_from_slice(&source[(task * rows + i) * n..][..*n]);
                    at += n;
                }
            }
        });
    })
}

/// Columns `start .. start + width` of the last dimension.
pub(crate) fn slice_last<T: Element>(x: &Tensor, start: usize, width: usize) -> Result<Tensor> {
    let _watch = watch(|| format!("slice {:?} -> {width}", x.shape()));
    let (data, total) = (x.data::<T>(), x.last_dim());
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    Tensor::build::<T>(x.device(), &shape, |out| {
        for (o, line) in out.chunks_mut(width.max(1)).zip(data.chunks(total.max(1))) {
            o.copy_from_slice(&line[start..start + width]);
        }
    })
}

/// A window of each picture.
pub(crate) fn crop<T: Element>(x: &Tensor, [y0, x0, h, w]: [usize; 4]) -> Result<Tensor> {
    let _watch = watch(|| format!("crop {:?} -> {h}x{w}", x.shape()));
    let [b, ih, iw, c] = x.dims4()?;
    let data = x.data::<T>();
    Tensor::build::<T>(x.device(), &[b, h, w, c], |out| {
        for (i, line) in out.chunks_mut((w * c).max(1)).enumerate() {
            let (picture, y) = (i / h, i % h);
            line.copy_from_slice(&data[((picture * ih + y0 + y) * iw + x0) * c..][..w * c]);
        }
    })
}

/// Nearest-neighbour resizing as torch does it: source index is floor(target * source / target size).
pub(crate) fn upsample_nearest<T: Element>(x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let _watch = watch(|| format!("enlarge {:?}", x.shape()));
    let [b, ih, iw, c] = x.dims4()?;
    let data = x.data::<T>();
    Tensor::build::<T>(x.device(), &[b, h, w, c], |out| {
        out.par_chunks_mut((w * c).max(1)).enumerate().for_each(|(i, line)| {
            let (picture, y) = (i / h, i % h);
            for (ox, o) in line.chunks_mut(c).enumerate() {
                o.copy_from_slice(&data[((picture * ih + y * ih / h) * iw + ox * iw / w) * c..][..c]);
            }
        });
    })
}

/// Rows of a table.
pub(crate) fn embedding<T: Element>(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let _watch = watch(|| format!("look up {}", ids.len()));
    let (data, c) = (table.data::<T>(), table.last_dim());
    Tensor::build::<T>(table.device(), &[ids.len(), c], |out| {
        for (o, &id) in out.chunks_mut(c.max(1)).zip(ids) {
            o.copy_from_slice(&data[id as usize * c..][..c]);
        }
    })
}

/// The whole tensor `times` times along the first dimension.
pub(crate) fn repeat<T: Element>(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let _watch = watch(|| format!("repeat {shape:?}"));
    let data = x.data::<T>();
    Tensor::build::<T>(x.device(), shape, |out| {
        out.chunks_mut(data.len().max(1)).for_each(|o| o.copy_from_slice(data));
    })
}
