//! Normalisation.

use super::Activation;
use crate::tensor::by_dtype;
use crate::{Error, Result, Tensor, cpu};

fn channels(op: &'static str, what: &'static str, t: &Tensor, c: usize) -> Result<Vec<f32>> {
    if t.shape() != [c] {
        return Err(Error::shape(op, what, t.shape(), format!("[{c}]")));
    }
    t.to_vec_f32()
}

/// Group normalisation (Wu and He 2018) over `[b, h, w, c]` or `[b, n, c]`, then an activation.
///
/// # Errors
/// Shapes that do not fit, or `groups` that do not divide the channels.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    activation: Activation,
) -> Result<Tensor> {
    let c = x.last_dim();
    if x.shape().len() < 2 || x.is_empty() {
        return Err(Error::shape("group_norm", "the input", x.shape(), "[b, .., c]"));
    }
    if groups == 0 || !c.is_multiple_of(groups) {
        return Err(Error::argument("group_norm", format!("{groups} groups do not divide {c} channels")));
    }
    let (w, b) = (channels("group_norm", "the weight", weight, c)?, channels("group_norm", "the bias", bias, c)?);
    by_dtype!("group_norm", "the input", x.dtype(), T => cpu::norm::group_norm::<T>(x, groups, &w, &b, eps, activation))
}

/// Layer normalisation (Ba et al. 2016) over the last dimension.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let c = x.last_dim();
    if x.is_empty() {
        return Err(Error::shape("layer_norm", "the input", x.shape(), "[.., c]"));
    }
    let w = channels("layer_norm", "the weight", weight, c)?;
    let b = bias.map(|b| channels("layer_norm", "the bias", b, c)).transpose()?;
    by_dtype!("layer_norm", "the input", x.dtype(), T => cpu::norm::layer_norm::<T>(x, &w, b.as_deref(), eps))
}
