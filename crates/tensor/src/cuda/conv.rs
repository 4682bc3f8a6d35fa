//! Convolution on a GPU: cuDNN on NHWC, a plain product where the window is one pixel, own kernel for what neither takes.

use super::elementwise::{Finish, code, finish, optional};
use super::gpu::{Gpu, lock, records};
use super::kernels::Family;
use super::linear::Layer;
use super::profile::Work;
use super::winograd::{Form, Normed};
use super::{fresh, fused, libraries, linear, place, shape, winograd};
use crate::ops::{Activation, ConvOptions, Fused};
use crate::{DType, Result, Tensor};
use cudarc::cudnn::sys as dnn;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::c_void;

/// Packs a weight `[out, in, kh, kw]` as `[out, kh kw in]`.
pub(crate) fn pack(weight: &Tensor, bias: Option<&Tensor>) -> Result<Layer> {
    let [n, c, kh, kw] = weight.dims4()?;
    let lying = if kh * kw == 1 { weight.clone() } else { shape::filter(weight)? };
    Layer::new(&lying.reshape(&[n, kh * kw * c])?, bias)
}

/// Convolves `x` `[b, h, w, in]`, first resized to `seen` by nearest neighbour, into `[b, oh, ow, out]`.
pub(crate) fn forward(
    x: &Tensor,
    layer: &Layer,
    kernel: [usize; 2],
    options: ConvOptions,
    seen: [usize; 2],
    out: [usize; 2],
    fused: &Fused,
) -> Result<Tensor> {
    let [b, h, w, c] = x.dims4()?;
    let (n, pixels) = (layer.weight.dim(0), out[0] * out[1]);
    let after = finish_of(layer, pixels, fused);
    if let Some(tiled) = &layer.tiled
        && let Some(x) = winograd::seen(x, tiled.form, seen)?
    {
        return winograd::forward(&x, tiled, None, &after);
    }
    if kernel == [1, 1] && options == ConvOptions::default() && seen == [h, w] {
        return linear::forward_with(x, layer, &after);
    }
    let (gpu, _) = place(x)?;
    crate::meter::count(b * pixels, kernel[0] * kernel[1] * c, n);
    let (y, _) = fresh(gpu, x.dtype(), &[b, out[0], out[1], n])?;
    let [top, bottom, left, right] = options.padding;
    if top == bottom && left == right && gpu.dnn.is_some() {
        let enlarged = if seen == [h, w] { x.clone() } else { shape::upsample_nearest(x, seen[0], seen[1])? };
        let key = Key {
            b,
            h: seen[0],
            w: seen[1],
            c,
            n,
            kernel,
            out,
            stride: options.stride,
            padding: [top, left],
            dtype: x.dtype(),
        };
        // Without activation and channel sum the convolution adds bias and residual itself.
        let plain = fused.activation == Activation::None && fused.channel_add.is_none();
        let bias = layer.narrow.as_ref().filter(|_| plain);
        match gpu.convolve(key, &enlarged, &layer.weight, bias.map(|bias| (bias, fused.residual)), &y)? {
            Done::Whole => return Ok(y),
            Done::Product => {
                finish(&y, &after)?;
                return Ok(y);
            }
            Done::Nothing => {}
        }
    }
    let window = [h, w, c, seen[0], seen[1], kernel[0], kernel[1], out[0], out[1], options.stride, top, left];
    own(x, layer, window, b * pixels, &after, &y)?;
    Ok(y)
}

/// What follows a convolution into pictures of so many pixels.
fn finish_of<'a>(layer: &'a Layer, pixels: usize, fused: &Fused<'a>) -> Finish<'a> {
    Finish {
        bias: layer.bias.as_ref(),
        add: fused.channel_add.map(|add| (add, pixels)),
        activation: fused.activation,
        residual: fused.residual,
    }
}

/// Convolves `x` `[b, h, w, in]`, normalised, into as many pixels; none where the norm must be done before.
pub(crate) fn forward_normed(x: &Tensor, layer: &Layer, norm: &Normed, fused: &Fused) -> Result<Option<Tensor>> {
    let [_, h, w, c] = x.dims4()?;
    match &layer.tiled {
        Some(tiled) if tiled.form != Form::Doubled && norm.fits(c) => {
            winograd::forward(x, tiled, Some(norm), &finish_of(layer, h * w, fused)).map(Some)
        }
        _ => Ok(None),
    }
}

/// `x W^T` with all that follows by the own kernel: a convolution whose window is one pixel.
pub(super) fn own_product(x: &Tensor, layer: &Layer, rows: usize, after: &Finish, out: &Tensor) -> Result<()> {
    let after = Finish { bias: layer.bias.as_ref(), ..*after };
    // Rows that share a row of `add` are one picture.
    let line = after.add.map_or(rows, |(_, rows)| rows);
    own(x, layer, [line, 1, x.last_dim(), line, 1, 1, 1, line, 1, 1, 0, 0], rows, &after, out)
}

/// The own kernel on a window: stored h, w, c; seen h, w; kernel h, w; output h, w; stride; padding top, left.
fn own(x: &Tensor, layer: &Layer, window: [usize; 12], rows: usize, after: &Finish, out: &Tensor) -> Result<()> {
    let ((gpu, from), (_, weight), (_, to)) = (place(x)?, place(&layer.weight)?, place(out)?);
    let kernel = gpu.kernel(Family::Conv, "product", x.dtype())?;
    let columns = layer.weight.dim(0);
    let (bias, residual) = (optional(after.bias)?, optional(after.residual)?);
    let add = optional(after.add.map(|(add, _)| add))?;
    let grid = [rows.div_ceil(64) as u32, columns.div_ceil(64) as u32, 1];
    let window = window.map(|size| size as i32);
    let (rows, columns, which) = (rows as i32, columns as i32, code(after.activation));
    // SAFETY: the sizes are the tensors' own; the kernel stays within `rows` and `columns`.
    unsafe {
        gpu.launch(
            "convolution",
            kernel,
            grid,
            256,
            0,
            &[&from, &weight, &to, &window, &rows, &columns, &bias, &add, &which, &residual],
        )
    }
}

/// What tells one convolution from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    b: usize,
    h: usize,
    w: usize,
    c: usize,
    n: usize,
    kernel: [usize; 2],
    out: [usize; 2],
    stride: usize,
    padding: [usize; 2],
    dtype: DType,
}

impl Key {
    fn work(&self, more: &str) -> Work {
        let Key { b, h, w, c, n, kernel: [kh, kw], out, stride, dtype, .. } = *self;
        let pixels = b * out[0] * out[1];
        let outputs = pixels * n * (1 + usize::from(more.contains("residual")));
        Work {
            name: format!("conv {kh}x{kw} {b}x{h}x{w}x{c} -> {n} / {stride}{more}, {dtype}"),
            flop: 2 * (pixels * kh * kw * c * n) as u64,
            bytes: ((b * h * w * c + kh * kw * c * n + outputs) * dtype.bytes()) as u64,
        }
    }
}

/// What of a convolution was done.
enum Done {
    Nothing,
    Product,
    /// Bias and residual too.
    Whole,
}

/// Descriptions and the algorithm of one convolution.
struct Plan {
    /// Whether bias and residual can be added in the same launch; false once that was refused.
    fuses: bool,
    bias: dnn::cudnnTensorDescriptor_t,
    identity: dnn::cudnnActivationDescriptor_t,
    x: dnn::cudnnTensorDescriptor_t,
    weight: dnn::cudnnFilterDescriptor_t,
    convolution: dnn::cudnnConvolutionDescriptor_t,
    y: dnn::cudnnTensorDescriptor_t,
    algorithm: dnn::cudnnConvolutionFwdAlgo_t,
    workspace: usize,
}

/// cuDNN on one GPU.
pub(super) struct Dnn {
    pub(super) handle: dnn::cudnnHandle_t,
    /// Attentions; none: cuDNN does not take this one.
    pub(super) attentions: HashMap<fused::Shape, Option<fused::Plan>>,
    /// None: cuDNN does not take this convolution.
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: the handle may be used from any thread, one at a time, which the lock around this sees to.
unsafe impl Send for Dnn {}

/// Scratch memory beyond which an algorithm is not taken.
const WORKSPACE: usize = 512 << 20;

fn ok(status: dnn::cudnnStatus_t) -> Option<()> {
    (status == dnn::cudnnStatus_t::CUDNN_STATUS_SUCCESS).then_some(())
}

impl Dnn {
    /// None where the library is not found or does not start.
    pub(super) fn open(stream: sys::CUstream) -> Option<Dnn> {
        if !libraries::dnn() {
            return None;
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: a context is current; the result goes to a place of its type.
        unsafe {
            ok(dnn::cudnnCreate(&mut handle))?;
            ok(dnn::cudnnSetStream(handle, stream.cast()))?;
        }
        Some(Dnn { handle, attentions: HashMap::new(), plans: HashMap::new() })
    }

    /// Describes a convolution and asks for its best algorithm.
    fn plan(&self, key: Key) -> Option<Plan> {
        let kind = match key.dtype {
            DType::F32 => dnn::cudnnDataType_t::CUDNN_DATA_FLOAT,
            DType::F16 => dnn::cudnnDataType_t::CUDNN_DATA_HALF,
            _ => dnn::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        // f32 stays f32: no TF32.
        let math = match key.dtype {
            DType::F32 => dnn::cudnnMathType_t::CUDNN_FMA_MATH,
            _ => dnn::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        let size = |n: usize| i32::try_from(n).ok();
        let nhwc = dnn::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let tensor = |[n, h, w, c]: [usize; 4]| {
            let mut tensor = std::ptr::null_mut();
            // SAFETY: the result goes to a place of its type; it stays for the life of the process.
            unsafe {
                ok(dnn::cudnnCreateTensorDescriptor(&mut tensor))?;
                ok(dnn::cudnnSetTensor4dDescriptor(tensor, nhwc, kind, size(n)?, size(c)?, size(h)?, size(w)?))?;
            }
            Some(tensor)
        };
        let x = tensor([key.b, key.h, key.w, key.c])?;
        let y = tensor([key.b, key.out[0], key.out[1], key.n])?;
        let bias = tensor([1, 1, 1, key.n])?;
        let mut identity = std::ptr::null_mut();
        let (mut weight, mut convolution) = (std::ptr::null_mut(), std::ptr::null_mut());
        let [kh, kw] = key.kernel;
        let stride = size(key.stride)?;
        // SAFETY: as above; the list of algorithms is as long as the call is told.
        unsafe {
            ok(dnn::cudnnCreateFilterDescriptor(&mut weight))?;
            ok(dnn::cudnnSetFilter4dDescriptor(weight, kind, nhwc, size(key.n)?, size(key.c)?, size(kh)?, size(kw)?))?;
            ok(dnn::cudnnCreateConvolutionDescriptor(&mut convolution))?;
            ok(dnn::cudnnSetConvolution2dDescriptor(
                convolution,
                size(key.padding[0])?,
                size(key.padding[1])?,
                stride,
                stride,
                1,
                1,
                dnn::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                dnn::cudnnDataType_t::CUDNN_DATA_FLOAT,
            ))?;
            ok(dnn::cudnnSetConvolutionMathType(convolution, math))?;
            let mut found: [dnn::cudnnConvolutionFwdAlgoPerf_t; 8] = std::mem::zeroed();
            let mut count = 0;
            let all = found.len() as i32;
            let list = found.as_mut_ptr();
            ok(dnn::cudnnGetConvolutionForwardAlgorithm_v7(
                self.handle,
                x,
                weight,
                convolution,
                y,
                all,
                &mut count,
                list,
            ))?;
            // In the order of what they are expected to take. Transforms (FFT, Winograd) round differently.
            let taken = |a: &&dnn::cudnnConvolutionFwdAlgoPerf_t| {
                use dnn::cudnnConvolutionFwdAlgo_t as A;
                let direct = matches!(
                    a.algo,
                    A::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM
                        | A::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM
                        | A::CUDNN_CONVOLUTION_FWD_ALGO_GEMM
                );
                ok(a.status).is_some()
                    && a.memory <= WORKSPACE
                    && direct
                    && (key.dtype != DType::F32 || a.mathType == math)
            };
            let algorithm = found.iter().take(count.max(0) as usize).find(taken)?.algo;
            let mut workspace = 0;
            ok(dnn::cudnnGetConvolutionForwardWorkspaceSize(
                self.handle,
                x,
                weight,
                convolution,
                y,
                algorithm,
                &mut workspace,
            ))?;
            ok(dnn::cudnnCreateActivationDescriptor(&mut identity))?;
            let none = dnn::cudnnActivationMode_t::CUDNN_ACTIVATION_IDENTITY;
            let nan = dnn::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN;
            ok(dnn::cudnnSetActivationDescriptor(identity, none, nan, 0.0))?;
            // The only algorithm for which the library takes no activation.
            let fuses = algorithm == dnn::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
            Some(Plan { fuses, bias, identity, x, weight, convolution, y, algorithm, workspace })
        }
    }
}

impl Gpu {
    /// `y = x * weight`, and bias and residual where they are given and the library adds them.
    fn convolve(
        &'static self,
        key: Key,
        x: &Tensor,
        weight: &Tensor,
        after: Option<(&Tensor, Option<&Tensor>)>,
        y: &Tensor,
    ) -> Result<Done> {
        let Some(dnn) = &self.dnn else { return Ok(Done::Nothing) };
        self.bind()?;
        let ((_, from), (_, filter), (_, to)) = (place(x)?, place(weight)?, place(y)?);
        // Before the lock, which the thread that records needs too.
        let _turn = self.turn();
        let mut dnn = lock(dnn);
        if !dnn.plans.contains_key(&key) {
            let plan = dnn.plan(key);
            dnn.plans.insert(key, plan);
        }
        let handle = dnn.handle;
        let Some(Some(plan)) = dnn.plans.get_mut(&key) else { return Ok(Done::Nothing) };
        // Back in the pool as soon as the convolution was launched: what runs later runs after it.
        let workspace = self.allocate(plan.workspace)?;
        let scratch = workspace.address() as *mut c_void;
        let (one, zero) = (1f32, 0f32);
        let (one, zero) = ((&raw const one).cast::<c_void>(), (&raw const zero).cast::<c_void>());
        if let Some((bias, residual)) = after.filter(|_| plan.fuses) {
            let (bias, residual) = (place(bias)?.1, residual.map(place).transpose()?.map(|(_, at)| at));
            // SAFETY: the descriptions were made from these tensors' sizes, which the caller compared, and the
            // workspace has the size asked for; with a factor of zero the residual is not read.
            let launch = || unsafe {
                dnn::cudnnConvolutionBiasActivationForward(
                    handle,
                    one,
                    plan.x,
                    from as *const c_void,
                    plan.weight,
                    filter as *const c_void,
                    plan.convolution,
                    plan.algorithm,
                    scratch,
                    plan.workspace,
                    if residual.is_some() { one } else { zero },
                    plan.y,
                    residual.unwrap_or(to) as *const c_void,
                    plan.bias,
                    bias as *const c_void,
                    plan.identity,
                    plan.y,
                    to as *mut c_void,
                )
            };
            if ok(self.watch(|| key.work(if residual.is_some() { " + residual" } else { " + bias" }), launch)).is_some()
            {
                return Ok(Done::Whole);
            }
            if records() {
                return Err(self.failed("recording", "cuDNN refused a convolution"));
            }
            plan.fuses = false;
        }
        // SAFETY: as above.
        let launch = || unsafe {
            dnn::cudnnConvolutionForward(
                handle,
                one,
                plan.x,
                from as *const c_void,
                plan.weight,
                filter as *const c_void,
                plan.convolution,
                plan.algorithm,
                scratch,
                plan.workspace,
                zero,
                plan.y,
                to as *mut c_void,
            )
        };
        if ok(self.watch(|| key.work(""), launch)).is_none() {
            // A record may be what it refuses, which says nothing about later.
            if records() {
                return Err(self.failed("recording", "cuDNN refused a convolution"));
            }
            // Refused after all; the own kernel takes it, now and later.
            dnn.plans.insert(key, None);
            return Ok(Done::Nothing);
        }
        Ok(Done::Product)
    }
}
