//! 3x3 convolutions of stride 1 on Hopper in f16 by Winograd's tiles (arXiv:1509.09308), with the group norm before them:
//! kernels/winograd.cu brings pixels into tiles and back, cuBLASLt multiplies.
//!
//! Loss by one layer on normal noise, where rounding the result loses 2.1e-4: 6.0e-4 with tiles of 2x2, 1.6e-3 with 4x4. In
//! bf16 it would be eight times that, so there is none. Elements are at most 4 times the largest pixel, and products
//! of tiles may be some 10 times the largest result before they are added up; all are 16 times smaller on their way, so what
//! overflows is what a result of 16 bits cannot hold.

use super::elementwise::{Finish, code, finish, optional};
use super::gpu::{Argument, Gpu};
use super::kernels::{Family, HOPPERS};
use super::product::{Matrix, Product};
use super::profile::Work;
use super::{fresh, place, shape, transfer};
use crate::ops::{Activation, ConvOptions};
use crate::tensor::Sums;
use crate::{DType, Result, Tensor};

/// Fewest channels on each side for which tiles pay.
const LEAST: usize = 320;
/// Most weights that are held four times as large: SDXL's at 1280 channels are 118 MB, which would be read in a step longer
/// than they are multiplied.
const MOST_WEIGHTS: usize = 640 * 1920;
/// Channels of a block of the transforms.
const CHANNELS: usize = 64;
/// Widest group whose sums a block of the transforms holds.
const GROUP: usize = 96;

/// Tiles of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// 2x2 results.
    Two,
    /// 4x4 results.
    Four,
    /// 2x2 results of a picture whose pixels are doubled, of which 9 elements remain.
    Doubled,
}

impl Gpu {
    /// The tiles for a weight `[n, c, kernel, kernel]`, where they pay; `doubled`: of a picture that is enlarged.
    pub(crate) fn tiles_of(
        &self,
        dtype: DType,
        [n, c, kernel]: [usize; 3],
        options: ConvOptions,
        doubled: bool,
    ) -> Option<Form> {
        let fits = self.arch == HOPPERS
            && self.blas.is_some()
            && dtype == DType::F16
            && kernel == 3
            && options == ConvOptions::same3()
            && c.is_multiple_of(CHANNELS)
            && n.is_multiple_of(CHANNELS)
            && c.min(n) >= LEAST;
        fits.then_some(match () {
            () if doubled => Form::Doubled,
            () if c * n <= MOST_WEIGHTS => Form::Four,
            () => Form::Two,
        })
    }
}

impl Form {
    /// Elements of a tile.
    pub(crate) fn planes(self) -> usize {
        match self {
            Form::Two => 16,
            Form::Four => 36,
            Form::Doubled => 9,
        }
    }

    /// Results along a side.
    fn results(self) -> usize {
        match self {
            Form::Two | Form::Doubled => 2,
            Form::Four => 4,
        }
    }

    /// Tiles of a block that transforms pixels: across, down.
    fn block(self) -> [usize; 2] {
        match self {
            Form::Two => [16, 2],
            Form::Four => [8, 2],
            Form::Doubled => [32, 4],
        }
    }

    /// Kernels: of the weight, of pixels, of products.
    fn kernels(self) -> [&'static str; 3] {
        match self {
            Form::Two => ["weights_two", "forth_two", "back_two"],
            Form::Four => ["weights_four", "forth_four", "back_four"],
            Form::Doubled => ["weights_doubled", "forth_doubled", "back_doubled"],
        }
    }
}

/// A weight brought into tiles, `[planes, n, c]`.
pub(crate) struct Tiled {
    pub(crate) form: Form,
    weight: Tensor,
}

impl Tiled {
    /// Transforms a weight `[n, kh kw c]` in f32 and rounds it once.
    pub(crate) fn new(weight: &Tensor, form: Form) -> Result<Tiled> {
        let (gpu, from) = place(weight)?;
        let (n, c) = (weight.dim(0), weight.last_dim() / 9);
        let (out, to) = fresh(gpu, weight.dtype(), &[form.planes(), n, c])?;
        let kernel = gpu.kernel(Family::Winograd, form.kernels()[0], weight.dtype())?;
        let grid = [(n * c).div_ceil(256) as u32, 1, 1];
        let (rows, columns) = (n as i64, c as i32);
        // SAFETY: the sizes are the tensors' own.
        unsafe { gpu.launch("a weight's tiles", kernel, grid, 256, 0, &[&from, &to, &rows, &columns])? };
        Ok(Tiled { form, weight: out })
    }
}

/// A group norm that is to be done in passing; weight, bias and `add` in f32, of `add` the channels from `first` on.
pub(crate) struct Normed<'a> {
    pub(crate) groups: usize,
    pub(crate) weight: &'a Tensor,
    pub(crate) bias: &'a Tensor,
    pub(crate) add: Option<(&'a Tensor, usize)>,
    pub(crate) eps: f32,
    pub(crate) activation: Activation,
}

impl Normed<'_> {
    /// Whether the kernels do this norm of `c` channels.
    pub(crate) fn fits(&self, c: usize) -> bool {
        matches!(self.activation, Activation::None | Activation::Silu) && c / self.groups <= GROUP
    }
}

/// As the kernel reads it.
#[repr(C)]
#[derive(Default)]
struct Norm {
    sums: u64,
    weight: u64,
    bias: u64,
    add: u64,
    apart: i32,
    size: i32,
    chunks: i32,
    silu: i32,
    eps: f32,
}

impl Argument for Norm {}

impl Norm {
    /// A norm by the sums of channels `[b, chunks, c, 2]`.
    fn new(norm: &Normed, sums: &Tensor) -> Result<Norm> {
        let place = |x| place(x).map(|(_, at)| at);
        Ok(Norm {
            sums: place(sums)?,
            weight: place(norm.weight)?,
            bias: place(norm.bias)?,
            add: norm.add.map_or(Ok(0), |(add, first)| place(add).map(|at| at + 4 * first as u64))?,
            apart: norm.add.map_or(0, |(add, _)| add.last_dim()) as i32,
            size: (sums.dim(2) / norm.groups) as i32,
            chunks: sums.dim(1) as i32,
            silu: code(norm.activation),
            eps: norm.eps,
        })
    }
}

/// As the kernels read it: pixels and channels of the picture in memory, tiles, numbers from one plane to the next.
#[repr(C)]
struct Size {
    sizes: [i32; 5],
    plane: i64,
}

impl Argument for Size {}

impl Size {
    fn new(sizes: [usize; 5], plane: usize) -> Size {
        Size { sizes: sizes.map(|size| size as i32), plane: plane as i64 }
    }
}

/// Parts in which a picture's channels are summed up: as many blocks for every width, whatever the card and the batch.
fn chunks(channels: usize) -> usize {
    (160 * CHANNELS / channels).clamp(4, 64)
}

/// The sums of the channels of `x` `[b, .., c]` and of their squares, `[b, chunks, c, 2]`: as its convolution left them,
/// else made here.
fn channel_sums(gpu: &'static Gpu, x: &Tensor) -> Result<Tensor> {
    let (b, c) = (x.dim(0), x.last_dim());
    if let Some(sums) = x.channel_sums() {
        return Ok(sums);
    }
    let (sums, to) = fresh(gpu, DType::F32, &[b, chunks(c), c, 2])?;
    let kernel = gpu.kernel(Family::Winograd, "channel_sums", x.dtype())?;
    let (pixels, channels) = ((x.len() / (b * c)) as i32, c as i32);
    let grid = [chunks(c) as u32, (c / CHANNELS) as u32, b as u32];
    gpu.note("channel sums", || Work::over(format!("channel sums {:?}", x.shape()), x.len(), x.dtype()));
    // SAFETY: the sizes are the tensors' own; channels are whole blocks.
    unsafe { gpu.launch("channel sums", kernel, grid, 256, 0, &[&place(x)?.1, &to, &pixels, &channels])? };
    Ok(sums)
}

/// Normalises `x` `[b, .., c]` by the sums that its convolution left; none where it left none.
pub(super) fn normalise(x: &Tensor, norm: &Normed) -> Result<Option<Tensor>> {
    let (b, c) = (x.dim(0), x.last_dim());
    let Some(sums) = x.channel_sums().filter(|_| norm.fits(c)) else { return Ok(None) };
    let ((gpu, from), told) = (place(x)?, Norm::new(norm, &sums)?);
    let (out, to) = fresh(gpu, x.dtype(), x.shape())?;
    let kernel = gpu.kernel(Family::Winograd, "normalise", x.dtype())?;
    let (pixels, channels) = ((x.len() / (b * c)) as i32, c as i32);
    let grid = [chunks(c) as u32, (c / CHANNELS) as u32, b as u32];
    gpu.note("group_norm", || Work::over(format!("group norm {:?}, sums known", x.shape()), 2 * x.len(), x.dtype()));
    // SAFETY: the sizes are the tensors' own; channels are whole blocks, as they are where sums are left.
    unsafe { gpu.launch("group_norm", kernel, grid, 256, 0, &[&from, &to, &pixels, &channels, &told])? };
    Ok(Some(out))
}

/// Convolves `x` `[b, h, w, c]`, normalised where there is a norm, doubled where that is the weight's form. The result's
/// channel sums stay with it where nothing is done to it afterwards.
pub(super) fn forward(x: &Tensor, tiled: &Tiled, norm: Option<&Normed>, after: &Finish) -> Result<Tensor> {
    let (gpu, from) = place(x)?;
    let [b, h, w, c] = x.dims4()?;
    let (form, n) = (tiled.form, tiled.weight.dim(1));
    let zoom = if form == Form::Doubled { 2 } else { 1 };
    let (oh, ow, planes) = (zoom * h, zoom * w, form.planes());
    let (across, down) = (ow.div_ceil(form.results()), oh.div_ceil(form.results()));
    let rows = b * across * down;
    let [_, forth, back] = form.kernels();

    // Alive until the kernel that reads them is launched.
    let sums = norm.map(|_| channel_sums(gpu, x)).transpose()?;
    let told = norm.zip(sums.as_ref()).map_or(Ok(Norm::default()), |(norm, sums)| Norm::new(norm, sums))?;
    let (elements, to) = fresh(gpu, x.dtype(), &[planes, rows, c])?;
    let [wide, high] = form.block();
    let grid = [(across.div_ceil(wide) * down.div_ceil(high)) as u32, (c / CHANNELS) as u32, b as u32];
    let size = Size::new([h, w, c, across, down], rows * c);
    let kernel = gpu.kernel(Family::Winograd, forth, x.dtype())?;
    gpu.note("pixels to tiles", || {
        let more = if norm.is_some() { ", normalised" } else { "" };
        Work::over(format!("{form:?} tiles of {:?}{more}", x.shape()), x.len() + elements.len(), x.dtype())
    });
    // SAFETY: the sizes are the tensors' own; a plane has room for all tiles, channels are whole blocks.
    unsafe {
        gpu.launch("pixels to tiles", kernel, grid, 256, 0, &[&from, &to, &size, &told])?;
    }

    let (products, middle) = fresh(gpu, x.dtype(), &[planes, rows, n])?;
    let product = Product {
        planes,
        rows,
        depth: c,
        columns: n,
        dtype: x.dtype(),
        x: Matrix { at: to, stride: c },
        w: Matrix { at: place(&tiled.weight)?.1, stride: c },
        transposed: true,
        out: Matrix { at: middle, stride: n },
        out_dtype: x.dtype(),
        alpha: 1.0,
        bias: None,
        residual: None,
        scales: None,
    };
    crate::meter::count(planes * rows, c, n);
    // SAFETY: each plane's operands have the sizes said.
    if !unsafe { gpu.product(&product)? } {
        return Err(
            gpu.failed("a convolution", format!("cuBLASLt refused its {planes} products of {rows} x {c} to {n}"))
        );
    }
    drop(elements);

    // Without activation and channel sum bias and residual are added here.
    let plain = after.activation == Activation::None && after.add.is_none();
    let (bias, residual) = match plain {
        true => (optional(after.bias)?, optional(after.residual)?),
        false => (0, 0),
    };
    let (y, to) = fresh(gpu, x.dtype(), &[b, oh, ow, n])?;
    let sums = transfer::empty(gpu, DType::F32, &[b, chunks(n), n, 2])?;
    let grid = [chunks(n) as u32, (n / CHANNELS) as u32, b as u32];
    let size = Size::new([oh, ow, n, across, down], rows * n);
    let left = place(&sums)?.1;
    let kernel = gpu.kernel(Family::Winograd, back, x.dtype())?;
    gpu.note("tiles to pixels", || {
        Work::over(format!("{form:?} tiles to {:?}", y.shape()), products.len() + 2 * y.len(), x.dtype())
    });
    // SAFETY: as above.
    unsafe {
        gpu.launch("tiles to pixels", kernel, grid, 256, 0, &[&middle, &bias, &residual, &to, &left, &size])?;
    }
    match plain {
        true => y.keep_sums(Some(Sums::Channels(sums))),
        false => finish(&y, after)?,
    }
    Ok(y)
}

/// The picture that a weight in tiles reads: as it is, or resized to `seen` where that is not done in passing; none where
/// the weight's form takes no such picture.
pub(super) fn seen(x: &Tensor, form: Form, seen: [usize; 2]) -> Result<Option<Tensor>> {
    let [_, h, w, _] = x.dims4()?;
    Ok(match form {
        Form::Doubled if seen == [2 * h, 2 * w] => Some(x.clone()),
        Form::Doubled => None,
        _ if seen == [h, w] => Some(x.clone()),
        _ => Some(shape::upsample_nearest(x, seen[0], seen[1])?),
    })
}
