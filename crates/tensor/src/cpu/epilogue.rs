//! What happens to a finished tile on its way to memory: bias, a number for each picture and channel,
//! activation, residual, conversion.

use super::gemm::Tile;
use super::isa::simd;
use super::math::activate_all;
use super::{SharedMut, math};
use crate::ops::Activation;
use crate::tensor::Element;

/// The epilogue of a product with `width` columns of output.
pub(crate) struct Epilogue<'a, T> {
    pub(crate) bias: Option<&'a [f32]>,
    /// `[pictures, width]` and the rows of a picture.
    pub(crate) channel_add: Option<(&'a [T], usize)>,
    pub(crate) activation: Activation,
    pub(crate) residual: Option<&'a [T]>,
    pub(crate) out: SharedMut<T>,
    pub(crate) width: usize,
}

impl<T: Element> Epilogue<'_, T> {
    /// Finishes a tile of a plain product.
    pub(crate) fn finish(&self, tile: Tile) {
        let columns = tile.column..tile.column + tile.columns;
        for r in 0..tile.rows {
            let row = tile.row + r;
            let at = row * self.width + tile.column;
            // SAFETY: tiles cover disjoint parts of the output.
            let out = unsafe { self.out.range(at, tile.columns) };
            finish_row(
                &mut tile.values[r * tile.stride..][..tile.columns],
                self.bias.map(|b| &b[columns.clone()]),
                self.channel_add.map(|(add, rows)| &add[row / rows * self.width + tile.column..][..tile.columns]),
                self.activation,
                self.residual.map(|x| &x[at..][..tile.columns]),
                out,
            );
        }
    }

    /// Finishes a tile of a product by halves: first half times GELU of the second.
    pub(crate) fn finish_geglu(&self, tile: Tile) {
        for r in 0..tile.rows {
            // SAFETY: tiles cover disjoint parts of the output.
            let out = unsafe { self.out.range((tile.row + r) * self.width + tile.column, tile.columns) };
            let (value, gate) = tile.values[r * tile.stride..][..tile.stride].split_at_mut(tile.twin);
            let bias =
                self.bias.map(|b| (&b[tile.column..][..tile.columns], &b[self.width + tile.column..][..tile.columns]));
            geglu_row(&mut value[..tile.columns], &mut gate[..tile.columns], bias, out);
        }
    }
}

simd! {
    fn finish_row<T: Element>(values: &mut [f32], bias: Option<&[f32]>, add: Option<&[T]>, activation: Activation, residual: Option<&[T]>, out: &mut [T]) {
        if let Some(bias) = bias {
            values.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
        }
        if let Some(add) = add {
            values.iter_mut().zip(add).for_each(|(x, a)| *x += a.to_f32());
        }
        activate_all(values, activation);
        match residual {
            Some(residual) => out.iter_mut().zip(values.iter()).zip(residual).for_each(|((o, x), r)| *o = T::from_f32(x + r.to_f32())),
            None => out.iter_mut().zip(values.iter()).for_each(|(o, x)| *o = T::from_f32(*x)),
        }
    }
}

simd! {
    fn geglu_row<T: Element>(value: &mut [f32], gate: &mut [f32], bias: Option<(&[f32], &[f32])>, out: &mut [T]) {
        if let Some((first, second)) = bias {
            value.iter_mut().zip(first).for_each(|(x, b)| *x += b);
            gate.iter_mut().zip(second).for_each(|(x, b)| *x += b);
        }
        out.iter_mut().zip(value.iter().zip(gate.iter())).for_each(|(o, (x, g))| *o = T::from_f32(x * math::activate(*g, Activation::Gelu)));
    }
}
