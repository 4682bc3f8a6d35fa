//! The right-hand side of the block product: columns packed once, at load, in panels of [`NR`].

use super::amx;
use super::gemm::{Product, interleave, splits, units};
use super::micro::NR;
use super::split::{NUMBERS, Places, split};
use crate::Result;
use crate::ops::Products;
use crate::storage::Block;
use rayon::prelude::*;
use std::ops::Range;

/// Units that `depth` elements take in packed columns.
fn packed_units<T: Product>(depth: usize) -> usize {
    if T::tiled() { units::<T>(depth).next_multiple_of(amx::STEP) } else { units::<T>(depth) }
}

/// The right-hand side: `columns` columns of `depth` elements, in panels of [`NR`] columns. Where f32 is [`split`] a unit is a
/// pair of its parts, and each step of a panel's first parts lies before that of its second.
pub(crate) struct PackedColumns {
    pub(crate) columns: usize,
    pub(crate) depth: usize,
    units: usize,
    parts: usize,
    block: Block,
}

impl PackedColumns {
    /// Packs the matrix whose column `line(column, out)` writes, `depth` elements.
    pub(crate) fn new<T: Product>(columns: usize, depth: usize, line: impl Fn(usize, &mut [T]) + Sync) -> Result<Self> {
        let (packed, there) = (packed_units::<T>(depth), units::<T>(depth));
        let block = Block::filled(columns.div_ceil(NR) * packed * NR, |data| {
            data.par_chunks_mut((packed * NR).max(1)).enumerate().for_each_init(Vec::new, |staged, (panel, out)| {
                let (out, rest) = out.split_at_mut(there * NR);
                pack_panel(out, panel * NR..columns, depth, &line, staged);
                rest.fill(0);
            });
        })?;
        Ok(PackedColumns { columns, depth, units: packed, parts: 1, block })
    }

    /// As [`PackedColumns::new`], but f32 is split for tiles where it shall be.
    pub(crate) fn of<T: Product>(
        columns: usize,
        depth: usize,
        products: Products,
        line: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<Self> {
        if !splits(T::DTYPE, products) {
            return PackedColumns::new(columns, depth, line);
        }
        let steps = depth.div_ceil(NUMBERS);
        let size = steps * NUMBERS * NR;
        let block = Block::filled(columns.div_ceil(NR) * size, |data| {
            data.par_chunks_mut(size.max(1)).enumerate().for_each_init(Vec::new, |staged, (panel, out)| {
                split_panel(out, panel * NR..columns, depth, &line, staged);
            });
        })?;
        Ok(PackedColumns { columns, depth, units: steps * amx::STEP, parts: 2, block })
    }

    /// A matrix in f32 of which [`PackedColumns::set`] is to write every unit of every panel.
    pub(crate) fn unset(columns: usize, depth: usize) -> Result<Self> {
        let units = packed_units::<f32>(depth);
        let block = Block::new(columns.div_ceil(NR) * units * NR * 4)?;
        Ok(PackedColumns { columns, depth, units, parts: 1, block })
    }

    /// Writes a unit's numbers of a panel in f32.
    ///
    /// # Safety
    /// Panel and unit are in the matrix, and no other thread uses its panel.
    pub(crate) unsafe fn set(&self, panel: usize, unit: usize, numbers: &[f32; NR]) {
        // SAFETY: as promised.
        unsafe { self.panel(panel, unit).cast_mut().cast::<[f32; NR]>().write(*numbers) };
    }

    /// Units of depth, padding included.
    pub(crate) fn units(&self) -> usize {
        self.units
    }

    /// In how many parts each element lies.
    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// Where a unit's columns lie, or end; where they are in parts, a step's.
    pub(crate) fn panel(&self, panel: usize, unit: usize) -> *const u32 {
        // SAFETY: callers stay below `columns` and within `units`.
        unsafe { self.block.as_ptr().cast::<u32>().add((panel * self.units + unit) * NR * self.parts) }
    }
}

/// As [`pack_panel`] of f32 in two parts.
pub(crate) fn split_panel<T: Product>(
    out: &mut [u32],
    columns: Range<usize>,
    depth: usize,
    line: impl Fn(usize, &mut [T]),
    staged: &mut Vec<u32>,
) {
    let steps = depth.div_ceil(NUMBERS);
    let units = steps * amx::STEP;
    staged.resize((NR + 1) * 2 * units, 0);
    let (staged, whole) = staged.split_at_mut(NR * 2 * units);
    staged[columns.len().min(NR) * 2 * units..].fill(0);
    whole[depth..].fill(0);
    for (column, parts) in columns.zip(staged.chunks_exact_mut(2 * units).take(NR)) {
        // SAFETY: a line of u32 is as many elements of T, which is f32.
        line(column, unsafe { std::slice::from_raw_parts_mut(whole.as_mut_ptr().cast::<T>(), depth) });
        let to = Places { first: parts.as_mut_ptr(), step: amx::STEP, low: units };
        // SAFETY: the line has whole steps, and places for both parts.
        unsafe { split::<2>(whole.as_ptr().cast(), steps, to) };
    }
    for (i, out) in out.chunks_exact_mut(amx::STEP * NR).enumerate() {
        let at = i / 2 * amx::STEP + i % 2 * units;
        let lines = std::array::from_fn(|j| staged[j * 2 * units + at..].as_ptr());
        // SAFETY: every line has a step from there on.
        unsafe { interleave::<NR>(lines, amx::STEP, out) };
    }
}

/// Packs one panel: the first `NR` of `columns`, zeros where there are fewer.
fn pack_panel<T: Product>(
    out: &mut [u32],
    columns: Range<usize>,
    depth: usize,
    line: impl Fn(usize, &mut [T]),
    staged: &mut Vec<u32>,
) {
    let units = units::<T>(depth);
    staged.resize(NR * units, 0);
    staged[columns.len().min(NR) * units..].fill(0);
    for (column, staged) in columns.zip(staged.chunks_exact_mut(units).take(NR)) {
        // An odd depth leaves half of the last unit.
        staged[units - 1] = 0;
        // SAFETY: a line of u32 is at least `depth` elements of T, aligned for it.
        line(column, unsafe { std::slice::from_raw_parts_mut(staged.as_mut_ptr().cast::<T>(), depth) });
    }
    let lines = std::array::from_fn(|j| staged[j * units..].as_ptr());
    // SAFETY: every line has `units` units.
    unsafe { interleave::<NR>(lines, units, out) };
}
