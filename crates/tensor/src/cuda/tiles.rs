//! Linear layers by this crate's own kernel for Hopper, where its tiles fill the card: with the layer norm before them, and
//! GEGLU before the result is written.

use super::gpu::{Argument, Gpu};
use super::kernels::{Family, HOPPERS};
use super::linear::Layer;
use super::narrow::Rows;
use super::profile::Work;
use super::{fresh, place, transfer};
use crate::tensor::Sums;
use crate::{DType, Result, Tensor};
use cudarc::driver::sys;

/// Columns of a plain tile: 1280 columns of 2048 rows are 128 tiles for 132 multiprocessors.
pub(super) const PLAIN: usize = 160;
/// Columns of a tile whose second half gates the first.
pub(super) const GATED: usize = 256;
/// Rows of a tile.
const ROWS: usize = 128;
/// Bytes of a row that are brought at once.
const DEPTH: usize = 128;
/// Bytes of shared memory of a block; what is left beside results and biases are stages.
const SHARED: usize = 227 << 10;
/// Of the tiles that multiprocessors could do while the last are done, the share that there must be.
const FULL: f64 = 0.8;

/// Most parts of a row's sums that the product behind a layer norm adds up.
const PARTS: usize = 8;

/// The product of a group of four warps on 64 rows and `width` columns, for all types of operands: its instruction names
/// every register of the result, so their number is written out.
pub(super) fn multiply(width: usize) -> String {
    let count = width / 2;
    let [registers, results] = results(count);
    [("f16", 16, ", 0, 0"), ("bf16", 16, ", 0, 0"), ("e4m3", 32, "")]
        .map(|(kind, depth, order)| {
            format!(
                "__device__ __forceinline__ void multiply(float (&d)[{count}], u64 a, u64 b, int more, {kind}) {{\n\
                 asm volatile(\"{{ .reg .pred p; setp.ne.b32 p, %{}, 0;\\n\"\n\
                 \"wgmma.mma_async.sync.aligned.m64n{width}k{depth}.f32.{kind}.{kind} {{{registers}}}, %{count}, %{}, p, 1, 1{order}; }}\"\n\
                 : {results} : \"l\"(a), \"l\"(b), \"r\"(more));\n}}\n",
                count + 2,
                count + 1
            )
        })
        .concat()
}

/// The names of a product's `count` results in its instruction, and what they are for the compiler.
pub(super) fn results(count: usize) -> [String; 2] {
    let list = |one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(", ");
    [list(&|i| format!("%{i}")), list(&|i| format!("\"+f\"(d[{i}])"))]
}

/// Where a matrix lies and how, for the engine that copies its parts.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Map([u64; 16]);

impl Argument for Map {}

/// `out [rows, columns] = x [rows, depth] w^T + bias + residual`; `gated`: of twice as many rows of the weight, the first
/// half times GELU of the second.
pub(super) struct Tiles {
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) columns: usize,
    /// Of the result and the residual, and of the operands where they have no scales.
    pub(super) dtype: DType,
    pub(super) x: u64,
    pub(super) weight: u64,
    /// In f32; 0 for none.
    pub(super) bias: u64,
    /// 0 for none.
    pub(super) residual: u64,
    pub(super) out: u64,
    pub(super) gated: bool,
    /// Where `x` and `weight` are 8-bit numbers: the scales of their rows, f32.
    pub(super) scales: Option<[u64; 2]>,
    /// Where rows of `x` are to be normalised; where the result is copied in 8 bits, of the residual instead.
    pub(super) norm: Option<RowNorm>,
    /// Where the result goes in 8 bits, and the scales of its rows: of 8-bit numbers that gate others, and alone; beside
    /// `out` of those with a residual, where a norm of its rows is known; 0 elsewhere.
    pub(super) narrow: [u64; 2],
}

/// What a product leaves beside its result for the layer norms that read it.
#[derive(Clone)]
pub(crate) struct Left {
    /// Sums of each row's parts and of their squares, f32 `[rows, parts, 2]`.
    pub(crate) sums: Tensor,
    /// The same in 8 bits.
    pub(crate) copy: Option<Rows>,
}

/// A layer norm in front of a product whose weight was made by [`fold`].
#[derive(Clone, Copy)]
pub(crate) struct RowNorm {
    /// Sums of each row's parts and of their squares, f32.
    pub(super) sums: u64,
    pub(super) parts: usize,
    pub(super) eps: f32,
}

/// As the kernel reads them: the scales of x's rows, of the weight's and of the 8-bit result's.
#[repr(C)]
struct Scales([u64; 3]);

impl Argument for Scales {}

/// As the kernel reads it.
#[repr(C)]
struct Norm {
    sums: u64,
    leave: u64,
    parts: i32,
    eps: f32,
}

impl Argument for Norm {}

impl RowNorm {
    /// The norm of a tensor's rows, where the product that wrote them left their sums.
    pub(crate) fn of(x: &Tensor, eps: f32) -> Result<Option<RowNorm>> {
        let Some(Left { sums, .. }) = x.left() else { return Ok(None) };
        let (rows, parts) = (sums.dim(0), sums.dim(1) / 2);
        if rows * x.last_dim() != x.len() || parts * PLAIN != x.last_dim() {
            return Ok(None);
        }
        Ok(Some(RowNorm { sums: place(&sums)?.1, parts, eps }))
    }
}

/// Whether a layer behind a layer norm should be made by [`fold`]: where this kernel may take its products.
pub(crate) fn folds(weight: &Tensor) -> Result<bool> {
    let (gpu, _) = place(weight)?;
    let &[outputs, inputs] = weight.shape() else { return Ok(false) };
    let fits = outputs.is_multiple_of(PLAIN) && inputs.is_multiple_of(2 * PLAIN) && inputs / PLAIN <= PARTS;
    Ok(gpu.arch == HOPPERS && weight.dtype() != DType::F32 && fits)
}

/// A layer's weight times the norm's before it, less its rows' means, and its bias plus what the norm's makes of it: it
/// reads rows that are only divided by their deviation, or normalised without weight and bias.
///
/// # Errors
/// What the device says; no memory.
pub(crate) fn fold(weight: &Tensor, bias: Option<&Tensor>, gamma: &Tensor, beta: &Tensor) -> Result<Layer> {
    let (gpu, from) = place(weight)?;
    let bias = bias.map(|bias| bias.cast(DType::F32)).transpose()?;
    let ((out, to), (shift, shifts)) =
        (fresh(gpu, weight.dtype(), weight.shape())?, fresh(gpu, DType::F32, &[weight.dim(0)])?);
    let (gamma, beta) = (gamma.cast(DType::F32)?, beta.cast(DType::F32)?);
    let [gamma, beta] = [place(&gamma)?.1, place(&beta)?.1];
    let bias = super::elementwise::optional(bias.as_ref())?;
    let kernel = gpu.kernel_for(Family::Tiles, PLAIN, "fold", Some(weight.dtype()), 0)?;
    let (rows, depth) = (weight.dim(0) as i32, weight.last_dim() as i32);
    let grid = [weight.dim(0).div_ceil(32) as u32, 1, 1];
    // SAFETY: the kernel stays within its rows; norms have as many numbers as rows are wide, which the caller compared.
    unsafe {
        gpu.launch("folding a norm", kernel, grid, 32, 0, &[&from, &gamma, &beta, &bias, &to, &shifts, &rows, &depth])?
    };
    Layer::new(&out, Some(&shift))
}

impl Tiles {
    /// Columns of the result in a tile; none where this kernel does not take the product or would leave multiprocessors
    /// idle.
    fn kept(&self, gpu: &Gpu) -> Option<usize> {
        let kept = if self.gated { GATED / 2 } else { PLAIN };
        let aligned = [self.x, self.weight, self.bias, self.residual, self.out].iter().all(|at| at % 16 == 0);
        let deep = DEPTH / self.operand().map_or(1, DType::bytes);
        // In 8 bits the library is as fast where nothing else is to be done, but for deep products.
        let more = self.gated || self.norm.is_some() || self.depth > 2 * self.columns;
        let gains = self.scales.is_none() || more;
        let fits = gpu.arch == HOPPERS
            && self.dtype != DType::F32
            && aligned
            && gains
            && self.depth.is_multiple_of(deep)
            && self.columns.is_multiple_of(kept);
        let tiles = self.rows.div_ceil(ROWS) * (self.columns / kept);
        let there = tiles.next_multiple_of(gpu.multiprocessors.max(1) as usize);
        (fits && tiles > 0 && tiles as f64 >= FULL * there as f64).then_some(kept)
    }

    /// The operands' type; none for 8 bits.
    fn operand(&self) -> Option<DType> {
        self.scales.is_none().then_some(self.dtype)
    }

    fn work(&self) -> Work {
        let Tiles { rows, depth, columns, dtype, gated, .. } = *self;
        let said = |is: bool, text| if is { text } else { "" };
        let (weights, bytes) = (columns * if gated { 2 } else { 1 }, self.operand().map_or(1, DType::bytes));
        let more = [
            said(self.scales.is_some(), ", 8 bits"),
            said(self.bias != 0, " + bias"),
            said(self.residual != 0, " + residual"),
            said(gated, ", GEGLU"),
            said(self.norm.is_some() && (gated || self.narrow[0] == 0), ", normalised"),
            said(!gated && self.narrow[0] != 0, ", copied in 8 bits"),
        ]
        .concat();
        let outputs = rows * columns * (1 + usize::from(self.residual != 0));
        Work {
            name: format!("linear {rows}x{depth} -> {weights}{more}, own tiles, {dtype}"),
            flop: 2 * (rows * depth * weights) as u64,
            bytes: ((rows + weights) * depth * bytes + outputs * dtype.bytes()) as u64,
        }
    }
}

impl Gpu {
    /// Describes a matrix in memory, or several behind one another, to the copy engine: its sizes and those of a part that is
    /// copied at once, the innermost first; of bytes where there is no type. A part's rows of 64 or 128 bytes are swizzled.
    pub(super) fn matrix(&self, dtype: Option<DType>, at: u64, sizes: &[usize], part: &[usize]) -> Result<Map> {
        use sys::CUtensorMapDataType as Kind;
        use sys::CUtensorMapSwizzle as Swizzle;
        let bytes = dtype.map_or(1, DType::bytes);
        let kind = match dtype {
            None => Kind::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            Some(DType::F16) => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Kind::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let swizzle = match part.first().map_or(0, |first| first * bytes) {
            64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            _ => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        };
        let strides: Vec<u64> = sizes
            .iter()
            .scan(bytes as u64, |stride, &size| {
                *stride *= size as u64;
                Some(*stride)
            })
            .collect();
        let sizes: Vec<u64> = sizes.iter().map(|&size| size as u64).collect();
        let part: Vec<u32> = part.iter().map(|&size| size as u32).collect();
        let (ones, mut map) = ([1u32; 5], Map([0; 16]));
        // SAFETY: lists are as long as the rank says, strides longer than they must be; the result goes to a place of its
        // size and alignment.
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                kind,
                part.len() as u32,
                at as *mut _,
                sizes.as_ptr(),
                strides.as_ptr(),
                part.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check("describing a matrix", made)?;
        Ok(map)
    }

    /// As [`Gpu::tiles`] into `out`, with which it leaves its rows' sums where a layer norm may ask for them, and the copy
    /// in 8 bits whose places the product has.
    ///
    /// # Safety
    /// As [`Gpu::tiles`].
    pub(super) unsafe fn tiles_into(&'static self, out: &Tensor, tiles: &Tiles, copy: Option<Rows>) -> Result<bool> {
        let parts = tiles.columns / PLAIN;
        // Rows that others are added to, or that begin such a chain, in 16 bits.
        let begins = tiles.bias != 0 && tiles.scales.is_none();
        let asked = !tiles.gated && parts <= PARTS && parts.is_multiple_of(2) && (tiles.residual != 0 || begins);
        let sums = match asked && tiles.kept(self).is_some() {
            true => Some(transfer::empty(self, DType::F32, &[tiles.rows, 2 * parts])?),
            false => None,
        };
        let leave = sums.as_ref().map_or(Ok(0), |sums| place(sums).map(|(_, at)| at))?;
        // SAFETY: as here; the sums are as many as the result has rows and tiles across.
        let done = unsafe { self.tiles(tiles, leave)? };
        if done {
            out.keep_sums(sums.map(|sums| Sums::Rows(Box::new(Left { sums, copy }))));
        }
        Ok(done)
    }

    /// Computes a product; false where this kernel does not take it, and nothing was done. Where `leave` is not 0, the sums
    /// of the result's rows and of their squares go there, f32 `[rows, tiles across, 2]`.
    ///
    /// # Safety
    /// The addresses are of this GPU and reach as far as the sizes say.
    pub(super) unsafe fn tiles(&self, tiles: &Tiles, leave: u64) -> Result<bool> {
        let Some(kept) = tiles.kept(self) else { return Ok(false) };
        let Tiles { rows, depth, columns, dtype, gated, .. } = *tiles;
        self.bind()?;
        let kind = tiles.operand();
        let bytes = kind.map_or(1, DType::bytes);
        let deep = DEPTH / bytes;
        let x = self.matrix(kind, tiles.x, &[depth, rows], &[deep, ROWS])?;
        let weights = columns * if gated { 2 } else { 1 };
        let weight = self.matrix(kind, tiles.weight, &[depth, weights], &[deep, kept])?;
        // Of the result a group of four warps has 64 rows.
        let part = [if kept % 64 == 0 { 64 } else { 32 }, ROWS / 2];
        let bytes_at = |at| self.matrix(None, at, &[columns, rows], &[kept, ROWS / 2]);
        let out = match (gated, kind) {
            (true, None) => bytes_at(tiles.narrow[0])?,
            _ => self.matrix(Some(dtype), tiles.out, &[columns, rows], &part)?,
        };
        let copy = match tiles.narrow[0] {
            0 => out,
            at => bytes_at(at)?,
        };
        let residual = match tiles.residual {
            0 => out,
            at => self.matrix(Some(dtype), at, &[columns, rows], &part)?,
        };
        let (name, width) = match (gated, kind) {
            (true, Some(_)) => ("gated", GATED),
            (true, None) => ("gated_narrow", GATED),
            (false, Some(_)) if tiles.narrow[0] != 0 => ("added_copied", PLAIN),
            (false, Some(_)) if tiles.residual != 0 => ("added", PLAIN),
            (false, None) if tiles.residual != 0 => ("added_narrow", PLAIN),
            // The sums of the result's rows are left.
            (false, Some(_)) if leave != 0 => ("begun", PLAIN),
            (false, Some(_)) => ("plain", PLAIN),
            (false, None) => ("plain_narrow", PLAIN),
        };
        let kernel = self.kernel_for(Family::Tiles, width, name, Some(dtype), SHARED)?;
        let (down, across) = (rows.div_ceil(ROWS), columns / kept);
        let grid = [(down * across).min(self.multiprocessors as usize) as u32, 1, 1];
        // A weight that is much larger than the input is read once, else the input.
        let row_first = weights <= 2 * rows;
        let plan = [rows, columns, depth / deep, down, across, usize::from(row_first)].map(|size| size as i32);
        let [xs, ws] = tiles.scales.unwrap_or_default();
        let scales = Scales([xs, ws, tiles.narrow[1]]);
        let norm = match tiles.norm {
            Some(RowNorm { sums, parts, eps }) => Norm { sums, leave, parts: parts as i32, eps },
            None => Norm { sums: 0, leave, parts: 0, eps: 0.0 },
        };
        self.note("tiles", || tiles.work());
        // SAFETY: the caller vouches for the addresses; the copy engine stays within what was described to it.
        unsafe {
            let arguments: [&dyn Argument; 9] =
                [&x, &weight, &residual, &out, &copy, &tiles.bias, &scales, &plan, &norm];
            self.launch("tiles", kernel, grid, 384, SHARED as u32, &arguments)?;
        }
        Ok(true)
    }
}
