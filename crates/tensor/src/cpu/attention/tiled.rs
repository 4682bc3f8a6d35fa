//! One pass of attention in AMX tiles, of numbers in two parts; [`woven`](super::woven) is that of bf16. Tiles and arithmetic
//! units work at the same time: the next scores are made between the parts of the softmax of these.

use super::softmax::{Running, Weighing, hide_later, weigh_in_parts};
use super::turn::scale_columns;
use super::{PANELS, PackedKeys, Scratch, Sizes};
use crate::cpu::amx::{self, Left, Tiles};
use crate::cpu::gemm::Product;
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
    let &Sizes { d, stride, factor, causal } = sizes;
    let layout = branch.layout;
    let (depth, size) = (layout.padded(d), layout.size(d));
    // SAFETY: keys are packed for tiles where there are tiles.
    let tiles = unsafe { Tiles::configure() };
    let (keys, values) = branch.head(head);
    let value_size = layout.size(branch.keys);
    let queries = scratch.queries.get(panels * NR * size);
    // SAFETY: callers pass operands of these steps, and a block.
    let product = |steps: usize, a: *const u32, b: *const u32, c: *mut f32, accumulate: bool| unsafe {
        tiles.product_split(&amx::PACKED_SPLIT[..steps], Left::packed(a), b, c, accumulate, b)
    };
    let sums = scratch.sums.floats(panels * NR * stride);
    let (mut now, mut next) = scratch.scores.get(2 * KEY_BLOCK * NR).split_at_mut(KEY_BLOCK * NR);
    let mut running: [Running; PANELS] = std::array::from_fn(|_| Running::new());
    let count_of = |key: usize| KEY_BLOCK.min(branch.keys - key);
    let groups = |key: usize| count_of(key).div_ceil(amx::ROWS);
    // Scores of a group of keys from `key` on with the queries of a panel.
    let score = |(key, panel): (usize, usize), group: usize, out: &mut [u32]| {
        let a = keys[(key + group * amx::ROWS) * size..][..amx::ROWS * size].as_ptr();
        let b = queries[panel * NR * size..][..NR * size].as_ptr();
        let c = out[group * amx::ROWS * NR..][..amx::ROWS * NR].as_mut_ptr().cast::<f32>();
        product(depth / amx::STEP, a, b, c, false);
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
        let scores = count * NR;
        if causal && key + count > query {
            hide_later(&mut now[..scores], key, query);
        }
        let mut weighing = Weighing::begin::<T>(&now[..scores], factor, running, true);
        for group in 0..groups(key).max(following.map_or(0, |next| groups(next.0))) {
            if let Some(item) = following.filter(|next| group < groups(next.0)) {
                score(item, group, next);
            }
            let part = (group * amx::ROWS).min(count)..((group + 1) * amx::ROWS).min(count);
            if let Some(weighing) = &mut weighing {
                weighing.part_in_parts(now, part, factor);
            }
        }
        match weighing {
            Some(weighing) => weighing.end(running),
            None => weigh_in_parts(now, count, factor, running),
        }
        let weights = &now[..layout.size(count) * NR];
        let sums = &mut sums[panel * NR * stride..][..NR * stride];
        if key > 0 {
            // SAFETY: processors with tiles have the instructions.
            unsafe { scale_columns(sums, &running.correction) };
        }
        for (a, c) in values.chunks_exact(amx::ROWS * value_size).zip(sums.chunks_exact_mut(amx::ROWS * NR)) {
            let a = a[layout.size(key) * amx::ROWS..][..layout.size(count) * amx::ROWS].as_ptr();
            product(layout.padded(count) / amx::STEP, a, weights.as_ptr(), c.as_mut_ptr(), key > 0);
        }
        std::mem::swap(&mut now, &mut next);
        item = following;
    }
    running
}
