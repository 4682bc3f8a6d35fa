//! Convolution over NHWC pictures with its epilogues.

use super::linear::{Packed, check_bias, same_kind};
use super::{Activation, Normed, Products};
use crate::cpu::norm::Gains;
use crate::cuda::winograd::Form;
use crate::parking::{keeps_plain, waits};
use crate::tensor::by_dtype;
use crate::{DType, Device, Error, Result, Tensor, Turn, cpu, cuda};

/// Stride and zero padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvOptions {
    /// Step of the window in both directions.
    pub stride: usize,
    /// Zeros at the top, bottom, left and right.
    pub padding: [usize; 4],
}

impl Default for ConvOptions {
    fn default() -> Self {
        ConvOptions { stride: 1, padding: [0; 4] }
    }
}

impl ConvOptions {
    /// A 3x3 window that keeps the size.
    pub fn same3() -> Self {
        ConvOptions { stride: 1, padding: [1; 4] }
    }

    /// The same padding on all sides.
    pub fn padded(stride: usize, padding: usize) -> Self {
        ConvOptions { stride, padding: [padding; 4] }
    }
}

/// What is fused behind a convolution: `activation(conv + bias + channel_add) + residual`.
#[derive(Clone, Copy, Default)]
pub struct Fused<'a> {
    /// `[b, out]`: a number for each picture and channel, such as a time embedding.
    pub channel_add: Option<&'a Tensor>,
    /// Applied before the residual.
    pub activation: Activation,
    /// `[b, oh, ow, out]`.
    pub residual: Option<&'a Tensor>,
}

/// A convolution whose weight was packed for the device's product. The tensor it came from may be dropped.
pub struct Conv2d {
    packed: Packed<cpu::conv::Weights>,
    device: Device,
    dtype: DType,
    in_channels: usize,
    out_channels: usize,
    kernel: [usize; 2],
    options: ConvOptions,
}

impl Conv2d {
    /// Packs a weight `[out, in, kh, kw]` and a bias `[out]`, as checkpoints hold them.
    ///
    /// # Errors
    /// Shapes that do not fit, or an element type that the device cannot compute with.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>, options: ConvOptions) -> Result<Conv2d> {
        Conv2d::with(weight, bias, options, Products::Whole)
    }

    /// As [`Conv2d::new`], with products of f32 done so.
    ///
    /// # Errors
    /// As [`Conv2d::new`].
    pub fn with(weight: &Tensor, bias: Option<&Tensor>, options: ConvOptions, products: Products) -> Result<Conv2d> {
        let &[n, c, kh, kw] = weight.shape() else {
            return Err(Error::shape("conv2d", "the weight", weight.shape(), "[out, in, kh, kw]"));
        };
        if weight.is_empty() || options.stride == 0 {
            return Err(Error::shape("conv2d", "the weight", weight.shape(), "sizes and a stride of at least one"));
        }
        let device = *weight.device();
        check_bias("conv2d", bias, n, device)?;
        let packed = match device {
            Device::Cpu => {
                let packed = by_dtype!("conv2d", "the weight", weight.dtype(), T => cpu::conv::pack::<T>(weight, options, products))?;
                Packed::Cpu(packed, bias.map(Tensor::to_vec_f32).transpose()?)
            }
            Device::Cuda(_) => Packed::Cuda(Box::new(cuda::conv::pack(weight, bias)?)),
        };
        let (kernel, dtype) = ([kh, kw], weight.dtype());
        Ok(Conv2d { packed, device, dtype, in_channels: c, out_channels: n, kernel, options })
    }

    /// Numbers that a weight `[outputs, inputs, kernel, kernel]` is held in: more than it has where they are transformed
    /// for an algorithm of fewer products.
    pub fn held(
        dtype: DType,
        products: Products,
        device: Device,
        [outputs, inputs, kernel]: [usize; 3],
        options: ConvOptions,
    ) -> usize {
        match device {
            Device::Cpu => cpu::conv::held(dtype, products, [outputs, inputs, kernel], options),
            Device::Cuda(index) => {
                let form = cuda::gpu(index)
                    .ok()
                    .and_then(|gpu| gpu.tiles_of(dtype, [outputs, inputs, kernel], options, false));
                outputs * inputs * form.map_or(kernel * kernel, Form::planes)
            }
        }
    }

    /// As [`Conv2d::held`] of a 3x3 weight `[outputs, inputs, 3, 3]` after [`Conv2d::transform_doubled`].
    pub fn held_doubled(dtype: DType, products: Products, device: Device, [outputs, inputs]: [usize; 2]) -> usize {
        let plain = 9 * outputs * inputs;
        let held = Conv2d::held(dtype, products, device, [outputs, inputs, 3], ConvOptions::same3());
        let summed = if device == Device::Cpu && held == plain { cpu::conv::SUMMED * outputs * inputs } else { 0 };
        held + summed
    }

    /// From now on computes by an algorithm of fewer products, where the device has one for this weight and
    /// [`crate::Parking`] does not forbid what it takes more.
    ///
    /// # Errors
    /// What the device says; no memory.
    pub fn transform(&mut self) -> Result<()> {
        self.tile(false)
    }

    /// As [`Conv2d::transform`], for [`Conv2d::forward_upsampled`] mostly; `weight` and `products` are those of
    /// [`Conv2d::with`].
    ///
    /// # Errors
    /// As [`Conv2d::transform`]; a weight of another shape or kind.
    pub fn transform_doubled(&mut self, weight: &Tensor, products: Products) -> Result<()> {
        let [kh, kw] = self.kernel;
        if weight.shape() != [self.out_channels, self.in_channels, kh, kw] {
            let expected = format!("[{}, {}, {kh}, {kw}]", self.out_channels, self.in_channels);
            return Err(Error::shape("conv2d", "the weight", weight.shape(), expected));
        }
        same_kind("conv2d", "the weight", weight, self.dtype, self.device)?;
        match &mut self.packed {
            Packed::Cpu(packed, _) if self.kernel == [3, 3] && self.options == ConvOptions::same3() => {
                by_dtype!("conv2d", "the weight", self.dtype, T => packed.double::<T>(weight, products))
            }
            _ => self.tile(true),
        }
    }

    fn tile(&mut self, doubled: bool) -> Result<()> {
        let (Packed::Cuda(layer), Device::Cuda(index)) = (&mut self.packed, self.device) else { return Ok(()) };
        let sizes = [self.out_channels, self.in_channels, self.kernel[0]];
        let square = self.kernel[0] == self.kernel[1];
        match cuda::gpu(index)?.tiles_of(self.dtype, sizes, self.options, doubled) {
            Some(form) if square && !keeps_plain() => layer.tile(form),
            _ => Ok(()),
        }
    }

    /// Lets the weight wait on the host where [`crate::Parking`] says so.
    ///
    /// # Errors
    /// What the device says; no memory on the host.
    pub fn park(&mut self, turn: Turn) -> Result<()> {
        let numbers = self.in_channels * self.out_channels * self.kernel[0] * self.kernel[1];
        match &mut self.packed {
            Packed::Cuda(layer) if waits(turn, numbers * self.dtype.bytes()) => layer.park(),
            _ => Ok(()),
        }
    }

    /// Channels of the input.
    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// Channels of the output.
    pub fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// The element type in which the layer computes.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// `[b, h, w, in] -> [b, oh, ow, out]`.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None, &Fused::default())
    }

    /// As [`Conv2d::forward`], with what is fused behind it.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward_with(&self, x: &Tensor, fused: &Fused) -> Result<Tensor> {
        self.run(x, None, fused)
    }

    /// Convolves the picture enlarged to twice its size by nearest neighbour, which is not stored.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward_upsampled(&self, x: &Tensor) -> Result<Tensor> {
        let [_, h, w, _] = x.dims4()?;
        self.run(x, Some([h * 2, w * 2]), &Fused::default())
    }

    /// Convolves the picture resized to `h` by `w` by nearest neighbour, which is not stored.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward_upsampled_to(&self, x: &Tensor, h: usize, w: usize) -> Result<Tensor> {
        self.run(x, Some([h, w]), &Fused::default())
    }

    /// Whether [`Conv2d::forward_normed`] does most norms in passing.
    pub fn does_norms(&self) -> bool {
        match &self.packed {
            Packed::Cpu(..) => self.norms_here(Activation::None, None),
            Packed::Cuda(layer) => layer.tiled.as_ref().is_some_and(|tiled| tiled.form != Form::Doubled),
        }
    }

    /// Whether the CPU does a norm in passing, where so many pixels are convolved.
    fn norms_here(&self, activation: Activation, pixels: Option<usize>) -> bool {
        let Packed::Cpu(packed, _) = &self.packed else { return false };
        let c = self.in_channels;
        // Every type has an answer.
        let norms = by_dtype!("conv2d", "the weight", self.dtype, T => Ok(cpu::conv::norms::<T>(packed, c, activation, pixels)));
        (self.kernel, self.options) == ([3, 3], ConvOptions::same3()) && norms.unwrap_or(false)
    }

    /// As [`Conv2d::forward_with`] of what a norm gives, which is not stored where the device does it in passing.
    ///
    /// # Errors
    /// Shapes or element types that do not fit.
    pub fn forward_normed(&self, norm: &Normed, fused: &Fused) -> Result<Tensor> {
        let x = norm.x;
        if let (Packed::Cpu(packed, here), true, None) =
            (&self.packed, self.norms_here(norm.activation, Some(x.len() / x.last_dim().max(1))), norm.add)
        {
            let [seen, out] = self.check(x, None, fused)?;
            let (weight, bias, _) = norm.checked()?;
            return by_dtype!("conv2d", "the input", self.dtype, T => {
                let gains = Gains::of::<T>(x, norm.groups, weight.data(), bias.data(), norm.eps, norm.activation)?;
                cpu::conv::forward::<T>(
                    x, packed, here.as_deref(), self.kernel, self.options, seen, out, fused, Some(&gains))
            });
        }
        // Else a weight that waits on the host would be brought twice.
        if let (Packed::Cuda(layer), true) = (&self.packed, self.does_norms()) {
            self.check(x, None, fused)?;
            let (weight, bias, add) = norm.checked()?;
            let add = add.as_ref().zip(norm.add).map(|(add, (_, first))| (add, first));
            let (groups, eps, activation) = (norm.groups, norm.eps, norm.activation);
            let normed = cuda::winograd::Normed { groups, weight: &weight, bias: &bias, add, eps, activation };
            if let Some(y) = cuda::conv::forward_normed(x, &*layer.at_hand()?, &normed, fused)? {
                return Ok(y);
            }
        }
        self.run(&norm.done()?, None, fused)
    }

    /// Checks operands; the size of the picture that is seen and of the result.
    fn check(&self, x: &Tensor, resized: Option<[usize; 2]>, fused: &Fused) -> Result<[[usize; 2]; 2]> {
        let [b, h, w, c] = x.dims4()?;
        let [top, bottom, left, right] = self.options.padding;
        let seen = resized.unwrap_or([h, w]);
        let (ph, pw) = (seen[0] + top + bottom, seen[1] + left + right);
        if c != self.in_channels || ph < self.kernel[0] || pw < self.kernel[1] || x.is_empty() {
            let expected = format!(
                "[b, h, w, {}] of at least {}x{} with padding",
                self.in_channels, self.kernel[0], self.kernel[1]
            );
            return Err(Error::shape("conv2d", "the input", x.shape(), expected));
        }
        same_kind("conv2d", "the input", x, self.dtype, self.device)?;
        let out = [(ph - self.kernel[0]) / self.options.stride + 1, (pw - self.kernel[1]) / self.options.stride + 1];
        if let Some(add) = fused.channel_add {
            if add.shape() != [b, self.out_channels()] {
                return Err(Error::shape(
                    "conv2d",
                    "the channel sum",
                    add.shape(),
                    format!("[{b}, {}]", self.out_channels()),
                ));
            }
            same_kind("conv2d", "the channel sum", add, self.dtype, self.device)?;
        }
        if let Some(r) = fused.residual {
            if r.shape() != [b, out[0], out[1], self.out_channels()] {
                return Err(Error::shape("conv2d", "the residual", r.shape(), "the output's shape"));
            }
            same_kind("conv2d", "the residual", r, self.dtype, self.device)?;
        }
        Ok([seen, out])
    }

    fn run(&self, x: &Tensor, resized: Option<[usize; 2]>, fused: &Fused) -> Result<Tensor> {
        let [seen, out] = self.check(x, resized, fused)?;
        match &self.packed {
            Packed::Cpu(packed, bias) => by_dtype!("conv2d", "the input", self.dtype, T => cpu::conv::forward::<T>(
                x, packed, bias.as_deref(), self.kernel, self.options, seen, out, fused, None)),
            Packed::Cuda(layer) => {
                cuda::conv::forward(x, &*layer.at_hand()?, self.kernel, self.options, seen, out, fused)
            }
        }
    }
}
