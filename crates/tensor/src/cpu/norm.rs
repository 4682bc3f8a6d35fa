//! Group and layer normalisation. Bound: memory, one read for the statistics and one pass to apply them.

#[cfg(target_arch = "x86_64")]
mod fast;

#[cfg(target_arch = "x86_64")]
use super::SharedMut;
#[cfg(target_arch = "x86_64")]
use super::epilogue::{past_caches, settle};
use super::isa::simd;
#[cfg(target_arch = "x86_64")]
use super::isa::{Isa, isa};
use super::math::activate_all;
#[cfg(target_arch = "x86_64")]
use super::rows::Place;
use super::rows::{MatrixRows, PackedRows};
use crate::meter::watch;
use crate::ops::Activation;
use crate::tensor::Element;
use crate::{DType, Device, Result, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Pixels summed in f32 before the sums move on to f64: fixed, so that threads do not change the result.
const SUM_ROWS: usize = 256;

simd! {
    /// Sums of `x - shift` and of its square for each channel.
    fn channel_sums<T: Element>(x: &[T], shift: &[f32], sums: &mut [f32], squares: &mut [f32]) {
        let c = shift.len();
        for pixel in x.chunks_exact(c) {
            for (((x, k), s), q) in pixel.iter().zip(shift).zip(sums.iter_mut()).zip(squares.iter_mut()) {
                let d = x.to_f32() - k;
                *s += d;
                *q += d * d;
            }
        }
    }
}

simd! {
    /// `activation(x * gain + offset)` of each pixel into `gain.len()` of every `stride` numbers of `out`.
    fn apply<T: Element>(x: &[T], gain: &[f32], offset: &[f32], activation: Activation, buffer: &mut [f32], out: &mut [T], stride: usize) {
        let c = gain.len();
        for (x, o) in x.chunks_exact(c).zip(out.chunks_mut(stride)) {
            buffer.iter_mut().zip(x).zip(gain.iter().zip(offset)).for_each(|((b, x), (g, t))| *b = x.to_f32() * g + t);
            activate_all(buffer, activation);
            o.iter_mut().zip(buffer.iter()).for_each(|(o, b)| *o = T::from_f32(*b));
        }
    }
}

/// Whether [`fast`] is for this type.
#[cfg(target_arch = "x86_64")]
fn is_fast<T: Element>() -> bool {
    T::DTYPE == DType::BF16 && isa() >= Isa::Avx512Bf16
}

/// Mean and sum of squared distances from it, for each channel of one picture.
fn channel_stats<T: Element>(x: &[T], c: usize) -> Result<Vec<(f64, f64)>> {
    // Shifting by the first pixel keeps the sum of squares from cancelling where the mean is large.
    let shift: Vec<f32> = x[..c].iter().map(|x| x.to_f32()).collect();
    // As a tensor, whose memory is used again: thousands of small allocations would come as new pages each time.
    let partial = Tensor::build::<f32>(&Device::Cpu, &[x.len().div_ceil(SUM_ROWS * c), 2, c], |partial| {
        partial.par_chunks_mut(2 * c).zip(x.par_chunks(SUM_ROWS * c)).for_each(|(partial, chunk)| {
            let (sums, squares) = partial.split_at_mut(c);
            #[cfg(target_arch = "x86_64")]
            if is_fast::<T>() {
                // SAFETY: T is bf16, 16 bits, and the processor has the instructions.
                unsafe {
                    let chunk = std::slice::from_raw_parts(chunk.as_ptr().cast::<u16>(), chunk.len());
                    fast::channel_sums(chunk, &shift, sums, squares);
                }
                return;
            }
            sums.fill(0.0);
            squares.fill(0.0);
            channel_sums(chunk, &shift, sums, squares);
        });
    })?;
    let pixels = (x.len() / c) as f64;
    let mut sums = vec![0f64; 2 * c];
    for partial in partial.data::<f32>().chunks_exact(2 * c) {
        sums.iter_mut().zip(partial).for_each(|(a, b)| *a += f64::from(*b));
    }
    let (sums, squares) = sums.split_at(c);
    let stats = shift.iter().zip(sums.iter().zip(squares));
    Ok(stats.map(|(k, (s, q))| (f64::from(*k) + s / pixels, (q - s * s / pixels).max(0.0))).collect())
}

/// A group normalisation of pictures that is still to be done, pixel by pixel: its gain and offset for each channel.
pub(crate) struct Gains {
    /// Of each picture.
    of: Vec<(Vec<f32>, Vec<f32>)>,
    silu: bool,
}

impl Gains {
    /// Whether [`Gains::apply`] knows a norm of so many channels.
    pub(crate) fn possible(dtype: DType, c: usize, activation: Activation) -> bool {
        #[cfg(target_arch = "x86_64")]
        if dtype == DType::BF16 && is_fast::<bf16>() {
            return fast::in_lines(c) && fast::knows(activation);
        }
        let _ = (dtype, c, activation);
        false
    }

    /// Of `x` `[b, pixels.., c]`.
    pub(crate) fn of<T: Element>(
        x: &Tensor,
        groups: usize,
        weight: &[f32],
        bias: &[f32],
        eps: f32,
        activation: Activation,
    ) -> Result<Gains> {
        let _watch = watch(|| format!("group norm's gains {:?}", x.shape()));
        let (c, pixels) = (x.last_dim(), x.len() / x.dim(0) / x.last_dim());
        let pictures = x.data::<T>().chunks_exact(pixels * c);
        let of = pictures.map(|x| Ok(gains(&channel_stats(x, c)?, pixels as f64, groups, weight, bias, eps)));
        Ok(Gains { of: of.collect::<Result<_>>()?, silu: activation == Activation::Silu })
    }

    /// Normalises the channels of a pixel of a picture, and writes each line of them `step` numbers after the one before.
    ///
    /// # Safety
    /// It is [possible](Gains::possible), there is such a picture, and all lines have room.
    #[inline]
    pub(crate) unsafe fn apply<T: Element>(&self, picture: usize, pixel: &[T], to: *mut T, step: usize) {
        let (gain, offset) = &self.of[picture];
        assert!(pixel.len() == gain.len());
        #[cfg(target_arch = "x86_64")]
        // SAFETY: T is bf16, 16 bits, and as promised.
        unsafe {
            fast::apply_pixel(pixel.as_ptr().cast(), (gain, offset), self.silu, to.cast(), step);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (offset, to, step, self.silu);
    }
}

/// Gain and offset for each channel of one picture of `pixels`, from the statistics of its channels.
fn gains(
    stats: &[(f64, f64)],
    pixels: f64,
    groups: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) -> (Vec<f32>, Vec<f32>) {
    let size = stats.len() / groups;
    let (mut gain, mut offset) = (vec![0f32; stats.len()], vec![0f32; stats.len()]);
    for (group, stats) in stats.chunks_exact(size).enumerate() {
        let mean = stats.iter().map(|s| s.0).sum::<f64>() / size as f64;
        let spread: f64 = stats.iter().map(|s| s.1 + pixels * (s.0 - mean) * (s.0 - mean)).sum();
        let inverse = 1.0 / (spread / (pixels * size as f64) + f64::from(eps)).sqrt();
        for ch in group * size..(group + 1) * size {
            let g = f64::from(weight[ch]) * inverse;
            gain[ch] = g as f32;
            offset[ch] = (f64::from(bias[ch]) - mean * g) as f32;
        }
    }
    (gain, offset)
}

/// Group normalisation of `[b, pixels.., c]`, whose channels may lie in several parts, with an activation.
pub(crate) fn group_norm<T: Element>(
    parts: &[&Tensor],
    groups: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    activation: Activation,
) -> Result<Tensor> {
    let _watch = watch(|| format!("group norm {:?}", parts[0].shape()));
    let c = weight.len();
    let pixels = parts[0].len() / (parts[0].dim(0) * parts[0].last_dim());
    let mut shape = parts[0].shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = c;
    }
    let of = |part: &Tensor, picture: usize| {
        let size = pixels * part.last_dim();
        picture * size..(picture + 1) * size
    };
    let gains_of = |picture: usize| -> Result<_> {
        let mut stats = Vec::with_capacity(c);
        for part in parts {
            stats.extend(channel_stats(&part.data::<T>()[of(part, picture)], part.last_dim())?);
        }
        Ok(gains(&stats, pixels as f64, groups, weight, bias, eps))
    };
    let mut done = Ok(());
    let result = Tensor::build::<T>(parts[0].device(), &shape, |out| {
        #[cfg(target_arch = "x86_64")]
        let past_caches = past_caches(out);
        for (picture, o) in out.chunks_mut(pixels * c).enumerate() {
            let (gain, offset) = match gains_of(picture) {
                Ok(gains) => gains,
                Err(error) => {
                    done = Err(error);
                    return;
                }
            };
            let task = (1usize << 14).div_ceil(c);
            o.par_chunks_mut(task * c).enumerate().for_each(|(i, o)| {
                let mut first = 0;
                for part in parts {
                    let width = part.last_dim();
                    let columns = first..first + width;
                    let x = &part.data::<T>()[of(part, picture)][i * task * width..][..o.len() / c * width];
                    let (gain, offset) = (&gain[columns.clone()], &offset[columns]);
                    let o = &mut o[first..];
                    first += width;
                    #[cfg(target_arch = "x86_64")]
                    if is_fast::<T>() && fast::knows(activation) {
                        // SAFETY: T is bf16, 16 bits, and the processor has the instructions; `o` holds as many pixels.
                        unsafe {
                            let x = std::slice::from_raw_parts(x.as_ptr().cast::<u16>(), x.len());
                            let silu = activation == Activation::Silu;
                            fast::apply(x, gain, offset, silu, o.as_mut_ptr().cast(), c, past_caches);
                        }
                        settle();
                        continue;
                    }
                    apply(x, gain, offset, activation, &mut vec![0f32; width], o, c);
                }
            });
        }
    });
    done.and(result)
}

/// Sum with 16 accumulators, in an order that vectors have too.
#[inline(always)]
fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = values.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|x| term(*x)).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, x)| *l += term(*x));
    }
    lanes.iter().sum::<f32>() + rest
}

simd! {
    fn layer_norm_rows<T: Element>(x: &[T], weight: &[f32], bias: Option<&[f32]>, eps: f32, buffer: &mut [f32], out: &mut [T]) {
        let c = weight.len();
        for (x, o) in x.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
            buffer.iter_mut().zip(x).for_each(|(b, x)| *b = x.to_f32());
            let mean = sum(buffer, |x| x) / c as f32;
            let variance = sum(buffer, |x| (x - mean) * (x - mean)) / c as f32;
            let inverse = 1.0 / (variance + eps).sqrt();
            buffer.iter_mut().zip(weight).for_each(|(b, w)| *b = (*b - mean) * inverse * w);
            if let Some(bias) = bias {
                buffer.iter_mut().zip(bias).for_each(|(b, t)| *b += t);
            }
            o.iter_mut().zip(buffer.iter()).for_each(|(o, b)| *o = T::from_f32(*b));
        }
    }
}

/// Layer normalisation over the last dimension.
pub(crate) fn layer_norm<T: Element>(x: &Tensor, weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Result<Tensor> {
    let _watch = watch(|| format!("layer norm {:?}", x.shape()));
    let c = x.last_dim();
    let data = x.data::<T>();
    Tensor::build::<T>(x.device(), x.shape(), |out| {
        #[cfg(target_arch = "x86_64")]
        if is_fast::<T>() && fast::in_lines(c) {
            // SAFETY: T is bf16, the processor has the instructions, and `out` holds as many rows of whole lines.
            return unsafe { layer_norm_fast(x, weight, bias, eps, SharedMut::new(out), Place::plain(c)) };
        }
        let task = rows_at_once(c) * c;
        out.par_chunks_mut(task).zip(data.par_chunks(task)).for_each(|(o, x)| {
            layer_norm_rows(x, weight, bias, eps, &mut vec![0f32; c], o);
        });
    })
}

/// Rows of a task.
fn rows_at_once(c: usize) -> usize {
    (1usize << 14).div_ceil(c)
}

/// As [`layer_norm`] of bf16 in whole lines, packed for the product that reads it.
pub(crate) fn layer_norm_packed(x: &Tensor, weight: &[f32], bias: Option<&[f32]>, eps: f32) -> Result<PackedRows> {
    let (rows, c) = (x.len() / x.last_dim(), x.last_dim());
    #[cfg(target_arch = "x86_64")]
    if is_fast::<bf16>() {
        let _watch = watch(|| format!("layer norm {:?}", x.shape()));
        return PackedRows::build(rows, c, |out, place| {
            // SAFETY: the processor has the instructions, and there is a place for every row.
            unsafe { layer_norm_fast(x, weight, bias, eps, out, place) }
        });
    }
    let normal = layer_norm::<bf16>(x, weight, bias, eps)?;
    PackedRows::new(&MatrixRows { data: normal.data::<bf16>(), depth: c }, rows, c, 1)
}

/// Layer normalisation of bf16 to where `place` says.
///
/// # Safety
/// T is bf16, the processor has the instructions, rows are whole lines, and `out` has a place for each.
#[cfg(target_arch = "x86_64")]
unsafe fn layer_norm_fast<T: Element>(
    x: &Tensor,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: SharedMut<T>,
    place: Place,
) {
    let c = weight.len();
    let at_once = rows_at_once(c);
    x.data::<T>().par_chunks(at_once * c).enumerate().for_each(|(i, x)| {
        // SAFETY: T is bf16, 16 bits, and as the caller promised; tasks write rows of their own.
        unsafe {
            let x = std::slice::from_raw_parts(x.as_ptr().cast::<u16>(), x.len());
            fast::layer_norm_rows(x, weight, bias, eps, (out.at(0).cast(), i * at_once, place));
        }
    });
}
