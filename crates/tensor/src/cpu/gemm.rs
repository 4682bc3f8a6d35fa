//! The block product behind linear layers, convolutions and attention: packed rows times packed columns.
//!
//! Weights are packed once, at load ([`PackedColumns`]). Rows are packed block by block into memory of
//! the thread, straight from where they lie ([`Rows`]): a convolution gathers its window there, so no
//! im2col matrix exists. A task is a block of rows times a range of columns; it accumulates over the
//! whole depth in f32 and hands the finished tile to an epilogue.
//!
//! Bound: floating-point units for more than some hundred rows, else the weights' bytes.

use super::columns::PackedColumns;
use super::epilogue::settle;
use super::isa::{Isa, isa};
use super::lines::{Lines, fetch};
use super::micro::{Kernel, MR, NR, Wide, kernel_bf16, kernel_f32, kernel_wide, widen};
use super::rows::{MatrixRows, PackedRows, Rows};
use super::tiles;
use crate::ops::Products;
use crate::tensor::Element;
use crate::{DType, Result};
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a task, which share a panel of columns: panels arrive slower than they are multiplied. What is packed of them
/// (`ROW_BLOCK * DEPTH * 4` bytes, twice as many where pairs are widened) stays in the second-level cache.
const ROW_BLOCK: usize = 16 * MR;
/// Units of depth packed at a time: one panel of columns (`DEPTH * NR * 4` bytes) about fills the first-level cache.
pub(crate) const DEPTH: usize = 256;
/// Columns of a task: repacking rows for each range of columns costs 1 in `2 * COLUMN_BLOCK / 32` at most.
const COLUMN_BLOCK: usize = 640;
/// Fewer columns than these make repacking dear: where so many threads share so little work tasks have half the rows.
const FEW_COLUMNS: usize = 128;

/// Tasks that may each pack the same rows: it costs less than to write all of them to memory and read them from there.
const FEW: usize = 2;

/// An element type with a block product.
pub(crate) trait Product: Element {
    /// Elements in a 32-bit unit of depth.
    const PER_UNIT: usize;
    /// The kernel for a tile of `ROWS` rows, 8 or 12, packed or as they lie.
    fn kernel<const ROWS: usize, const PACKED: bool>() -> Kernel;
    /// The kernel for packed rows whose pairs were [widened](widen), where it is quicker.
    fn wide_kernel<const ROWS: usize>() -> Option<Wide> {
        None
    }
    fn unit(parts: [Self; 2]) -> u32;
    /// Whether its products run in AMX tiles.
    fn tiled() -> bool {
        false
    }
    /// As [`Product::unit`] from numbers that are not negative, in fewer operations: a tie rounds up.
    fn unit_of_weights(parts: [f32; 2]) -> u32;
}

impl Product for f32 {
    const PER_UNIT: usize = 1;
    fn kernel<const ROWS: usize, const PACKED: bool>() -> Kernel {
        kernel_f32::<ROWS, PACKED>()
    }
    #[inline(always)]
    fn unit(parts: [f32; 2]) -> u32 {
        parts[0].to_bits()
    }
    #[inline(always)]
    fn unit_of_weights(parts: [f32; 2]) -> u32 {
        parts[0].to_bits()
    }
}

impl Product for bf16 {
    const PER_UNIT: usize = 2;
    fn kernel<const ROWS: usize, const PACKED: bool>() -> Kernel {
        kernel_bf16::<ROWS, PACKED>()
    }
    fn wide_kernel<const ROWS: usize>() -> Option<Wide> {
        kernel_wide::<ROWS>()
    }
    #[inline(always)]
    fn unit(parts: [bf16; 2]) -> u32 {
        u32::from(parts[0].to_bits()) | u32::from(parts[1].to_bits()) << 16
    }
    fn tiled() -> bool {
        isa() == Isa::Amx
    }
    #[inline(always)]
    fn unit_of_weights(parts: [f32; 2]) -> u32 {
        let rounded = parts.map(|x| x.to_bits().wrapping_add(0x8000));
        rounded[0] >> 16 | rounded[1] & 0xffff_0000
    }
}

/// Units that `depth` elements take.
pub(crate) fn units<T: Product>(depth: usize) -> usize {
    depth.div_ceil(T::PER_UNIT)
}

/// Whether products of this type are done in parts.
pub(crate) fn splits(dtype: DType, products: Products) -> bool {
    parts(dtype, products) == 2
}

/// In how many parts products of this type are done: whole f32 in three where there are tiles, of which six products are all
/// that a f32 has room for. Rows have no say, since their bytes must not depend on how many others are there.
pub(crate) fn parts(dtype: DType, products: Products) -> usize {
    match (dtype, products) {
        (DType::F32, _) if isa() != Isa::Amx => 1,
        (DType::F32, Products::Whole) => 3,
        (DType::F32, Products::InParts) => 2,
        _ => 1,
    }
}

/// A finished tile: `rows` rows of `stride` numbers, of which the first `columns` count.
pub(crate) struct Tile<'a> {
    pub(crate) row: usize,
    pub(crate) rows: usize,
    pub(crate) column: usize,
    pub(crate) columns: usize,
    pub(crate) stride: usize,
    /// Distance to the same number of the tile's twin half a matrix further on (see [`product`]).
    pub(crate) twin: usize,
    pub(crate) values: &'a mut [f32],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

#[derive(Default)]
struct Scratch {
    staged: Lines,
    packed: Lines,
    wide: Lines,
    wide_columns: Lines,
    tile: Lines,
}

/// `rows` rows times packed columns; every tile goes to `finish`, which may run on any thread.
/// With `halves` 2, columns `j` and `j + columns / 2` arrive in one tile (`columns / 2` must be a multiple of [`NR`]).
pub(crate) fn product<T: Product>(
    rows: usize,
    left: &impl Rows<T>,
    right: &PackedColumns,
    halves: usize,
    finish: impl Fn(Tile) + Sync,
) -> Result<()> {
    crate::meter::count(rows, right.depth, right.columns);
    let thirds = right.parts() == 1 && parts(T::DTYPE, Products::Whole) == 3 && left.task_rows().is_none();
    if T::tiled() || right.parts() == 2 || thirds {
        let parts = if thirds { 3 } else { right.parts() };
        let blocks = tiled_blocks(rows, left.task_rows(), (right, parts), halves);
        // Where few tasks read the same rows each packs them; windows are staged or packed by each.
        let often = right.columns / halves > FEW * blocks.1;
        if often && left.task_rows().is_none() {
            let packed = PackedRows::new(left, rows, right.depth, parts)?;
            tiled_product::<T, _>(
                rows,
                tiles::Operand::<MatrixRows<T>>::Packed(&packed),
                (right, parts),
                halves,
                blocks,
                finish,
            );
        } else {
            tiled_product::<T, _>(rows, tiles::Operand::Lying(left), (right, parts), halves, blocks, finish);
        }
        return Ok(());
    }
    let mut blocks = divide(rows, right.columns, halves, (ROW_BLOCK, COLUMN_BLOCK), 8);
    if blocks.1 * halves < FEW_COLUMNS {
        blocks = divide(rows, right.columns, halves, (ROW_BLOCK / 2, COLUMN_BLOCK), 8);
    }
    each_task(rows, right.columns / halves, blocks, |rows, columns| {
        SCRATCH.with_borrow_mut(|scratch| {
            let (row, rows, column, columns) = (rows.start, rows.len(), columns.start, columns.len());
            task_product::<T>(left, right, (row, rows), (column, columns), halves, scratch);
            let twin = columns.next_multiple_of(NR);
            let stride = twin * halves;
            let values = scratch.tile.floats(rows.next_multiple_of(MR) * stride);
            finish(Tile { row, rows, column, columns, stride, twin, values });
        });
    });
    Ok(())
}

/// Whether so few tasks of a product in tiles read the same rows of windows that each may as well normalise them.
pub(crate) fn seldom_read(rows: usize, right: &PackedColumns) -> bool {
    right.columns <= FEW * tiled_blocks(rows, Some(tiles::ROW_BLOCK), (right, right.parts()), 1).1
}

/// As [`product`] of rows that were packed for tiles.
pub(crate) fn product_of_packed<T: Product>(
    left: &PackedRows,
    right: &PackedColumns,
    halves: usize,
    finish: impl Fn(Tile) + Sync,
) {
    let rows = left.count();
    assert!(left.depth() == right.depth && T::tiled() && right.parts() == 1);
    crate::meter::count(rows, right.depth, right.columns);
    let right = (right, right.parts());
    let blocks = tiled_blocks(rows, None, right, halves);
    tiled_product::<T, _>(rows, tiles::Operand::<MatrixRows<T>>::Packed(left), right, halves, blocks, finish);
}

/// Rows and columns of a task in tiles.
fn tiled_blocks(
    rows: usize,
    task_rows: Option<usize>,
    (right, parts): (&PackedColumns, usize),
    halves: usize,
) -> (usize, usize) {
    // A task brings more rows into its cache than without tiles, which fewer tasks repeat less.
    let blocks = (task_rows.unwrap_or(tiles::ROW_BLOCK), tiles::most_columns(right, parts));
    divide(rows, right.columns, halves, blocks, 4)
}

/// All tasks of a product in tiles.
fn tiled_product<T: Product, R: Rows<T>>(
    rows: usize,
    left: tiles::Operand<R>,
    right: (&PackedColumns, usize),
    halves: usize,
    blocks: (usize, usize),
    finish: impl Fn(Tile) + Sync,
) {
    each_task(rows, right.0.columns / halves, blocks, |rows, columns| {
        tiles::product::<T, R>(&left, right, rows, columns, halves, &finish);
    });
}

/// Rows and columns of a task, at most so many, and so few columns that there are `least` tasks for each thread where that can
/// be: how columns are divided does not change the result.
fn divide(
    rows: usize,
    columns: usize,
    halves: usize,
    (row_block, most_columns): (usize, usize),
    least: usize,
) -> (usize, usize) {
    let tasks = least * rayon::current_num_threads();
    let ranges = columns.div_ceil(most_columns).max(tasks.div_ceil(rows.div_ceil(row_block).max(1)));
    (row_block, (columns / halves).div_ceil(ranges).next_multiple_of(NR))
}

/// Does all tasks of a product.
fn each_task(
    rows: usize,
    columns: usize,
    (row_block, column_block): (usize, usize),
    work: impl Fn(Range<usize>, Range<usize>) + Sync,
) {
    let row_blocks = rows.div_ceil(row_block);
    // Columns outermost: their slab stays in the last-level cache while the rows pass.
    (0..row_blocks * columns.div_ceil(column_block)).into_par_iter().with_max_len(1).for_each(|task| {
        let (column, row) = (task / row_blocks * column_block, task % row_blocks * row_block);
        work(row..rows.min(row + row_block), column..columns.min(column + column_block));
        settle();
    });
}

/// One task: packs its rows a slice of depth at a time and multiplies them with every panel of its columns.
fn task_product<T: Product>(
    left: &impl Rows<T>,
    right: &PackedColumns,
    (row, rows): (usize, usize),
    (column, columns): (usize, usize),
    halves: usize,
    scratch: &mut Scratch,
) {
    let wide = T::wide_kernel::<MR>();
    let kernel = wide.as_ref().map_or(T::kernel::<MR, true>(), |wide| wide.kernel);
    let groups = rows.div_ceil(MR);
    let panels = columns.div_ceil(NR);
    let stride = panels * NR * halves;
    let tile = scratch.tile.floats(groups * MR * stride);
    let packed = scratch.packed.get(groups * MR * DEPTH);
    let staged = scratch.staged.get(MR * DEPTH);
    let wide_rows = scratch.wide.get(if wide.is_some() { 2 * packed.len() } else { 0 });
    let columns_widen = wide.as_ref().is_some_and(|wide| wide.columns);
    let wide_columns = scratch.wide_columns.get(if columns_widen { 2 * NR * DEPTH } else { 0 });
    let panel_at = |i: usize, unit| right.panel((i / panels * right.columns / halves + column) / NR + i % panels, unit);
    for unit in (0..right.units()).step_by(DEPTH) {
        let count = DEPTH.min(right.units() - unit);
        for group in 0..groups {
            let packed = &mut packed[group * MR * count..][..MR * count];
            pack_rows::<T, MR>(
                left,
                row + group * MR,
                (row + rows).min(row + (group + 1) * MR),
                right.depth,
                unit,
                count,
                staged,
                packed,
            );
            if wide.is_some() {
                widen(packed, MR, &mut wide_rows[2 * group * MR * count..][..2 * MR * count]);
            }
        }
        let (all, units_of) = if wide.is_some() { (&*wide_rows, 2) } else { (&*packed, 1) };
        for i in 0..halves * panels {
            let b = panel_at(i, unit);
            let next = if i + 1 < halves * panels { panel_at(i + 1, unit) } else { panel_at(0, unit + count) };
            let (b, units) = if columns_widen {
                // SAFETY: a panel holds `NR` columns of each of these units.
                widen(unsafe { std::slice::from_raw_parts(b, count * NR) }, NR, &mut wide_columns[..2 * count * NR]);
                (wide_columns.as_ptr(), 2 * count)
            } else {
                (b, count)
            };
            let share = (count * NR).div_ceil(groups);
            for group in 0..groups {
                fetch(next.wrapping_add(group * share), share);
                let c = tile[group * MR * stride + i * NR..].as_mut_ptr();
                // SAFETY: both sides hold `units` units; the tile has MR rows of `stride` numbers here.
                unsafe { kernel(units, all[units_of * group * MR * count..].as_ptr(), MR, b, c, stride, unit > 0) };
            }
        }
    }
}

/// Packs rows `first..end` (at most `ROWS`; the missing ones become zero), units `unit .. unit + count`.
pub(crate) fn pack_rows<T: Product, const ROWS: usize>(
    left: &impl Rows<T>,
    first: usize,
    end: usize,
    depth: usize,
    unit: usize,
    count: usize,
    staged: &mut [u32],
    packed: &mut [u32],
) {
    let from = unit * T::PER_UNIT;
    let elements = (count * T::PER_UNIT).min(depth - from);
    let mut lines = [staged.as_ptr(); ROWS];
    for (r, staged) in staged.chunks_exact_mut(count).take(ROWS).enumerate() {
        lines[r] = staged.as_ptr();
        if first + r >= end {
            staged.fill(0);
            continue;
        }
        // An odd last pair lacks its second half in place.
        if elements == count * T::PER_UNIT
            && let Some(line) = left.in_place(first + r, from, elements)
        {
            lines[r] = line.as_ptr().cast();
            continue;
        }
        if let Some(last) = staged.last_mut() {
            *last = 0;
        }
        // SAFETY: a line of u32 is `count * PER_UNIT` elements of T, aligned for it.
        let line = unsafe { std::slice::from_raw_parts_mut(staged.as_mut_ptr().cast::<T>(), elements) };
        left.copy(first + r, from, line);
    }
    // SAFETY: every line has `count` units, in `staged` or in place.
    unsafe { interleave(lines, count, packed) };
}

/// Transposes `ROWS` lines (a multiple of four) of `count` units into `count` groups of `ROWS`.
///
/// # Safety
/// Each line has `count` units, aligned or not.
pub(crate) unsafe fn interleave<const ROWS: usize>(lines: [*const u32; ROWS], count: usize, packed: &mut [u32]) {
    assert!(packed.len() == ROWS * count);
    // Whole groups of four units go through registers where there are any.
    let done = if cfg!(target_arch = "x86_64") { count / 4 * 4 } else { 0 };
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        for unit in (0..done).step_by(4) {
            for r in (0..ROWS).step_by(4) {
                // SAFETY: SSE2 is part of x86-64; all addresses lie in the lines and in `packed`.
                unsafe {
                    let line = |i: usize| _mm_castsi128_ps(_mm_loadu_si128(lines[r + i].add(unit).cast()));
                    let (mut a, mut b, mut c, mut d) = (line(0), line(1), line(2), line(3));
                    _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
                    for (i, x) in [a, b, c, d].into_iter().enumerate() {
                        _mm_storeu_si128(packed.as_mut_ptr().add((unit + i) * ROWS + r).cast(), _mm_castps_si128(x));
                    }
                }
            }
        }
    }
    for unit in done..count {
        for (r, line) in lines.iter().enumerate() {
            // SAFETY: as the caller promised.
            packed[unit * ROWS + r] = unsafe { line.add(unit).read_unaligned() };
        }
    }
}
