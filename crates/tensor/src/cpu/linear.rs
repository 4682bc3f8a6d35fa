//! Linear layers on the CPU.

use super::SharedMut;
use super::columns::PackedColumns;
use super::epilogue::{Epilogue, past_caches};
use super::gemm::{Product, Tile, product, product_of_packed};
use super::micro::NR;
use super::rows::{MatrixRows, PackedRows, Place, Rows};
use super::split::NUMBERS;
use crate::meter::watch;
use crate::ops::{Activation, Products};
use crate::tensor::Element;
use crate::{DType, Device, Result, Tensor};
use half::bf16;

/// Packs a weight `[out, in]`.
pub(crate) fn pack<T: Product>(weight: &Tensor, products: Products) -> Result<PackedColumns> {
    let (n, k) = (weight.dim(0), weight.dim(1));
    let data = weight.data::<T>();
    PackedColumns::of::<T>(n, k, products, |column, out| out.copy_from_slice(&data[column * k..][..k]))
}

/// What a layer reads.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    Plain(&'a Tensor),
    /// Rows of bf16 in the order of tiles, and their shape.
    Packed(&'a PackedRows, &'a [usize]),
}

impl Input<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Input::Plain(x) => x.shape(),
            Input::Packed(_, shape) => shape,
        }
    }

    /// The shape with another last dimension, and how many rows that is.
    fn shape_of(&self, width: usize) -> (Vec<usize>, usize) {
        let mut shape = self.shape().to_vec();
        let rows = shape.iter().rev().skip(1).product();
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        (shape, rows)
    }

    fn product<T: Product>(self, weight: &PackedColumns, halves: usize, finish: impl Fn(Tile) + Sync) -> Result<()> {
        match self {
            Input::Plain(x) => {
                let left = MatrixRows { data: x.data::<T>(), depth: weight.depth };
                product::<T>(x.len() / weight.depth, &left, weight, halves, finish)
            }
            Input::Packed(rows, _) => {
                product_of_packed::<T>(rows, weight, halves, finish);
                Ok(())
            }
        }
    }
}

/// Whether a layer best reads rows that are [packed](PackedRows): products in tiles do.
pub(crate) fn reads_packed(dtype: DType, weight: &PackedColumns) -> bool {
    dtype == DType::BF16 && bf16::tiled() && weight.parts() == 1 && weight.depth.is_multiple_of(NUMBERS)
}

/// `activation(x W^T + bias) + residual` over the last dimension.
pub(crate) fn forward<T: Product>(
    x: Input,
    weight: &PackedColumns,
    bias: Option<&[f32]>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _watch = watch(|| format!("linear {:?} -> {}", x.shape(), weight.columns));
    let (shape, _) = x.shape_of(weight.columns);
    let mut done = Ok(());
    let result = Tensor::build::<T>(&Device::Cpu, &shape, |out| {
        let epilogue = Epilogue {
            past_caches: past_caches(out),
            bias,
            channel_add: None,
            activation,
            residual: residual.map(Tensor::data::<T>),
            out: SharedMut::new(out),
            width: weight.columns,
            place: Place::plain(weight.columns),
        };
        done = x.product::<T>(weight, 1, |tile| epilogue.finish(tile));
    });
    done.and(result)
}

/// Rows of two matrices side by side.
struct JoinedRows<'a, T>([MatrixRows<'a, T>; 2]);

impl<T: Element> Rows<T> for JoinedRows<'_, T> {
    #[inline]
    fn copy(&self, row: usize, from: usize, out: &mut [T]) {
        let [a, b] = &self.0;
        let (left, right) = out.split_at_mut(a.depth.saturating_sub(from).min(out.len()));
        if !left.is_empty() {
            a.copy(row, from, left);
        }
        if !right.is_empty() {
            b.copy(row, from.saturating_sub(a.depth), right);
        }
    }

    #[inline]
    fn in_place(&self, row: usize, from: usize, len: usize) -> Option<&[T]> {
        let [a, b] = &self.0;
        match from.checked_sub(a.depth) {
            Some(from) => b.in_place(row, from, len),
            None if from + len <= a.depth => a.in_place(row, from, len),
            None => None,
        }
    }
}

/// `x W^T + bias` for `x` in two parts side by side.
pub(crate) fn forward_joined<T: Product>(
    parts: [&Tensor; 2],
    weight: &PackedColumns,
    bias: Option<&[f32]>,
) -> Result<Tensor> {
    let [a, b] = parts;
    let _watch = watch(|| format!("linear {:?} and {} -> {}", a.shape(), b.last_dim(), weight.columns));
    let rows = a.len() / a.last_dim();
    let mut shape = a.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.columns;
    }
    let mut done = Ok(());
    let result = Tensor::build::<T>(a.device(), &shape, |out| {
        let epilogue = Epilogue {
            past_caches: past_caches(out),
            bias,
            channel_add: None,
            activation: Activation::None,
            residual: None,
            out: SharedMut::new(out),
            width: weight.columns,
            place: Place::plain(weight.columns),
        };
        let left = JoinedRows(parts.map(|x| MatrixRows { data: x.data::<T>(), depth: x.last_dim() }));
        done = product::<T>(rows, &left, weight, 1, |tile| epilogue.finish(tile));
    });
    done.and(result)
}

/// `(x W1^T + b1) * gelu(x W2^T + b2)` where the weight holds W1 above W2.
pub(crate) fn forward_geglu<T: Product>(x: Input, weight: &PackedColumns, bias: Option<&[f32]>) -> Result<Tensor> {
    let width = weight.columns / 2;
    let (shape, _) = x.shape_of(width);
    if !width.is_multiple_of(NR) {
        let both = forward::<T>(x, weight, bias, Activation::None, None)?;
        return super::elementwise::geglu::<T>(&both, &shape);
    }
    let mut done = Ok(());
    let result = Tensor::build::<T>(&Device::Cpu, &shape, |out| {
        let past_caches = past_caches(out);
        done = gate(x, weight, bias, SharedMut::new(out), Place::plain(width), past_caches);
    });
    done.and(result)
}

/// As [`forward_geglu`], packed for the product that reads it; the weight's halves are whole panels.
pub(crate) fn forward_geglu_packed(x: Input, weight: &PackedColumns, bias: Option<&[f32]>) -> Result<PackedRows> {
    let width = weight.columns / 2;
    let (_, rows) = x.shape_of(width);
    let mut done = Ok(());
    let result = PackedRows::build(rows, width, |out, place| done = gate(x, weight, bias, out, place, false));
    done.and(result)
}

fn gate<T: Product>(
    x: Input,
    weight: &PackedColumns,
    bias: Option<&[f32]>,
    out: SharedMut<T>,
    place: Place,
    past_caches: bool,
) -> Result<()> {
    let width = weight.columns / 2;
    let _watch = watch(|| format!("geglu {:?} -> {width}", x.shape()));
    let (channel_add, activation, residual) = (None, Activation::None, None);
    let epilogue = Epilogue { past_caches, bias, channel_add, activation, residual, out, width, place };
    x.product::<T>(weight, 2, |tile| epilogue.finish_geglu(tile))
}
