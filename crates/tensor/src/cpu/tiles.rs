//! The block product in AMX tiles. A task reads its rows where they lie; those of a convolution it copies once into
//! memory of its own, padding included, where what a tap sees from neighbouring results lies at one distance; what has no
//! such order is copied a slice of depth at a time.
//!
//! Bound: the tile unit; what takes its time is bringing rows from the second-level cache, and the accumulators' way to
//! memory and back between slices. All that tiles touch begins with a line of the cache.

use super::amx::{self, Left, Tiles};
use super::gemm::{PackedColumns, Product, Rows, Tile};
use super::lines::Lines;
use super::micro::NR;
use super::split::{SplitRows, split_rows};
use std::cell::RefCell;
use std::ops::Range;

/// Rows of a tile.
pub(crate) const TILE: usize = amx::ROWS / 2;
/// Rows of a task: so many share a panel of columns, which arrive much slower than tiles compute.
pub(crate) const ROW_BLOCK: usize = 8 * amx::ROWS;
/// Columns of a task whose accumulators wait for the next slice of depth, in half a megabyte.
const COLUMN_BLOCK: usize = 512;
/// Most units of depth between two trips of the accumulators to memory. Deeper slices make fewer trips; both sides of a
/// slice and what is fetched ahead fill half of a second-level cache of 2 MB.
const DEPTH: usize = 640;
/// As [`DEPTH`] for rows that were copied.
const STAGED_DEPTH: usize = 960;
/// Elements of a unit.
const PAIR: usize = 2;
/// Numbers of a block: what one product makes.
const BLOCK: usize = amx::ROWS * NR;

/// Rows that lie at one distance within each tile of [`TILE`].
#[derive(Default)]
pub(crate) struct Staged {
    pub(crate) memory: Lines,
    /// Where each tile begins, in units.
    pub(crate) tiles: Vec<usize>,
    /// Where each step of depth lies, from there, in bytes.
    pub(crate) steps: Vec<usize>,
    /// Units from one row to the next.
    pub(crate) row: usize,
    /// Units from there to the second parts of numbers that are split.
    pub(crate) low: usize,
    /// A line before it is split.
    pub(crate) line: Lines,
    /// Which rows of the groups of two tiles are which results, group by group.
    pub(crate) runs: Vec<Run>,
    /// Where the runs of each group end.
    pub(crate) ends: Vec<usize>,
}

impl Staged {
    fn runs(&self, group: usize) -> &[Run] {
        let from = if group == 0 { 0 } else { self.ends[group - 1] };
        &self.runs[from..self.ends[group]]
    }
}

/// Neighbouring rows of a group that are neighbouring results.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// Its first row in the group.
    pub(crate) from: usize,
    /// Its first result.
    pub(crate) row: usize,
    pub(crate) rows: usize,
}

/// Most columns of a task.
pub(crate) fn most_columns(right: &PackedColumns) -> usize {
    if right.units() * right.parts() > DEPTH { COLUMN_BLOCK } else { 4 * COLUMN_BLOCK }
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    staged: Staged,
    line: Lines,
    packed: Lines,
    blocks: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Where a task's rows are read.
enum Side<'a, R> {
    InPlace(&'a R),
    Staged(&'a Staged),
    /// In parts, as all rows of the matrix were before.
    Split(&'a SplitRows),
    Packed,
}

/// One task of the block product. Each block of [`amx::ROWS`] rows and [`NR`] columns, with `halves` 2 beside its twin, goes
/// to `finish` while it is in the first-level cache. Where columns are in two parts so are rows, which `split` holds unless
/// they are windows.
pub(crate) fn product<T: Product, R: Rows<T>>(
    left: &R,
    right: &PackedColumns,
    split: Option<&SplitRows>,
    rows: Range<usize>,
    columns: Range<usize>,
    halves: usize,
    finish: &impl Fn(Tile),
) {
    SCRATCH.with_borrow_mut(|scratch| {
        // SAFETY: columns are packed for tiles where there are tiles.
        let tiles = unsafe { Tiles::configure() };
        let Scratch { staged, line, packed, blocks } = scratch;
        let parts = right.parts();
        // Nothing is read beyond whole steps and, in place, whole groups of rows.
        let whole = right.depth == right.units() * PAIR;
        let in_place = parts == 1 && left.stride().is_some() && rows.len().is_multiple_of(amx::ROWS);
        let side = match split {
            Some(rows) => Side::Split(rows),
            None if whole && in_place => Side::InPlace(left),
            None if whole && left.stage(rows.clone(), staged) => Side::Staged(staged),
            None => Side::Packed,
        };
        let (groups, most_depth) = match &side {
            Side::Staged(staged) => (staged.ends.len(), STAGED_DEPTH / parts),
            _ => (rows.len().div_ceil(amx::ROWS), DEPTH / parts),
        };
        let panels = columns.len().div_ceil(NR);
        let slices = right.units().div_ceil(most_depth);
        let depth = right.units().div_ceil(slices).next_multiple_of(amx::STEP);
        // Blocks need places of their own where they wait for the next slice.
        let places = if slices > 1 { groups * panels } else { 1 };
        let blocks = blocks.floats(places * halves * BLOCK);
        let packed = packed.get(groups * amx::ROWS * depth * parts);
        // So many groups fetch a whole panel.
        let fetching = NR * 4 / (amx::AHEAD / amx::STEP);
        for unit in (0..right.units()).step_by(depth) {
            let count = depth.min(right.units() - unit);
            if let Side::Packed = side {
                let from = unit * PAIR;
                let elements = from..right.depth.min(from + count * PAIR);
                for (group, out) in packed.chunks_exact_mut(amx::ROWS * count * parts).enumerate().take(groups) {
                    let first = rows.start + group * amx::ROWS;
                    let rows = first..rows.end.min(first + amx::ROWS);
                    match parts {
                        1 => pack(left, rows, elements.clone(), line.get(count), out),
                        _ => split_rows(left, rows, elements.clone(), line, out),
                    }
                }
            }
            for panel in 0..panels {
                for group in 0..groups {
                    let (a, steps) =
                        side_at(&side, &rows, group, unit, (&packed[group * amx::ROWS * count * parts..], parts));
                    let at = if slices > 1 { (panel * groups + group) * halves * BLOCK } else { 0 };
                    let block = &mut blocks[at..][..halves * BLOCK];
                    for (half, c) in block.chunks_exact_mut(BLOCK).enumerate() {
                        let first = (half * right.columns / halves + columns.start) / NR;
                        let b = right.panel(first + panel, unit);
                        // The next panel, or the first one's next slice, spread over the groups.
                        let ahead = match panel + 1 < panels {
                            true => b.wrapping_add(right.units() * NR * parts),
                            false => right.panel(first, unit).wrapping_add(count * NR * parts),
                        };
                        let ahead = match group < fetching {
                            true => ahead.wrapping_add(group * count / amx::STEP * (amx::AHEAD / 4) * parts),
                            false => b,
                        };
                        let steps = &steps[..count / amx::STEP];
                        // SAFETY: both sides hold these steps, `c` is a block.
                        unsafe {
                            match parts {
                                1 => tiles.product(steps, a, b, c.as_mut_ptr(), unit > 0, ahead),
                                _ => tiles.product_split(steps, a, b, c.as_mut_ptr(), unit > 0, ahead),
                            }
                        };
                    }
                    if unit + count < right.units() {
                        continue;
                    }
                    let mut finish_run = |run: &Run| {
                        let column = columns.start + panel * NR;
                        finish(Tile {
                            row: run.row,
                            rows: run.rows,
                            column,
                            columns: NR.min(columns.end - column),
                            stride: NR,
                            twin: BLOCK,
                            values: &mut block[run.from * NR..],
                        });
                    };
                    match &side {
                        Side::Staged(staged) => staged.runs(group).iter().for_each(finish_run),
                        _ => {
                            let row = rows.start + group * amx::ROWS;
                            finish_run(&Run { from: 0, row, rows: amx::ROWS.min(rows.end - row) });
                        }
                    }
                }
            }
        }
    });
}

/// A group's rows from `unit` of their depth on, and where their steps lie.
fn side_at<'a, T: Product, R: Rows<T>>(
    side: &Side<'a, R>,
    rows: &Range<usize>,
    group: usize,
    unit: usize,
    (packed, parts): (&[u32], usize),
) -> (Left, &'a [usize]) {
    match side {
        Side::InPlace(left) => {
            let row = left.stride().unwrap_or_default() / T::PER_UNIT;
            let first = left.in_place(rows.start + group * amx::ROWS, unit * T::PER_UNIT, 0);
            let a = first.map_or(std::ptr::null(), |line| line.as_ptr().cast::<u32>());
            (Left { tiles: [a, a.wrapping_add(TILE * row)], row, low: 0 }, &amx::IN_PLACE)
        }
        Side::Staged(staged) => {
            // Where the last group has one tile only, it is read twice.
            let at = |tile: usize| staged.memory.at(staged.tiles[tile.min(staged.tiles.len() - 1)]);
            let left = Left { tiles: [at(2 * group), at(2 * group + 1)], row: staged.row, low: staged.low };
            (left, &staged.steps[unit / amx::STEP..])
        }
        Side::Split(split) => {
            (Left::packed(split.at(rows.start / amx::ROWS + group, unit / amx::STEP)), &amx::PACKED_SPLIT)
        }
        Side::Packed if parts == 1 => (Left::packed(packed.as_ptr()), &amx::PACKED),
        Side::Packed => (Left::packed(packed.as_ptr()), &amx::PACKED_SPLIT),
    }
}

/// Copies a group of rows step after step ([`Left::packed`]), zeros where there are none.
fn pack<T: Product>(
    left: &impl Rows<T>,
    rows: Range<usize>,
    elements: Range<usize>,
    line: &mut [u32],
    out: &mut [u32],
) {
    for r in 0..amx::ROWS {
        line[elements.len() / T::PER_UNIT..].fill(0);
        match rows.start + r < rows.end {
            true => {
                // SAFETY: a line of u32 is at least as many elements of T, aligned for it.
                let line = unsafe { std::slice::from_raw_parts_mut(line.as_mut_ptr().cast::<T>(), elements.len()) };
                left.copy(rows.start + r, elements.start, line);
            }
            false => line.fill(0),
        }
        for (step, part) in line.chunks_exact(amx::STEP).enumerate() {
            out[(step * amx::ROWS + r) * amx::STEP..][..amx::STEP].copy_from_slice(part);
        }
    }
}
