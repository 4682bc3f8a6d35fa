//! The left-hand side of a product: rows wherever they lie, and rows of a matrix in the order in which tiles read them, groups
//! of [`ROWS`] and there step after step. Rows as they lie are some large number of bytes apart, often one that shares few sets of
//! a cache, and are fetched from afar line by line.
//!
//! Bound: memory, one reading and one writing of all rows, where many tasks would read each of them.

use super::SharedMut;
use super::amx::{ROWS, STEP};
use super::gemm::{Product, units};
use super::lines::Lines;
use super::split::{NUMBERS, split_rows};
use super::tiles::Staged;
use crate::Result;
use crate::storage::Block;
use crate::tensor::Element;
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Steps that are packed of one row after the other: they fill a quarter of a first-level cache.
const STEPS: usize = 8;

thread_local! {
    static LINE: RefCell<Lines> = RefCell::new(Lines::default());
}

/// The left-hand side, wherever it lies.
pub(crate) trait Rows<T>: Sync {
    /// Copies elements `from .. from + out.len()` of `row`, zeros where there are none.
    fn copy(&self, row: usize, from: usize, out: &mut [T]);

    /// Elements `from .. from + len` of `row` where they lie together as they are, which saves the copy.
    fn in_place(&self, _row: usize, _from: usize, _len: usize) -> Option<&[T]> {
        None
    }

    /// Rows of a task in AMX tiles, where these know better than others.
    fn task_rows(&self) -> Option<usize> {
        None
    }

    /// Copies rows so that tiles of AMX can read them, where they have such an order; says whether.
    fn stage(&self, _rows: Range<usize>, _staged: &mut Staged) -> bool {
        false
    }
}

/// Rows of a matrix in memory, `depth` elements each.
pub(crate) struct MatrixRows<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) depth: usize,
}

impl<T: Element> Rows<T> for MatrixRows<'_, T> {
    #[inline]
    fn copy(&self, row: usize, from: usize, out: &mut [T]) {
        let start = row * self.depth + from;
        out.copy_from_slice(&self.data[start..start + out.len()]);
    }

    #[inline]
    fn in_place(&self, row: usize, from: usize, len: usize) -> Option<&[T]> {
        self.data.get(row * self.depth + from..row * self.depth + from + len)
    }
}

/// Where rows lie that are packed or not, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// From a group of [`ROWS`] to the next.
    group: usize,
    /// From a row to the next.
    row: usize,
    /// From a line of [`NUMBERS`] to the next of its row.
    line: usize,
}

impl Place {
    /// One after the other, `width` elements each.
    pub(crate) fn plain(width: usize) -> Place {
        Place { group: ROWS * width, row: width, line: NUMBERS }
    }

    /// How many elements of a row lie together, from a whole line on.
    pub(crate) fn together(&self) -> usize {
        if self.line == NUMBERS { usize::MAX } else { NUMBERS }
    }

    /// Where an element of a row lies; those of its line lie behind it.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> usize {
        row / ROWS * self.group + row % ROWS * self.row + column / NUMBERS * self.line + column % NUMBERS
    }
}

/// All rows of a matrix, packed.
pub(crate) struct PackedRows {
    block: Block,
    count: usize,
    depth: usize,
    steps: usize,
    parts: usize,
}

impl PackedRows {
    /// Room for `count` rows of `depth` elements of T, in two parts if they are [split](super::split).
    fn room<T: Product>(count: usize, depth: usize, parts: usize) -> Result<PackedRows> {
        // Two numbers fill a unit of each part.
        let steps = if parts == 1 { units::<T>(depth).div_ceil(STEP) } else { depth.div_ceil(NUMBERS) };
        let block = Block::new(count.div_ceil(ROWS) * steps * parts * ROWS * STEP * 4)?;
        Ok(PackedRows { block, count, depth, steps, parts })
    }

    /// Units of a group.
    fn size(&self) -> usize {
        self.steps * self.parts * ROWS * STEP
    }

    /// Packs `count` rows of `depth` elements.
    pub(crate) fn new<T: Product>(left: &impl Rows<T>, count: usize, depth: usize, parts: usize) -> Result<PackedRows> {
        let packed = PackedRows::room::<T>(count, depth, parts)?;
        let elements = if parts == 1 { STEP * T::PER_UNIT } else { NUMBERS };
        let at_once = if parts == 1 { packed.steps } else { STEPS };
        let memory = packed.block.as_ptr().cast::<u32>();
        // SAFETY: the block holds that many u32 and is not shared yet.
        let data = unsafe { std::slice::from_raw_parts_mut(memory, count.div_ceil(ROWS) * packed.size()) };
        data.par_chunks_mut(packed.size().max(1)).enumerate().for_each(|(group, out)| {
            LINE.with_borrow_mut(|line| {
                let rows = group * ROWS..count.min((group + 1) * ROWS);
                for (part, out) in out.chunks_mut(at_once * parts * ROWS * STEP).enumerate() {
                    let from = part * at_once * elements;
                    let elements = from..depth.min(from + at_once * elements);
                    pack_group(left, rows.clone(), elements, parts, line, out);
                }
            });
        });
        Ok(packed)
    }

    /// `count` rows of `depth` numbers of bf16, whole lines of [`NUMBERS`], which `fill` writes where [`Place`] says.
    pub(crate) fn build(count: usize, depth: usize, fill: impl FnOnce(SharedMut<bf16>, Place)) -> Result<PackedRows> {
        assert!(depth.is_multiple_of(NUMBERS));
        let packed = PackedRows::room::<bf16>(count, depth, 1)?;
        let memory = packed.block.as_ptr().cast::<bf16>();
        let size = 2 * packed.size();
        // SAFETY: the block holds that many numbers and is not shared yet.
        let data = unsafe { std::slice::from_raw_parts_mut(memory, count.div_ceil(ROWS) * size) };
        if !count.is_multiple_of(ROWS) {
            // Rows that are missing are zeros.
            data[count / ROWS * size..].fill(bf16::ZERO);
        }
        fill(SharedMut::new(data), Place { group: size, row: NUMBERS, line: ROWS * NUMBERS });
        Ok(packed)
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Elements of a row.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// A group's rows from a step on.
    pub(crate) fn at(&self, group: usize, step: usize) -> *const u32 {
        let at = group * self.size() + step * self.parts * ROWS * STEP;
        self.block.as_ptr().cast::<u32>().cast_const().wrapping_add(at)
    }
}

/// Packs a group of at most [`ROWS`] rows; rows that are missing become zeros, as does what is missing of the last step.
pub(crate) fn pack_group<T: Product>(
    left: &impl Rows<T>,
    rows: Range<usize>,
    elements: Range<usize>,
    parts: usize,
    line: &mut Lines,
    out: &mut [u32],
) {
    match parts {
        1 => {}
        2 => return split_rows::<T, 2>(left, rows, elements, line, out),
        _ => return split_rows::<T, 3>(left, rows, elements, line, out),
    }
    let units = out.len() / ROWS;
    let whole = elements.len() == units * T::PER_UNIT;
    for r in 0..ROWS {
        let row = rows.start + r;
        let there = whole && row < rows.end;
        let line: *const u8 = match there.then(|| left.in_place(row, elements.start, elements.len())).flatten() {
            Some(line) => line.as_ptr().cast(),
            None => {
                let line = line.get(units);
                line.fill(0);
                if row < rows.end {
                    let line = line.as_mut_ptr().cast::<T>();
                    // SAFETY: a line of u32 is at least as many elements of T, aligned for it.
                    left.copy(row, elements.start, unsafe { std::slice::from_raw_parts_mut(line, elements.len()) });
                }
                line.as_ptr().cast()
            }
        };
        for step in 0..units / STEP {
            let to = out[(step * ROWS + r) * STEP..][..STEP].as_mut_ptr().cast::<u8>();
            // SAFETY: the line has as many units.
            unsafe { std::ptr::copy_nonoverlapping(line.add(step * 4 * STEP), to, 4 * STEP) };
        }
    }
}
