//! Element by element.

use super::Activation;
use super::linear::same_kind;
use crate::tensor::by_dtype;
use crate::{DType, Device, Error, Result, Tensor, cpu, cuda};

fn same_shape(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() != b.shape() {
        return Err(Error::shape(op, "the second operand", b.shape(), format!("{:?}", a.shape())));
    }
    same_kind(op, "the second operand", b, a.dtype(), *a.device())
}

/// `activation(x)`.
///
/// # Errors
/// An element type that the device cannot compute with.
pub fn activation(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match x.device() {
        Device::Cpu => {
            by_dtype!("activation", "the input", x.dtype(), T => cpu::elementwise::activation::<T>(x, activation))
        }
        Device::Cuda(_) => cuda::elementwise::activation(x, activation),
    }
}

/// `a + b`.
///
/// # Errors
/// Shapes or element types that differ.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    add_scaled(a, b, 1.0)
}

/// `a + s * b`.
///
/// # Errors
/// Shapes or element types that differ.
pub fn add_scaled(a: &Tensor, b: &Tensor, s: f32) -> Result<Tensor> {
    same_shape("add", a, b)?;
    match a.device() {
        Device::Cpu => by_dtype!("add", "the operands", a.dtype(), T => cpu::elementwise::add_scaled::<T>(a, b, s)),
        Device::Cuda(_) => cuda::elementwise::add_scaled(a, b, s),
    }
}

/// `s * a`.
///
/// # Errors
/// An element type that the device cannot compute with.
pub fn scale(a: &Tensor, s: f32) -> Result<Tensor> {
    match a.device() {
        Device::Cpu => by_dtype!("scale", "the input", a.dtype(), T => cpu::elementwise::scale::<T>(a, s)),
        Device::Cuda(_) => cuda::elementwise::scale(a, s),
    }
}

/// The sum of `s * x` over all terms, in f32: guidance and every sampler update is one of these.
///
/// # Errors
/// No terms, or terms that are not f32 tensors of one shape.
pub fn combine(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let Some((_, first)) = terms.first() else {
        return Err(Error::argument("combine", "there are no terms; at least one is needed"));
    };
    for (_, x) in terms {
        same_kind("combine", "a term", x, DType::F32, *first.device())?;
        same_shape("combine", first, x)?;
    }
    match first.device() {
        Device::Cpu => cpu::elementwise::combine(terms),
        Device::Cuda(_) => cuda::elementwise::combine(terms),
    }
}
