//! Normalisation.

use super::Activation;
use super::linear::{same_device, same_kind};
use super::shape::slice_last;
use crate::tensor::by_dtype;
use crate::{DType, Device, Error, Result, Tensor, cpu, cuda};

/// Checks that `t` holds `c` numbers and lies where `x` does, and brings it to f32.
pub(super) fn channels(op: &'static str, what: &'static str, t: &Tensor, x: &Tensor, c: usize) -> Result<Tensor> {
    if t.shape() != [c] {
        return Err(Error::shape(op, what, t.shape(), format!("[{c}]")));
    }
    same_device(op, what, t, *x.device())?;
    t.cast(DType::F32)
}

/// A group normalisation with an activation behind it that is still to be done, by the convolution that reads it where that
/// can: of `x` `[b, h, w, c]`, or of `x + add` as [`group_norm_added`] has it.
#[derive(Clone, Copy)]
pub struct Normed<'a> {
    /// What is normalised.
    pub x: &'a Tensor,
    /// Channels for all of a picture's positions: of `[b, n]` those from a first one on.
    pub add: Option<(&'a Tensor, usize)>,
    /// How many groups the channels are of.
    pub groups: usize,
    /// `[c]`.
    pub weight: &'a Tensor,
    /// `[c]`.
    pub bias: &'a Tensor,
    /// What is added to a variance.
    pub eps: f32,
    /// What is done to the result.
    pub activation: Activation,
}

impl Normed<'_> {
    /// Does it.
    ///
    /// # Errors
    /// As [`group_norm_added`].
    pub fn done(&self) -> Result<Tensor> {
        let Normed { x, add, groups, weight, bias, eps, activation } = *self;
        match add {
            Some((add, first)) => group_norm_added(x, add, first, groups, weight, bias, eps, activation),
            None => group_norm(x, groups, weight, bias, eps, activation),
        }
    }

    /// Weight, bias and what is added, checked and in f32.
    pub(super) fn checked(&self) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let Normed { x, add, groups, weight, bias, .. } = *self;
        let (weight, bias) = checked(x, x.last_dim(), groups, weight, bias)?;
        Ok((weight, bias, add.map(|(add, first)| checked_sum(x, add, first)).transpose()?))
    }
}

/// What is added to `x` before a norm, in f32.
fn checked_sum(x: &Tensor, add: &Tensor, first: usize) -> Result<Tensor> {
    let pictures = x.shape().first().copied().unwrap_or(0);
    let enough = |&[rows, columns]: &[usize; 2]| {
        rows == pictures && first.checked_add(x.last_dim()).is_some_and(|end| end <= columns)
    };
    if !<&[usize; 2]>::try_from(add.shape()).is_ok_and(enough) {
        let expected = format!("[{pictures}, {first} and at least {} more]", x.last_dim());
        return Err(Error::shape("group_norm", "the channel sum", add.shape(), expected));
    }
    same_device("group_norm", "the channel sum", add, *x.device())?;
    add.cast(DType::F32)
}

/// Weight and bias of a norm of `c` channels, in f32.
fn checked(x: &Tensor, c: usize, groups: usize, weight: &Tensor, bias: &Tensor) -> Result<(Tensor, Tensor)> {
    if x.shape().len() < 2 || x.is_empty() {
        return Err(Error::shape("group_norm", "the input", x.shape(), "[b, .., c]"));
    }
    if groups == 0 || !usize::is_multiple_of(c, groups) {
        return Err(Error::argument("group_norm", format!("{groups} groups do not divide {c} channels")));
    }
    Ok((channels("group_norm", "the weight", weight, x, c)?, channels("group_norm", "the bias", bias, x, c)?))
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
    group_norm_of(&[x], None, groups, weight, bias, eps, activation)
}

/// As [`group_norm`] of `x + add`, where the channels from `first` on of `add` `[b, n]` are for all of a picture's positions. A
/// GPU does not write the sum down; on the CPU the convolution before is the better place for it.
///
/// # Errors
/// As [`group_norm`].
pub fn group_norm_added(
    x: &Tensor,
    add: &Tensor,
    first: usize,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    activation: Activation,
) -> Result<Tensor> {
    let (add, pictures) = (checked_sum(x, add, first)?, x.dim(0));
    if *x.device() != Device::Cpu {
        return group_norm_of(&[x], Some((&add, first)), groups, weight, bias, eps, activation);
    }
    let (mut sum, c) = (x.to_vec_f32()?, x.last_dim().max(1));
    let add = slice_last(&add, first, x.last_dim())?.to_vec_f32()?;
    let picture = (sum.len() / pictures.max(1)).max(1);
    for (i, number) in sum.iter_mut().enumerate() {
        *number += add[i / picture * c + i % c];
    }
    let sum = Tensor::from_f32(x.device(), DType::F32, x.shape(), &sum)?;
    group_norm(&sum, groups, weight, bias, eps, activation)?.cast(x.dtype())
}

/// As [`group_norm`] over two inputs joined along their channels, which are not copied together before:
/// `[b, .., c1]` and `[b, .., c2] -> [b, .., c1 + c2]`.
///
/// # Errors
/// As [`group_norm`].
pub fn group_norm_joined(
    [x, y]: [&Tensor; 2],
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    activation: Activation,
) -> Result<Tensor> {
    if x.shape().split_last().map(|s| s.1) != y.shape().split_last().map(|s| s.1) || y.is_empty() {
        let expected = format!("{:?} but for the channels", x.shape());
        return Err(Error::shape("group_norm", "the second input", y.shape(), expected));
    }
    same_kind("group_norm", "the second input", y, x.dtype(), *x.device())?;
    group_norm_of(&[x, y], None, groups, weight, bias, eps, activation)
}

fn group_norm_of(
    parts: &[&Tensor],
    add: Option<(&Tensor, usize)>,
    groups: usize,
    weight: &Tensor,
    bias: &Tensor,
    eps: f32,
    activation: Activation,
) -> Result<Tensor> {
    let x = parts[0];
    let c = parts.iter().map(|x| x.last_dim()).sum();
    let (w, b) = checked(x, c, groups, weight, bias)?;
    match x.device() {
        Device::Cpu => {
            by_dtype!("group_norm", "the input", x.dtype(), T => cpu::norm::group_norm::<T>(parts, groups, w.data(), b.data(), eps, activation))
        }
        Device::Cuda(_) => cuda::norm::group_norm(parts, add, groups, &w, &b, eps, activation),
    }
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
    let w = channels("layer_norm", "the weight", weight, x, c)?;
    let b = bias.map(|b| channels("layer_norm", "the bias", b, x, c)).transpose()?;
    match x.device() {
        Device::Cpu => {
            by_dtype!("layer_norm", "the input", x.dtype(), T => cpu::norm::layer_norm::<T>(x, w.data(), b.as_ref().map(Tensor::data), eps))
        }
        Device::Cuda(_) => cuda::norm::layer_norm(x, &w, b.as_ref(), eps),
    }
}
