//! One pass of attention in AMX tiles. Tiles and arithmetic units work at the same time: the next scores are made between
//! the parts of the softmax of these.

use super::softmax::{Running, Weighing, hide_later, scale_columns, weigh};
use super::{PANELS, PackedKeys, Scratch, Sizes, padded};
use crate::cpu::amx::{self, Left, Tiles};
use crate::cpu::gemm::{Product, units};
use crate::cpu::micro::NR;

/// Keys between two corrections of the running softmax.
const KEY_BLOCK: usize = 256;

/// As `super::pass_rows`, but `scratch.sums` become `[d, queries]` for each panel.
pub(super) fn pass<T: Product>(
    scratch: &mut Scratch,
    branch: &PackedKeys,
    head: usize,
    (first, panels): (usize, usize),
    sizes: &Sizes,
) -> [Running; PANELS] {
    let &Sizes { depth, stride, factor, causal } = sizes;
    // SAFETY: `T::tiled` said that there are tiles.
    let tiles = unsafe { Tiles::configure() };
    let (keys, values) = branch.head(head);
    let value_depth = padded::<T>(branch.keys);
    let queries = scratch.queries.get(panels * NR * depth);
    let sums = scratch.sums.floats(panels * NR * stride);
    let (mut now, mut next) = scratch.scores.get(2 * KEY_BLOCK * NR).split_at_mut(KEY_BLOCK * NR);
    let mut running: [Running; PANELS] = std::array::from_fn(|_| Running::new());
    let count_of = |key: usize| KEY_BLOCK.min(branch.keys - key);
    let groups = |key: usize| count_of(key).div_ceil(amx::ROWS);
    // Scores of a group of keys from `key` on with the queries of a panel.
    let score = |(key, panel): (usize, usize), group: usize, out: &mut [u32]| {
        let a = keys[(key + group * amx::ROWS) * depth..][..amx::ROWS * depth].as_ptr();
        let b = queries[panel * NR * depth..][..NR * depth].as_ptr();
        let c = out[group * amx::ROWS * NR..][..amx::ROWS * NR].as_mut_ptr().cast::<f32>();
        // SAFETY: both sides hold `depth` units, whole steps, and `c` is a block.
        unsafe { tiles.product(&amx::PACKED[..depth / amx::STEP], Left::packed(a), b, c, false, b) };
    };
    let mut items = (0..branch.keys.div_ceil(KEY_BLOCK) * panels)
        .map(|item| (item / panels * KEY_BLOCK, item % panels))
        .filter(|(key, panel)| !causal || *key < first + (panel + 1) * NR);
    let mut item = items.next();
    if let Some(item) = item {
        (0..groups(item.0)).for_each(|group| score(item, group, now));
    }
    while let Some((key, panel)) = item {
        let (count, query, running) = (count_of(key), first + panel * NR, &mut running[panel]);
        let following = items.next();
        let scores = &mut now[..count * NR];
        if causal && key + count > query {
            hide_later(scores, key, query);
        }
        let mut weighing = Weighing::begin::<T>(scores, factor, running);
        for group in 0..groups(key).max(following.map_or(0, |next| groups(next.0))) {
            if let Some(item) = following.filter(|next| group < groups(next.0)) {
                score(item, group, next);
            }
            let part = (group * amx::ROWS).min(count)..((group + 1) * amx::ROWS).min(count);
            if let Some(weighing) = &mut weighing {
                weighing.part(scores, part, factor);
            }
        }
        match weighing {
            Some(weighing) => weighing.end(running),
            None => weigh::<T>(scores, factor, running),
        }
        let weights = &mut now[..padded::<T>(count) * NR];
        weights[units::<T>(count) * NR..].fill(0);
        let sums = &mut sums[panel * NR * stride..][..NR * stride];
        if key > 0 {
            scale_columns(sums, &running.correction);
        }
        let steps = &amx::PACKED[..padded::<T>(count) / amx::STEP];
        for (a, c) in values.chunks_exact(amx::ROWS * value_depth).zip(sums.chunks_exact_mut(amx::ROWS * NR)) {
            let a = a[units::<T>(key) * amx::ROWS..][..steps.len() * amx::STEP * amx::ROWS].as_ptr();
            let (b, c) = (weights.as_ptr(), c.as_mut_ptr());
            // SAFETY: both sides hold these steps; the sums have ROWS rows of NR numbers here.
            unsafe { tiles.product(steps, Left::packed(a), b, c, key > 0, b) };
        }
        std::mem::swap(&mut now, &mut next);
        item = following;
    }
    running
}
