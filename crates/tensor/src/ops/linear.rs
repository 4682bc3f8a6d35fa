//! Linear layers with their epilogues.

use super::{Activation, Products};
use crate::cpu::columns::PackedColumns;
use crate::cpu::linear::Input;
use crate::parking::waits;
use crate::tensor::by_dtype;
use crate::{DType, Device, Error, Result, Tensor, Turn, cpu, cuda};

/// A linear layer whose weight was packed for the device's product. The tensor it came from may be dropped.
pub struct Linear {
    pub(super) packed: Packed<PackedColumns>,
    /// The weight in 8 bits, in place of the packed one; see [`Linear::narrow`].
    pub(super) eights: Option<cuda::narrow::Rows>,
    /// Whether it took over the norm before it; see [`Linear::behind_norm`].
    pub(super) folded: bool,
    /// Whether what it gates has a size for 8 bits; see [`Linear::narrow_gated`].
    pub(super) sized: bool,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) device: Device,
    pub(super) dtype: DType,
    products: Products,
}

/// A layer's weight and bias as the device's product takes them.
pub(super) enum Packed<C> {
    Cpu(C, Option<Vec<f32>>),
    Cuda(Box<cuda::linear::Layer>),
}

/// Checks a bias of `n` numbers.
pub(super) fn check_bias(op: &'static str, bias: Option<&Tensor>, n: usize, device: Device) -> Result<()> {
    match bias {
        Some(b) if b.shape() != [n] => Err(Error::shape(op, "the bias", b.shape(), format!("[{n}]"))),
        Some(b) => same_device(op, "the bias", b, device),
        None => Ok(()),
    }
}

/// Checks that `x` lies where the other operands do.
pub(super) fn same_device(op: &'static str, what: &'static str, x: &Tensor, device: Device) -> Result<()> {
    match *x.device() == device {
        true => Ok(()),
        false => {
            Err(Error::argument(op, format!("{what} lies on {}, the other operands on {device}; move one", x.device())))
        }
    }
}

/// Checks that `x` has the element type of the other operands and lies where they do.
pub(super) fn same_kind(op: &'static str, what: &'static str, x: &Tensor, dtype: DType, device: Device) -> Result<()> {
    same_device(op, what, x, device)?;
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
        Linear::with(weight, bias, Products::Whole)
    }

    /// As [`Linear::new`], with products of f32 done so.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn with(weight: &Tensor, bias: Option<&Tensor>, products: Products) -> Result<Linear> {
        let &[n, k] = weight.shape() else {
            return Err(Error::shape("linear", "the weight", weight.shape(), "[out, in]"));
        };
        if n == 0 || k == 0 {
            return Err(Error::shape("linear", "the weight", weight.shape(), "at least one input and one output"));
        }
        let device = *weight.device();
        check_bias("linear", bias, n, device)?;
        let packed = match device {
            Device::Cpu => {
                let packed =
                    by_dtype!("linear", "the weight", weight.dtype(), T => cpu::linear::pack::<T>(weight, products))?;
                Packed::Cpu(packed, bias.map(Tensor::to_vec_f32).transpose()?)
            }
            Device::Cuda(_) => Packed::Cuda(Box::new(cuda::linear::Layer::new(weight, bias)?)),
        };
        Ok(Linear {
            packed,
            eights: None,
            folded: false,
            sized: false,
            inputs: k,
            outputs: n,
            device,
            dtype: weight.dtype(),
            products,
        })
    }

    /// As [`Linear::with`] of a layer behind a layer norm, whose weight and bias `[in]` it takes over where that saves the
    /// norm a pass of its own; whether it does. What it reads then is normalised without weight and bias; see
    /// [`super::layer_norm_for`].
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn behind_norm(
        weight: &Tensor,
        bias: Option<&Tensor>,
        products: Products,
        norm: [&Tensor; 2],
    ) -> Result<(Linear, bool)> {
        let mut layer = Linear::with(weight, bias, products)?;
        let takes = *weight.device() != Device::Cpu && cuda::tiles::folds(weight)?;
        if takes {
            let [gamma, beta] = norm;
            if [gamma, beta].iter().any(|norm| norm.len() != layer.inputs) {
                return Err(Error::shape("linear", "the norm", gamma.shape(), format!("[{}]", layer.inputs)));
            }
            layer.packed = Packed::Cuda(Box::new(cuda::tiles::fold(weight, bias, gamma, beta)?));
            layer.folded = true;
        }
        Ok((layer, takes))
    }

    /// Lets the weight wait on the host where [`crate::Parking`] says so.
    ///
    /// # Errors
    /// What the device says; no memory on the host.
    pub fn park(&mut self, turn: Turn) -> Result<()> {
        match &mut self.packed {
            Packed::Cuda(layer) if waits(turn, self.inputs * self.outputs * self.dtype.bytes()) => layer.park(),
            _ => Ok(()),
        }
    }

    /// Width of the input.
    pub fn in_features(&self) -> usize {
        self.inputs
    }

    /// Width of the output.
    pub fn out_features(&self) -> usize {
        self.outputs
    }

    /// The element type in which the layer computes.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How it was told to do products of f32.
    pub fn products(&self) -> Products {
        self.products
    }

    pub(super) fn check(&self, x: &Tensor) -> Result<()> {
        if x.last_dim() != self.in_features() || x.shape().is_empty() {
            return Err(Error::shape("linear", "the input", x.shape(), format!("[.., {}]", self.in_features())));
        }
        same_kind("linear", "the input", x, self.dtype, self.device)
    }

    /// Checks what is added to `rows` rows of output.
    pub(super) fn check_residual(&self, rows: usize, residual: Option<&Tensor>) -> Result<()> {
        let Some(r) = residual else { return Ok(()) };
        if r.len() != rows * self.out_features() || r.last_dim() != self.out_features() {
            return Err(Error::shape("linear", "the residual", r.shape(), "the output's shape"));
        }
        same_kind("linear", "the residual", r, self.dtype, self.device)
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
        self.check_residual(x.len() / self.in_features(), residual)?;
        match &self.packed {
            Packed::Cpu(packed, bias) => {
                by_dtype!("linear", "the input", self.dtype, T => cpu::linear::forward::<T>(Input::Plain(x), packed, bias.as_deref(), activation, residual))
            }
            Packed::Cuda(_) if self.eights.is_some() => self.forward_narrowing(x, activation, residual),
            Packed::Cuda(layer) => cuda::linear::forward(x, &*layer.at_hand()?, activation, residual),
        }
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
        same_kind("linear", "the input", a, self.dtype, self.device)?;
        same_kind("linear", "the second input", b, self.dtype, self.device)?;
        match &self.packed {
            Packed::Cpu(packed, bias) => {
                by_dtype!("linear", "the input", self.dtype, T => cpu::linear::forward_joined::<T>([a, b], packed, bias.as_deref()))
            }
            Packed::Cuda(_) if self.eights.is_some() => {
                self.forward_narrowing(&super::concat_last(&[a, b])?, Activation::None, None)
            }
            // One more copy at the speed of memory, where two products would read and write the result twice.
            Packed::Cuda(layer) => {
                cuda::linear::forward(&super::concat_last(&[a, b])?, &*layer.at_hand()?, Activation::None, None)
            }
        }
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
        match &self.packed {
            Packed::Cpu(packed, bias) => {
                by_dtype!("geglu", "the input", self.dtype, T => cpu::linear::forward_geglu::<T>(Input::Plain(x), packed, bias.as_deref()))
            }
            Packed::Cuda(_) if self.eights.is_some() => {
                cuda::elementwise::geglu(&self.forward_narrowing(x, Activation::None, None)?)
            }
            Packed::Cuda(layer) => cuda::linear::forward_geglu(x, &*layer.at_hand()?),
        }
    }
}
