//! Linear layers on the CPU.

use super::SharedMut;
use super::epilogue::{Epilogue, past_caches};
use super::gemm::{MatrixRows, PackedColumns, Product, Rows, product};
use super::micro::NR;
use crate::meter::watch;
use crate::ops::{Activation, Products};
use crate::tensor::Element;
use crate::{Result, Tensor};

/// Packs a weight `[out, in]`.
pub(crate) fn pack<T: Product>(weight: &Tensor, products: Products) -> Result<PackedColumns> {
    let (n, k) = (weight.dim(0), weight.dim(1));
    let data = weight.data::<T>();
    PackedColumns::of::<T>(n, k, products, |column, out| out.copy_from_slice(&data[column * k..][..k]))
}

/// `activation(x W^T + bias) + residual` over the last dimension.
pub(crate) fn forward<T: Product>(
    x: &Tensor,
    weight: &PackedColumns,
    bias: Option<&[f32]>,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    let _watch = watch(|| format!("linear {:?} -> {}", x.shape(), weight.columns));
    let rows = x.len() / weight.depth;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = weight.columns;
    }
    let mut done = Ok(());
    let result = Tensor::build::<T>(x.device(), &shape, |out| {
        let epilogue = Epilogue {
            past_caches: past_caches(out),
            bias,
            channel_add: None,
            activation,
            residual: residual.map(Tensor::data::<T>),
            out: SharedMut::new(out),
            width: weight.columns,
        };
        done = product::<T>(rows, &MatrixRows { data: x.data(), depth: weight.depth }, weight, 1, |tile| {
            epilogue.finish(tile)
        });
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
        };
        let left = JoinedRows(parts.map(|x| MatrixRows { data: x.data::<T>(), depth: x.last_dim() }));
        done = product::<T>(rows, &left, weight, 1, |tile| epilogue.finish(tile));
    });
    done.and(result)
}

/// `(x W1^T + b1) * gelu(x W2^T + b2)` where the weight holds W1 above W2.
pub(crate) fn forward_geglu<T: Product>(x: &Tensor, weight: &PackedColumns, bias: Option<&[f32]>) -> Result<Tensor> {
    let rows = x.len() / weight.depth;
    let width = weight.columns / 2;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = width;
    }
    if !width.is_multiple_of(NR) {
        let both = forward::<T>(x, weight, bias, Activation::None, None)?;
        return super::elementwise::geglu::<T>(&both, &shape);
    }
    let _watch = watch(|| format!("geglu {:?} -> {width}", x.shape()));
    let mut done = Ok(());
    let result = Tensor::build::<T>(x.device(), &shape, |out| {
        let epilogue = Epilogue {
            past_caches: past_caches(out),
            bias,
            channel_add: None,
            activation: Activation::None,
            residual: None,
            out: SharedMut::new(out),
            width,
        };
        done = product::<T>(rows, &MatrixRows { data: x.data(), depth: weight.depth }, weight, 2, |tile| {
            epilogue.finish_geglu(tile)
        });
    });
    done.and(result)
}
