//! Linear layers with their epilogues.

use super::Activation;
use crate::cpu::gemm::PackedColumns;
use crate::tensor::by_dtype;
use crate::{DType, Error, Result, Tensor, cpu};

/// A linear layer whose weight was packed for the device's product. The tensor it came from may be dropped.
pub struct Linear {
    packed: PackedColumns,
    bias: Option<Vec<f32>>,
    dtype: DType,
}

/// Checks a bias of `n` numbers and brings it to f32, in which epilogues add it.
pub(super) fn bias_of(op: &'static str, bias: Option<&Tensor>, n: usize) -> Result<Option<Vec<f32>>> {
    match bias {
        Some(b) if b.shape() != [n] => Err(Error::shape(op, "the bias", b.shape(), format!("[{n}]"))),
        Some(b) => b.to_vec_f32().map(Some),
        None => Ok(None),
    }
}

/// Checks that `x` has the element type of the weights.
pub(super) fn same_dtype(op: &'static str, what: &'static str, x: &Tensor, dtype: DType) -> Result<()> {
    if x.dtype() == dtype {
        return Ok(());
    }
    let expected = match dtype {
        DType::F32 => "f32, as the other operands are",
        DType::BF16 => "bf16, as the other operands are",
        DType::F16 => "f16, as the other operands are",
    };
    Err(Error::DType { op, what, got: x.dtype(), expected })
}

impl Linear {
    /// Packs a weight `[out, in]` and a bias `[out]`, as checkpoints hold them. The layer computes in the weight's type.
    ///
    /// # Errors
    /// Shapes that do not fit, or an element type that the device cannot compute with.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Linear> {
        let &[n, k] = weight.shape() else {
            return Err(Error::shape("linear", "the weight", weight.shape(), "[out, in]"));
        };
        if n == 0 || k == 0 {
            return Err(Error::shape("linear", "the weight", weight.shape(), "at least one input and one output"));
        }
        let bias = bias_of("linear", bias, n)?;
        let packed = by_dtype!("linear", "the weight", weight.dtype(), T => cpu::linear::pack::<T>(weight))?;
        Ok(Linear { packed, bias, dtype: weight.dtype() })
    }

    /// Width of the input.
    pub fn in_features(&self) -> usize {
        self.packed.depth
    }

    /// Width of the output.
    pub fn out_features(&self) -> usize {
        self.packed.columns
    }

    /// The element type in which the layer computes.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        if x.last_dim() != self.in_features() || x.shape().is_empty() {
            return Err(Error::shape("linear", "the input", x.shape(), format!("[.., {}]", self.in_features())));
        }
        same_dtype("linear", "the input", x, self.dtype)
    }

    /// `x W^T + b`: `[.., in] -> [.., out]`.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Activation::None, None)
    }

    /// `activation(x W^T + b) + residual`: `[.., in] -> [.., out]`.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward_with(&self, x: &Tensor, activation: Activation, residual: Option<&Tensor>) -> Result<Tensor> {
        self.check(x)?;
        if let Some(r) = residual {
            if r.len() != x.len() / self.in_features() * self.out_features() || r.last_dim() != self.out_features() {
                return Err(Error::shape("linear", "the residual", r.shape(), "the output's shape"));
            }
            same_dtype("linear", "the residual", r, self.dtype)?;
        }
        by_dtype!("linear", "the input", self.dtype, T => cpu::linear::forward::<T>(x, &self.packed, self.bias.as_deref(), activation, residual))
    }

    /// As [`Linear::forward`] on two inputs joined along the last dimension, which are not copied together:
    /// `[.., c1]` and `[.., c2]` with `c1 + c2 = in` `-> [.., out]`.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward_joined(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let (outer, other) = (a.shape().split_last(), b.shape().split_last());
        if outer.map(|x| x.1) != other.map(|x| x.1) || a.last_dim() + b.last_dim() != self.in_features() {
            let expected = format!("{:?} but for the channels, {} together", a.shape(), self.in_features());
            return Err(Error::shape("linear", "the second input", b.shape(), expected));
        }
        same_dtype("linear", "the input", a, self.dtype)?;
        same_dtype("linear", "the second input", b, self.dtype)?;
        by_dtype!("linear", "the input", self.dtype, T => cpu::linear::forward_joined::<T>([a, b], &self.packed, self.bias.as_deref()))
    }

    /// Gated GELU (Shazeer 2020): the first half of the outputs times GELU of the second, `[.., in] -> [.., out / 2]`.
    ///
    /// # Errors
    /// Shapes or element types that do not fit, or an odd number of outputs.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        if !self.out_features().is_multiple_of(2) {
            return Err(Error::shape(
                "geglu",
                "the weight",
                &[self.out_features(), self.in_features()],
                "an even number of outputs",
            ));
        }
        by_dtype!("geglu", "the input", self.dtype, T => cpu::linear::forward_geglu::<T>(x, &self.packed, self.bias.as_deref()))
    }
}
