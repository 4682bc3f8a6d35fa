//! A 3x3 convolution of a picture enlarged to twice its size by nearest neighbour, from the picture as it is. Each result sees
//! two by two of its pixels, some of them through several taps: for the results of even lines the first tap of a column is
//! alone and the others meet in one pixel, for those of odd lines it is the other way round, and so across. So four
//! convolutions of 2x2, whose taps are sums of the weight's, make what one of 3x3 would: 16 products instead of 36.

use super::{Windows, at_once, direct};
use crate::cpu::SharedMut;
use crate::cpu::columns::PackedColumns;
use crate::cpu::epilogue::{Epilogue, past_caches};
use crate::cpu::gemm::{Product, Tile, product};
use crate::cpu::rows::Place;
use crate::ops::{Activation, ConvOptions, Products};
use crate::{Result, Tensor};
use rayon::prelude::*;

/// The weights of even lines' even and odd results, then of odd lines'.
pub(crate) struct Phases(Box<[PackedColumns; 4]>);

/// Numbers that these have for each pair of channels.
pub(crate) const SUMMED: usize = 16;

/// Which taps of three meet in each of the two pixels that an even (odd) result sees.
const MEET: [[&[usize]; 2]; 2] = [[&[0], &[1, 2]], [&[0, 1], &[2]]];

impl Phases {
    /// Sums and packs a weight `[out, in, 3, 3]`; what is not f32 is rounded once more.
    pub(super) fn pack<T: Product>(weight: &Tensor, products: Products) -> Result<Phases> {
        let [n, c, ..] = weight.dims4()?;
        let data = weight.data::<T>();
        let phase = |down: usize, across: usize| {
            let summed = Tensor::build::<T>(weight.device(), &[n, c, 2, 2], |out| {
                data.par_chunks(9 * c).zip(out.par_chunks_mut(4 * c)).for_each(|(kernels, out)| {
                    for (kernel, out) in kernels.chunks_exact(9).zip(out.chunks_exact_mut(4)) {
                        for (i, out) in out.iter_mut().enumerate() {
                            let lines = MEET[down][i / 2].iter();
                            let taps = lines.flat_map(|y| MEET[across][i % 2].iter().map(move |x| 3 * y + x));
                            *out = T::from_f32(taps.map(|tap| kernel[tap].to_f32()).sum());
                        }
                    }
                });
            })?;
            direct::<T>(&summed, products)
        };
        Ok(Phases(Box::new([phase(0, 0)?, phase(0, 1)?, phase(1, 0)?, phase(1, 1)?])))
    }

    /// `[b, h, w, in] -> [b, 2h, 2w, out]`.
    pub(super) fn forward<T: Product>(
        &self,
        x: &Tensor,
        bias: Option<&[f32]>,
        activation: Activation,
    ) -> Result<Tensor> {
        let [b, h, w, c] = x.dims4()?;
        let n = self.0[0].columns;
        let bias = bias.map(|bias| [bias, bias].concat());
        let mut done = Ok(());
        let result = Tensor::build::<T>(x.device(), &[b, 2 * h, 2 * w, n], |output| {
            // A pixel's two results of a line are one row of the output.
            let epilogue = Epilogue::<T> {
                past_caches: past_caches(output),
                bias: bias.as_deref(),
                channel_add: None,
                activation,
                residual: None,
                out: SharedMut::new(output),
                width: 2 * n,
                place: Place::plain(2 * n),
            };
            done = self.0.iter().enumerate().try_for_each(|(phase, columns)| {
                let (down, across) = (phase / 2, phase % 2);
                let windows = Windows {
                    data: x.data::<T>(),
                    stored: [h, w, c],
                    seen: [h, w],
                    kernel: [2, 2],
                    out: [h, w],
                    options: ConvOptions { stride: 1, padding: [1 - down, down, 1 - across, across] },
                    at_once: at_once::<T>(c, columns.parts() > 1),
                    gains: None,
                };
                product::<T>(b * h * w, &windows, columns, 1, |tile| {
                    for mut part in lines(tile, w) {
                        let (line, x) = (part.row / w, part.row % w);
                        part.row = (2 * line + down) * w + x;
                        part.column += across * n;
                        epilogue.finish(part);
                    }
                })
            });
        });
        done.and(result)
    }
}

/// The parts of a tile that lie in one line of `w` each.
fn lines(tile: Tile, w: usize) -> impl Iterator<Item = Tile> {
    let Tile { mut row, mut rows, column, columns, stride, twin, values } = tile;
    let mut rest = Some(values);
    std::iter::from_fn(move || {
        let values = rest.take().filter(|_| rows > 0)?;
        let count = rows.min(w - row % w);
        let (values, after) =
            if count < rows { values.split_at_mut(count * stride) } else { (values, [].as_mut_slice()) };
        let part = Tile { row, rows: count, column, columns, stride, twin, values };
        (row, rows, rest) = (row + count, rows - count, Some(after));
        Some(part)
    })
}
