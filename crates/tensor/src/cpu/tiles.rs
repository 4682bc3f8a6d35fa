//! The block product in AMX tiles. Rows are [packed](super::rows) as they are read: by what wrote them, before the product,
//! or by each task a slice of depth at a time. Those of a convolution a task copies once into memory of its own, padding
//! included, where what a tap sees from neighbouring results lies at one distance.
//!
//! Bound: the tile unit; what takes its time is bringing rows from the second-level cache, and the accumulators' way to
//! memory and back between slices. All that tiles touch begins with a line of the cache.

use super::amx::{self, Fetch, Left, Tiles};
use super::columns::PackedColumns;
use super::gemm::{Product, Tile};
use super::lines::Lines;
use super::micro::NR;
use super::rows::{PackedRows, Rows, pack_group};
use super::split::{NUMBERS, thirds_of_panel};
use std::cell::RefCell;
use std::ops::Range;
use std::time::Instant;

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
const STAGED_DEPTH: usize = 2304;
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
pub(crate) fn most_columns(right: &PackedColumns, parts: usize) -> usize {
    if right.depth.div_ceil(PAIR) * parts > DEPTH { COLUMN_BLOCK } else { 4 * COLUMN_BLOCK }
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    staged: Staged,
    line: Lines,
    packed: Lines,
    blocks: Lines,
    pace: Pace,
    columns: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// The left-hand side of a product.
pub(crate) enum Operand<'a, R> {
    /// All rows were packed before.
    Packed(&'a PackedRows),
    /// Rows as they lie, which each task copies.
    Lying(&'a R),
}

/// Where a task's rows are read.
enum Side<'a> {
    Packed(&'a PackedRows),
    Staged(&'a Staged),
    /// As this task packs them, slice by slice.
    Here,
}

/// A task's panels of columns: as they lie, or where whole f32 is multiplied in three parts a slice of one panel at a time, which
/// is split here.
struct Panels<'a> {
    right: &'a PackedColumns,
    halves: usize,
    /// The task's first panel of each half.
    first: [usize; 2],
    /// Where f32 is split, room for the parts of a slice of a panel of each half, and how much each has.
    thirds: Option<(&'a mut [u32], usize)>,
}

impl Panels<'_> {
    /// Where a unit's columns lie in memory, or end.
    fn lying(&self, panel: usize, half: usize, unit: usize) -> *const u32 {
        // A number of f32 is half a unit of its parts.
        let unit = if self.thirds.is_some() { self.right.depth.min(unit * PAIR) } else { unit };
        self.right.panel(self.first[half] + panel, unit)
    }

    /// Numbers of 32 bits that so many units of a panel take in memory.
    fn lying_in(&self, units: usize) -> usize {
        units * NR * if self.thirds.is_some() { PAIR } else { self.right.parts() }
    }

    /// Makes a slice of a panel of each half ready to be read.
    fn prepare(&mut self, panel: usize, slice: &Range<usize>) {
        let numbers = self.right.depth.min(slice.end * PAIR) - self.right.depth.min(slice.start * PAIR);
        for half in 0..self.halves {
            let columns = self.lying(panel, half, slice.start).cast();
            if let Some((thirds, room)) = &mut self.thirds {
                thirds_of_panel(columns, numbers, &mut thirds[half * *room..][..*room]);
            }
        }
    }

    /// Where a slice that is ready is read, `from` units into it.
    fn at(&self, panel: usize, half: usize, slice: &Range<usize>, from: usize) -> *const u32 {
        match &self.thirds {
            Some((thirds, room)) => thirds[half * room + from * NR * 3..].as_ptr(),
            None => self.lying(panel, half, slice.start + from),
        }
    }
}

/// How the blocks of a panel are made, which does not change what they become: each sum is done in the same order.
#[derive(Clone, Copy)]
struct Way {
    /// Steps that are done of all groups of rows that are taken together before the next ones.
    steps: usize,
    /// Groups of rows that are taken together.
    groups: usize,
    fetch: Fetch,
}

/// Group by group, each as deep as a slice.
const DEEP: Way = Way { steps: amx::MOST_STEPS, groups: 1, fetch: Fetch::Near };
/// As many steps of columns as half a first-level cache holds, where they stay for all groups while rows pass it by.
const SHALLOW: Way = Way { steps: 12, groups: 4, fetch: Fetch::Past };

/// Finds out which of two ways is quicker on this thread's core, which changes from one moment to the next: shallow by a
/// quarter where the caches are its own, deep by a tenth where it shares them with another thread. Rows of windows, which
/// overlap, and numbers in parts always go deep.
#[derive(Default)]
struct Pace {
    /// What each took lately, in nanoseconds for a unit of depth of a block.
    taken: [f32; 2],
    panels: usize,
}

impl Pace {
    /// Panels after which the slower way is tried again.
    const AGAIN: usize = 16;
    const WAYS: [Way; 2] = [DEEP, SHALLOW];

    fn choose(&mut self) -> usize {
        self.panels += 1;
        // Both are tried at first.
        let best = usize::from(self.taken[1] < self.taken[0]);
        if self.panels.is_multiple_of(Self::AGAIN) { 1 - best } else { best }
    }

    fn note(&mut self, way: usize, taken: f32) {
        let known = &mut self.taken[way];
        *known = if *known == 0.0 { taken } else { 0.5 * (*known + taken) };
    }
}

/// One task of the block product. Each block of [`amx::ROWS`] rows and [`NR`] columns, with `halves` 2 beside its twin, goes
/// to `finish` while it is in a cache. Both sides are multiplied in `parts`: as many as columns lie in, or 3 of whole f32.
pub(crate) fn product<T: Product, R: Rows<T>>(
    left: &Operand<R>,
    (right, parts): (&PackedColumns, usize),
    rows: Range<usize>,
    columns: Range<usize>,
    halves: usize,
    finish: &impl Fn(Tile),
) {
    SCRATCH.with_borrow_mut(|scratch| {
        // SAFETY: columns are packed for tiles where there are tiles.
        let tiles = unsafe { Tiles::configure() };
        let Scratch { staged, line, packed, blocks, pace, columns: thirds } = scratch;
        // Whole f32, whose columns are split here.
        let splits = parts != right.parts();
        let all_units = if splits { right.depth.div_ceil(NUMBERS) * amx::STEP } else { right.units() };
        // Nothing is read beyond whole steps.
        let whole = right.depth == right.units() * PAIR;
        let side = match left {
            Operand::Packed(rows) => Side::Packed(rows),
            Operand::Lying(left) if whole && left.task_rows().is_some() && left.stage(rows.clone(), staged) => {
                Side::Staged(staged)
            }
            Operand::Lying(_) => Side::Here,
        };
        let (groups, most_depth) = match &side {
            Side::Staged(staged) => (staged.ends.len(), STAGED_DEPTH / parts),
            _ => (rows.len().div_ceil(amx::ROWS), DEPTH / parts),
        };
        let count_of_panels = columns.len().div_ceil(NR);
        let slices = all_units.div_ceil(most_depth);
        let depth = all_units.div_ceil(slices).next_multiple_of(amx::STEP);
        // Blocks need places of their own where they wait for the next slice.
        let places = groups * if slices > 1 { count_of_panels } else { 1 };
        let blocks = blocks.floats(places * halves * BLOCK);
        let here = matches!(side, Side::Here);
        let packed = packed.get(if here { groups * amx::ROWS * depth * parts } else { 0 });
        let room = depth * NR * parts;
        let thirds = splits.then(|| (thirds.get(halves * room), room));
        let first = [0, 1].map(|half| (half * right.columns / halves + columns.start) / NR);
        let mut panels = Panels { right, halves, first, thirds };
        for unit in (0..all_units).step_by(depth) {
            let count = depth.min(all_units - unit);
            if let (Operand::Lying(left), Side::Here) = (left, &side) {
                let from = unit * PAIR;
                let elements = from..right.depth.min(from + count * PAIR);
                for (group, out) in packed.chunks_exact_mut(amx::ROWS * count * parts).enumerate().take(groups) {
                    let first = rows.start + group * amx::ROWS;
                    pack_group(*left, first..rows.end.min(first + amx::ROWS), elements.clone(), parts, line, out);
                }
            }
            let slice = unit..unit + count;
            for panel in 0..count_of_panels {
                panels.prepare(panel, &slice);
                // The block of a group and half, from these of the slice's units.
                let multiply = |group: usize, half: usize, units: Range<usize>, c: &mut [f32], fetch: Fetch| {
                    let (from, steps) = (unit + units.start, units.len() / amx::STEP);
                    let here = packed.as_ptr().wrapping_add((group * count + units.start) * amx::ROWS * parts);
                    let (a, at) = side_at(&side, rows.start / amx::ROWS + group, group, from, (here, parts));
                    let b = panels.at(panel, half, &slice, units.start);
                    // The next panel, or the first one's next slice, spread over the groups.
                    let next = match panel + 1 < count_of_panels {
                        true => panels.lying(panel + 1, half, slice.start),
                        false => panels.lying(0, half, slice.end),
                    };
                    let done = (group * count + units.start) / amx::STEP * (amx::AHEAD / 4) * parts;
                    let ahead = if done < panels.lying_in(count) { next.wrapping_add(done) } else { b };
                    let c = c[..BLOCK].as_mut_ptr();
                    // SAFETY: both sides hold these steps, `c` is a block.
                    unsafe {
                        match parts {
                            1 => tiles.product(&at[..steps], a, b, c, from > 0, ahead, fetch),
                            3 => tiles.product_thirds(&at[..steps], a, b, c, from > 0, ahead),
                            _ => tiles.product_split(&at[..steps], a, b, c, from > 0, ahead),
                        }
                    }
                };
                let choice = (parts == 1 && !matches!(side, Side::Staged(_))).then(|| (pace.choose(), Instant::now()));
                let way = choice.map_or(DEEP, |(way, _)| Pace::WAYS[way]);
                for together in (0..groups).step_by(way.groups) {
                    let these = together..groups.min(together + way.groups);
                    let first = if slices > 1 { panel * groups + together } else { 0 };
                    let blocks = &mut blocks[first * halves * BLOCK..][..these.len() * halves * BLOCK];
                    let most = way.steps * amx::STEP;
                    for (from, half) in
                        (0..count).step_by(most).flat_map(|from| (0..halves).map(move |half| (from, half)))
                    {
                        for group in these.clone() {
                            let c = &mut blocks[((group - together) * halves + half) * BLOCK..];
                            multiply(group, half, from..count.min(from + most), c, way.fetch);
                        }
                    }
                    if unit + count < all_units {
                        continue;
                    }
                    for group in these {
                        let block = &mut blocks[(group - together) * halves * BLOCK..][..halves * BLOCK];
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
                if let Some((way, begin)) = choice {
                    pace.note(way, begin.elapsed().as_nanos() as f32 / (groups * halves * count) as f32);
                }
            }
        }
    });
}

/// A group's rows from `unit` of their depth on, and where their steps lie: it is the `whole`th of all rows, `group`th of the
/// task's.
fn side_at<'a>(
    side: &Side<'a>,
    whole: usize,
    group: usize,
    unit: usize,
    (here, parts): (*const u32, usize),
) -> (Left, &'a [usize]) {
    let packed: &[usize] = match parts {
        1 => &amx::PACKED,
        2 => &amx::PACKED_SPLIT,
        _ => &amx::PACKED_THIRDS,
    };
    match side {
        Side::Staged(staged) => {
            // Where the last group has one tile only, it is read twice.
            let at = |tile: usize| staged.memory.at(staged.tiles[tile.min(staged.tiles.len() - 1)]);
            let left = Left { tiles: [at(2 * group), at(2 * group + 1)], row: staged.row, low: staged.low };
            (left, &staged.steps[unit / amx::STEP..])
        }
        Side::Packed(rows) => (Left::packed(rows.at(whole, unit / amx::STEP)), packed),
        Side::Here => (Left::packed(here), packed),
    }
}
