//! Convolution on the CPU as a block product whose rows are gathered windows; no im2col matrix.

use super::epilogue::Epilogue;
use super::gemm::{PackedColumns, Product, Rows, product};
use super::{SharedMut, winograd};
use crate::meter::watch;
use crate::ops::{ConvOptions, Fused};
use crate::tensor::Element;
use crate::{Result, Tensor};

/// A convolution's weight, packed for one of the ways to compute it.
pub(crate) enum Weights {
    /// Depth in the order (ky, kx, channel), as windows lie in NHWC.
    Direct(PackedColumns),
    /// Transformed for tiles.
    Tiles(winograd::Weights),
}

impl Weights {
    /// Output channels.
    pub(crate) fn columns(&self) -> usize {
        match self {
            Weights::Direct(columns) => columns.columns,
            Weights::Tiles(weights) => weights.columns(),
        }
    }
}

/// Packs a weight `[out, in, kh, kw]`.
pub(crate) fn pack<T: Product>(weight: &Tensor, options: ConvOptions) -> Result<Weights> {
    let [n, c, kh, kw] = weight.dims4()?;
    if ([kh, kw], options.stride) == ([3, 3], 1)
        && let Some(size) = winograd::size(weight.dtype(), c, n)
    {
        return Ok(Weights::Tiles(winograd::Weights::new::<T>(weight, size)?));
    }
    let data = weight.data::<T>();
    let taps = kh * kw;
    let columns = PackedColumns::new::<T>(n, taps * c, |column, out| {
        let kernel = &data[column * c * taps..][..c * taps];
        for (tap, out) in out.chunks_exact_mut(c).enumerate() {
            out.iter_mut().zip(kernel[tap..].iter().step_by(taps)).for_each(|(o, x)| *o = *x);
        }
    })?;
    Ok(Weights::Direct(columns))
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

impl<T: Element> Rows<T> for Windows<'_, T> {
    #[inline]
    fn copy(&self, row: usize, from: usize, out: &mut [T]) {
        let c = self.stored[2];
        let [oh, ow] = self.out;
        let (picture, y, x) = (row / (oh * ow), row / ow % oh, row % ow);
        let (mut tap, mut channel, mut done) = (from / c, from % c, 0);
        while done < out.len() {
            let count = (c - channel).min(out.len() - done);
            let target = &mut out[done..done + count];
            let (py, px) =
                (y * self.options.stride + tap / self.kernel[1], x * self.options.stride + tap % self.kernel[1]);
            match self.pixel(picture, py, px) {
                Some(pixel) => target.copy_from_slice(&pixel[channel..channel + count]),
                None => target.fill(T::from_f32(0.0)),
            }
            done += count;
            channel = 0;
            tap += 1;
        }
    }
}

/// Convolves `x` `[b, h, w, in]`, first resized to `seen` by nearest neighbour, into `[b, oh, ow, out]`.
pub(crate) fn forward<T: Product>(
    x: &Tensor,
    weight: &Weights,
    bias: Option<&[f32]>,
    kernel: [usize; 2],
    options: ConvOptions,
    seen: [usize; 2],
    out: [usize; 2],
    fused: &Fused,
) -> Result<Tensor> {
    let _watch = watch(|| format!("convolution {kernel:?} {:?} -> {out:?} {}", x.shape(), weight.columns()));
    let [b, h, w, c] = x.dims4()?;
    let pixels = out[0] * out[1];
    let mut failed = Ok(());
    let result = Tensor::build::<T>(x.device(), &[b, out[0], out[1], weight.columns()], |output| {
        let epilogue = Epilogue {
            bias,
            channel_add: fused.channel_add.map(|t| (t.data::<T>(), pixels)),
            activation: fused.activation,
            residual: fused.residual.map(Tensor::data::<T>),
            out: SharedMut::new(output),
            width: weight.columns(),
        };
        let windows = Windows { data: x.data::<T>(), stored: [h, w, c], seen, kernel, out, options };
        match weight {
            Weights::Direct(weight) => product::<T>(b * pixels, &windows, weight, 1, |tile| epilogue.finish(tile)),
            Weights::Tiles(weights) => failed = winograd::forward::<T>(&windows, b, weights, &epilogue),
        }
    });
    failed.and(result)
}
