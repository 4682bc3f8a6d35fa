//! Queries, keys and values where they lie, and keys and values packed for the two products.

#[cfg(target_arch = "x86_64")]
use super::turn;
use super::{GROUP, Layout, Scratch};
use crate::cpu::amx;
use crate::cpu::gemm::{Product, interleave, pack_rows, splits};
use crate::cpu::isa::simd;
use crate::cpu::micro::NR;
use crate::cpu::rows::Rows;
use crate::cpu::split::{NUMBERS, parts_of, split_rows};
use crate::meter::watch;
use crate::ops::Products;
use crate::storage::Block;
use crate::tensor::Element;
use crate::{Result, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Some columns of a tensor `[b, n, stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) first: usize,
    pub(crate) width: usize,
}

impl<'a> Columns<'a> {
    /// All columns of a tensor `[b, n, width]`.
    pub(crate) fn all(tensor: &'a Tensor) -> Columns<'a> {
        Columns { tensor, first: 0, width: tensor.last_dim() }
    }

    /// The rows of head `head` of picture `picture`.
    pub(super) fn head<T: Element>(&self, picture: usize, head: usize, d: usize) -> HeadRows<'a, T> {
        let stride = self.tensor.last_dim();
        HeadRows {
            data: self.tensor.data(),
            base: picture * self.tensor.dim(1) * stride + self.first + head * d,
            stride,
        }
    }
}

/// Rows of one picture's head.
pub(super) struct HeadRows<'a, T> {
    data: &'a [T],
    base: usize,
    stride: usize,
}

impl<T: Element> HeadRows<'_, T> {
    pub(super) fn row(&self, row: usize, from: usize, len: usize) -> &[T] {
        &self.data[self.base + row * self.stride + from..][..len]
    }

    /// Row `row` of `rows` with `d` elements, none beyond them.
    pub(super) fn one_of(&self, rows: usize, row: usize, d: usize) -> &[T] {
        if row < rows { self.row(row, 0, d) } else { &[] }
    }
}

impl<T: Element> Rows<T> for HeadRows<'_, T> {
    #[inline]
    fn copy(&self, row: usize, from: usize, out: &mut [T]) {
        out.copy_from_slice(self.row(row, from, out.len()));
    }

    #[inline]
    fn in_place(&self, row: usize, from: usize, len: usize) -> Option<&[T]> {
        Some(self.row(row, from, len))
    }
}

/// Keys and values of one branch, packed for each picture and head. Keys are the rows of a left-hand side, in groups of
/// [`GROUP`], values panels of columns of a right-hand side. With AMX both are rows, in groups of [`amx::ROWS`] and there
/// step after step ([`amx::PACKED`]); those of values are its elements, and keys their depth.
pub(crate) struct PackedKeys {
    pub(super) keys: usize,
    pub(super) layout: Layout,
    block: Block,
    /// Size in u32 of one head's keys, and of one head's values.
    key_size: usize,
    value_size: usize,
}

impl PackedKeys {
    /// Packs `k` and `v`, `[b, m, heads * d]` each.
    pub(crate) fn new<T: Product>(k: Columns, v: Columns, heads: usize, products: Products) -> Result<PackedKeys> {
        let _watch = watch(|| format!("keys {:?}", k.tensor.shape()));
        let layout = Layout::of::<T>(splits(T::DTYPE, products));
        let (b, m, d) = (k.tensor.dim(0), k.tensor.dim(1), k.width / heads);
        let key_size = m.next_multiple_of(layout.group()) * layout.size(d);
        let value_size = d.next_multiple_of(NR) * layout.size(m);
        let block = Block::filled(b * heads * (key_size + value_size), |data| {
            data.par_chunks_mut((key_size + value_size).max(1)).enumerate().for_each(|(i, out)| {
                let (k, v) = (k.head::<T>(i / heads, i % heads, d), v.head::<T>(i / heads, i % heads, d));
                let (keys, values) = out.split_at_mut(key_size);
                super::SCRATCH.with_borrow_mut(|scratch| match layout.parts {
                    #[cfg(target_arch = "x86_64")]
                    1 if layout.tiled => {
                        // SAFETY: processors with tiles have the instructions.
                        unsafe {
                            turn::to_groups(|key| k.one_of(m, key, d), layout.size(d), keys);
                            turn::to_turned_groups(|key| v.one_of(m, key, d), layout.size(m), values);
                        }
                    }
                    1 => {
                        pack_keys(keys, &k, [m, d], layout, scratch);
                        pack_values(values, &v, [m, d], layout);
                    }
                    _ => {
                        split_keys(keys, &k, [m, d], scratch);
                        split_values(values, &v, [m, d], scratch);
                    }
                });
            });
        })?;
        Ok(PackedKeys { keys: m, layout, block, key_size, value_size })
    }

    /// Packed keys and values of one picture's head.
    pub(super) fn head(&self, index: usize) -> (&[u32], &[u32]) {
        let size = self.key_size + self.value_size;
        // SAFETY: `new` wrote all heads.
        let all = unsafe { std::slice::from_raw_parts(self.block.as_ptr().cast::<u32>().add(index * size), size) };
        all.split_at(self.key_size)
    }
}

/// Packs `m` keys of `d` elements.
fn pack_keys<T: Product>(out: &mut [u32], k: &HeadRows<T>, [m, d]: [usize; 2], layout: Layout, scratch: &mut Scratch) {
    let depth = layout.padded(d);
    scratch.staged.resize(scratch.staged.len().max(GROUP * depth), 0);
    for (i, out) in out.chunks_exact_mut(GROUP * depth).enumerate() {
        let first = i * GROUP;
        pack_rows::<T, GROUP>(k, first, m.min(first + GROUP), d, 0, depth, &mut scratch.staged, out);
    }
}

/// Packs the values of `m` keys, `d` elements each, whose depth is the keys.
fn pack_values<T: Product>(out: &mut [u32], v: &HeadRows<T>, [m, d]: [usize; 2], layout: Layout) {
    let row = |key: usize| v.one_of(m, key, d);
    let pair = |unit: usize| match T::PER_UNIT {
        2 => [row(2 * unit), row(2 * unit + 1)],
        _ => [row(unit), &[]],
    };
    for (panel, out) in out.chunks_exact_mut(layout.padded(m) * NR).enumerate() {
        let columns = panel * NR..d.min((panel + 1) * NR);
        for (unit, out) in out.chunks_exact_mut(NR).enumerate() {
            pair_up(pair(unit).map(|row| row.get(columns.clone()).unwrap_or_default()), out);
        }
    }
}

/// Splits `m` keys of `d` elements.
fn split_keys<T: Product>(out: &mut [u32], k: &HeadRows<T>, [m, d]: [usize; 2], scratch: &mut Scratch) {
    let size = out.len() / m.div_ceil(amx::ROWS);
    for (group, out) in out.chunks_exact_mut(size).enumerate() {
        let rows = group * amx::ROWS..m.min((group + 1) * amx::ROWS);
        split_rows::<_, 2>(k, rows, 0..d, &mut scratch.spare, out);
    }
}

/// Splits the values of `m` keys, `d` elements each, as [`to_turned_groups`](super::turn::to_turned_groups) packs them whole.
fn split_values<T: Product>(out: &mut [u32], v: &HeadRows<T>, [m, d]: [usize; 2], scratch: &mut Scratch) {
    let row = |key: usize| v.one_of(m, key, d);
    let (steps, rows) = (m.div_ceil(NUMBERS), d.next_multiple_of(amx::ROWS));
    scratch.staged.resize(scratch.staged.len().max(2 * amx::STEP * rows), 0);
    let (firsts, seconds) = scratch.staged[..2 * amx::STEP * rows].split_at_mut(amx::STEP * rows);
    for step in 0..steps {
        for (i, parts) in firsts.chunks_exact_mut(rows).zip(seconds.chunks_exact_mut(rows)).enumerate() {
            let key = step * NUMBERS + 2 * i;
            split_pair([row(key), row(key + 1)], parts);
        }
        for (i, out) in out.chunks_exact_mut(2 * amx::ROWS * amx::STEP * steps).enumerate() {
            let out = &mut out[2 * amx::ROWS * amx::STEP * step..][..2 * amx::ROWS * amx::STEP];
            for (part, out) in [&*firsts, seconds].into_iter().zip(out.chunks_exact_mut(amx::ROWS * amx::STEP)) {
                let lines = std::array::from_fn(|line| part[line * rows + i * amx::ROWS..].as_ptr());
                // SAFETY: each line has `rows` units, ROWS of them from there on.
                unsafe { interleave::<{ amx::STEP }>(lines, amx::ROWS, out) };
            }
        }
    }
}

simd! {
    /// Units of both parts of two rows' elements, zeros where there are none.
    fn split_pair<T: Product>(rows: [&[T]; 2], parts: (&mut [u32], &mut [u32])) {
        for (e, (first, second)) in parts.0.iter_mut().zip(parts.1.iter_mut()).enumerate() {
            let pair = rows.map(|row| row.get(e).map_or(0.0, |x| x.to_f32()));
            let [high, low] = parts_of::<2>(pair);
            (*first, *second) = (bf16::unit(high), bf16::unit(low));
        }
    }
}

/// Units of two rows' elements, zeros where there are none.
fn pair_up<T: Product>([first, second]: [&[T]; 2], out: &mut [u32]) {
    let zero = T::from_f32(0.0);
    let (both, rest) = out.split_at_mut(first.len());
    match second.is_empty() {
        true => both.iter_mut().zip(first).for_each(|(o, a)| *o = T::unit([*a, zero])),
        false => both.iter_mut().zip(first.iter().zip(second)).for_each(|(o, (a, b))| *o = T::unit([*a, *b])),
    }
    rest.fill(0);
}
