//! Convolution on the CPU as a block product whose rows are gathered windows; no im2col matrix.

mod doubled;
mod stage;

use super::columns::PackedColumns;
use super::epilogue::{Epilogue, past_caches};
use super::gemm::{Product, product, seldom_read, splits};
use super::norm::Gains;
use super::rows::{Place, Rows};
use super::split::NUMBERS;
use super::tiles::Staged;
use super::{SharedMut, winograd};
use crate::meter::watch;
use crate::ops::{Activation, ConvOptions, Fused, Products};
use crate::tensor::Element;
use crate::{DType, Result, Tensor};
use doubled::Phases;
pub(crate) use doubled::SUMMED;
use std::ops::Range;

/// A convolution's weight, packed for one of the ways to compute it.
pub(crate) enum Weights {
    /// Depth in the order (ky, kx, channel), as windows lie in NHWC, or [by steps](at_once); where pictures are enlarged
    /// to twice their size as well.
    Direct(PackedColumns, Option<Phases>),
    /// Transformed for tiles.
    Tiles(winograd::Weights),
}

impl Weights {
    /// Output channels.
    pub(crate) fn columns(&self) -> usize {
        match self {
            Weights::Direct(columns, _) => columns.columns,
            Weights::Tiles(weights) => weights.columns(),
        }
    }

    /// From now on does with fewer products what a 3x3 `weight`, of which these were [packed](pack), makes of a picture
    /// that is enlarged to twice its size, where these are not of an algorithm of still fewer.
    pub(crate) fn double<T: Product>(&mut self, weight: &Tensor, products: Products) -> Result<()> {
        if let Weights::Direct(_, phases) = self {
            *phases = Some(Phases::pack::<T>(weight, products)?);
        }
        Ok(())
    }
}

/// The tiles by which a weight `[out, in, kh, kw]` is applied, where they pay.
fn tiles(dtype: DType, [n, c, kh, kw]: [usize; 4], options: ConvOptions) -> Option<winograd::Size> {
    if ([kh, kw], options.stride) == ([3, 3], 1) { winograd::size(dtype, c, n) } else { None }
}

/// Numbers of its type that a weight `[out, in, kernel, kernel]` is held in, but for what fills up panels.
pub(crate) fn held(dtype: DType, products: Products, [n, c, kernel]: [usize; 3], options: ConvOptions) -> usize {
    let tiles = if splits(dtype, products) { None } else { tiles(dtype, [n, c, kernel, kernel], options) };
    let transformed = |size: winograd::Size| size.inputs().pow(2) * size_of::<f32>() / dtype.bytes();
    n * c * tiles.map_or(kernel * kernel, transformed)
}

/// Of so many channels all taps come before the next channels. Not of all of them where tiles read windows: neighbouring taps
/// see nearly the same pixels, of which a tile's rows then stay in the first-level cache from one step to the next.
fn at_once<T: Product>(c: usize, in_parts: bool) -> usize {
    if (T::tiled() || in_parts) && c.is_multiple_of(NUMBERS) { NUMBERS } else { c }
}

/// Packs a weight `[out, in, kh, kw]`.
pub(crate) fn pack<T: Product>(weight: &Tensor, options: ConvOptions, products: Products) -> Result<Weights> {
    let [n, c, kh, kw] = weight.dims4()?;
    let in_parts = splits(weight.dtype(), products);
    if let Some(size) = tiles(weight.dtype(), [n, c, kh, kw], options).filter(|_| !in_parts) {
        return Ok(Weights::Tiles(winograd::Weights::new::<T>(weight, size)?));
    }
    Ok(Weights::Direct(direct::<T>(weight, products)?, None))
}

/// Packs a weight `[out, in, kh, kw]` for [windows](Windows).
fn direct<T: Product>(weight: &Tensor, products: Products) -> Result<PackedColumns> {
    let [n, c, kh, kw] = weight.dims4()?;
    let data = weight.data::<T>();
    let taps = kh * kw;
    let at_once = at_once::<T>(c, splits(weight.dtype(), products));
    PackedColumns::of::<T>(n, taps * c, products, |column, out| {
        let kernel = &data[column * c * taps..][..c * taps];
        for (i, out) in out.chunks_exact_mut(at_once).enumerate() {
            let from = i / taps * at_once * taps + i % taps;
            out.iter_mut().zip(kernel[from..].iter().step_by(taps)).for_each(|(o, x)| *o = *x);
        }
    })
}

/// The windows of a picture as rows of a matrix.
pub(crate) struct Windows<'a, T> {
    data: &'a [T],
    /// Height, width, channels of the stored picture.
    stored: [usize; 3],
    /// Height and width of the picture that the convolution sees: larger where it is upsampled on the way.
    seen: [usize; 2],
    kernel: [usize; 2],
    pub(crate) out: [usize; 2],
    options: ConvOptions,
    /// As many channels of all taps come before the next ones in a row.
    at_once: usize,
    /// What is done to pixels when they are [staged](Rows::stage), which they always are then.
    gains: Option<&'a Gains>,
}

impl<T> Windows<'_, T> {
    /// The channels of the pixel at (y, x) of the padded picture; none in the padding.
    #[inline]
    pub(crate) fn pixel(&self, picture: usize, y: usize, x: usize) -> Option<&[T]> {
        let [h, w, c] = self.stored;
        // Wrapping: a coordinate before the picture becomes a huge one, outside as well.
        let (sy, sx) = (y.wrapping_sub(self.options.padding[0]), x.wrapping_sub(self.options.padding[2]));
        if sy >= self.seen[0] || sx >= self.seen[1] {
            return None;
        }
        let (sy, sx) = if self.seen == [h, w] { (sy, sx) } else { (sy * h / self.seen[0], sx * w / self.seen[1]) };
        Some(&self.data[((picture * h + sy) * w + sx) * c..][..c])
    }
}

impl<T: Element> Windows<'_, T> {
    /// From one window to the next, where each is a pixel.
    fn stride(&self) -> Option<usize> {
        let [h, w, c] = self.stored;
        let as_it_lies = self.kernel == [1, 1] && self.out == [h, w] && self.seen == [h, w];
        as_it_lies.then_some(c)
    }
}

impl<T: Element> Rows<T> for Windows<'_, T> {
    #[inline]
    fn copy(&self, row: usize, from: usize, out: &mut [T]) {
        let [oh, ow] = self.out;
        let (picture, y, x) = (row / (oh * ow), row / ow % oh, row % ow);
        let (taps, at_once) = (self.kernel[0] * self.kernel[1], self.at_once);
        let mut done = 0;
        while done < out.len() {
            let (i, first) = ((from + done) / at_once, (from + done) % at_once);
            let (tap, channel) = (i % taps, i / taps * at_once + first);
            let count = (at_once - first).min(out.len() - done);
            let target = &mut out[done..done + count];
            let (py, px) =
                (y * self.options.stride + tap / self.kernel[1], x * self.options.stride + tap % self.kernel[1]);
            match self.pixel(picture, py, px) {
                Some(pixel) => target.copy_from_slice(&pixel[channel..channel + count]),
                None => target.fill(T::from_f32(0.0)),
            }
            done += count;
        }
    }

    #[inline]
    fn in_place(&self, row: usize, from: usize, len: usize) -> Option<&[T]> {
        let c = self.stride()?;
        self.data.get(row * c + from..row * c + from + len)
    }

    fn task_rows(&self) -> Option<usize> {
        self.stride().is_none().then(|| self.staged_rows())
    }

    fn stage(&self, rows: Range<usize>, staged: &mut Staged) -> bool {
        self.stage_rows(rows, staged)
    }
}

/// Whether [`forward`] takes [`Gains`] of a 3x3 convolution of stride 1 where `pixels` are convolved: tiles read them from copies
/// of their own, and so few tasks copy the same ones that it is no more work than a pass of its own.
pub(crate) fn norms<T: Product>(weight: &Weights, c: usize, activation: Activation, pixels: Option<usize>) -> bool {
    let Weights::Direct(columns, _) = weight else { return false };
    T::tiled() && Gains::possible(T::DTYPE, c, activation) && pixels.is_none_or(|pixels| seldom_read(pixels, columns))
}

/// Convolves `x` `[b, h, w, in]`, first resized to `seen` by nearest neighbour, into `[b, oh, ow, out]`. With
/// gains, for which [`norms`] has to be asked, `x` is normalised in passing.
pub(crate) fn forward<T: Product>(
    x: &Tensor,
    weight: &Weights,
    bias: Option<&[f32]>,
    kernel: [usize; 2],
    options: ConvOptions,
    seen: [usize; 2],
    out: [usize; 2],
    fused: &Fused,
    gains: Option<&Gains>,
) -> Result<Tensor> {
    let _watch = watch(|| format!("convolution {kernel:?} {:?} -> {out:?} {}", x.shape(), weight.columns()));
    let [b, h, w, c] = x.dims4()?;
    if let (Weights::Direct(_, Some(phases)), Fused { channel_add: None, residual: None, activation }) =
        (weight, *fused)
        && seen == [2 * h, 2 * w]
    {
        return phases.forward::<T>(x, bias, activation);
    }
    let pixels = out[0] * out[1];
    let mut done = Ok(());
    let result = Tensor::build::<T>(x.device(), &[b, out[0], out[1], weight.columns()], |output| {
        let epilogue = Epilogue {
            // Tiles are transformed back in tasks that would not order such writes.
            past_caches: past_caches(output) && matches!(weight, Weights::Direct(..)),
            bias,
            channel_add: fused.channel_add.map(|t| (t.data::<T>(), pixels)),
            activation: fused.activation,
            residual: fused.residual.map(Tensor::data::<T>),
            out: SharedMut::new(output),
            width: weight.columns(),
            place: Place::plain(weight.columns()),
        };
        let in_parts = matches!(weight, Weights::Direct(weight, _) if weight.parts() > 1);
        let at_once = at_once::<T>(c, in_parts);
        let windows = Windows { data: x.data::<T>(), stored: [h, w, c], seen, kernel, out, options, at_once, gains };
        match weight {
            Weights::Direct(weight, _) => {
                done = product::<T>(b * pixels, &windows, weight, 1, |tile| epilogue.finish(tile));
            }
            Weights::Tiles(weights) => done = winograd::forward::<T>(&windows, b, weights, &epilogue),
        }
    });
    done.and(result)
}
