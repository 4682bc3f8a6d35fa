//! Attention over few keys, those of text and identity, by kernels of its own for Hopper.

use super::attention::{self, FEW};
use super::gpu::Gpu;
use super::kernels::{Family, HOPPERS};
use super::long::{self, HEAD};
use super::tiles;
use crate::{DType, Result};

/// Up to so many keys in one branch warps are on their own, each with so many queries, and so many of them in a block.
const THIN: usize = 16;
const TALL: usize = 32;
const WARPS: usize = 4;
/// Else queries of a group of four warps, and the most groups of a block.
const BLOCK: usize = 64;
const GROUPS: usize = 5;
/// Weights of the second branch become 16-bit numbers times the sum of up to 80 of the first.
const HEAVIEST: f32 = 500.0;

/// The products of a group of four warps with its 64 queries: with keys, and of weights with values.
pub(super) fn products() -> String {
    tiles::multiply(FEW[0]) + &tiles::multiply(FEW[0] + FEW[1]) + &long::weigh()
}

/// `softmax(q k^T scale) v`, plus `weight` times the same over a second branch.
pub(super) struct FewKeys {
    /// Queries, keys, values, those of the second branch or 0, and the result.
    pub(super) at: [u64; 6],
    pub(super) b: usize,
    /// Queries, keys, those of the second branch or 0, heads and their width.
    pub(super) counts: [usize; 5],
    /// How far rows of queries, keys and those of the second branch are apart.
    pub(super) strides: [usize; 3],
    pub(super) scale: f32,
    pub(super) weight: f32,
    pub(super) dtype: DType,
}

/// A kernel and how its work is divided.
struct Division {
    name: &'static str,
    /// Pieces of work in all, and how many a group of warps takes, one after the other.
    share: [usize; 2],
    blocks: usize,
    threads: usize,
    /// Bytes of shared memory.
    shared: usize,
}

impl FewKeys {
    fn division(&self, multiprocessors: usize) -> Division {
        let [n, m, m2, heads, _] = self.counts;
        if m <= THIN && m2 == 0 {
            let pieces = self.b * heads * n.div_ceil(TALL);
            let blocks = pieces.div_ceil(WARPS);
            return Division { name: "attend_thin", share: [pieces, 1], blocks, threads: WARPS * 32, shared: 0 };
        }
        let per_head = n.div_ceil(BLOCK);
        let pieces = self.b * heads * per_head;
        // A block for each multiprocessor, with room for the keys of two heads.
        let most = per_head + 1;
        let rounds = pieces.div_ceil(GROUPS * multiprocessors).clamp(1, most.div_ceil(GROUPS));
        let together = pieces.div_ceil(rounds * multiprocessors).clamp(1, GROUPS.min(most / rounds));
        let of_a_block = if per_head.is_multiple_of(together * rounds) { 1 } else { 2 };
        let (name, keys) = if m2 > 0 { ("attend_both", FEW[0] + FEW[1]) } else { ("attend_text", FEW[0]) };
        Division {
            name,
            share: [pieces, rounds],
            blocks: pieces.div_ceil(together * rounds),
            threads: together * 128,
            shared: (2 * together * BLOCK + of_a_block * 2 * keys) * HEAD * 2,
        }
    }
}

/// Whether there is a kernel for heads `d` wide and a second branch of this weight, in 16 bits.
pub(super) fn takes(gpu: &Gpu, d: usize, weight: f32) -> bool {
    gpu.arch == HOPPERS && d == HEAD && weight.abs() <= HEAVIEST
}

impl Gpu {
    /// Attention that [`takes`] allows, over at most [`FEW`] keys, not causal.
    ///
    /// # Safety
    /// The addresses are of this GPU, multiples of 16, strides of 8, and tensors there reach as far as these say.
    pub(super) unsafe fn attend_text(&self, few: &FewKeys) -> Result<()> {
        let FewKeys { at: [q, k, v, k2, v2, to], scale, weight, dtype, .. } = *few;
        let Division { name, share, blocks, threads, shared } = few.division(self.multiprocessors.max(1) as usize);
        let kernel = self.kernel_for(Family::AttentionText, HEAD, name, Some(dtype), shared)?;
        let (counts, strides) = (few.counts.map(|s| s as i32), few.strides.map(|s| s as i32));
        let share = share.map(|s| s as i32);
        self.note("attention", || attention::work(few.b, few.counts, dtype));
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            self.launch(
                "attention",
                kernel,
                [blocks as u32, 1, 1],
                threads as u32,
                shared as u32,
                &[&q, &k, &v, &k2, &v2, &to, &counts, &strides, &scale, &weight, &share],
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_multiprocessor_has_a_block_of_at_most_two_heads() {
        for (b, n, heads, m2, blocks, together, rounds) in [
            (2, 1024, 20, 16, 128, 5, 1),
            (2, 4096, 10, 16, 128, 5, 2),
            (2, 1024, 20, 0, 128, 5, 1),
            (2, 256, 20, 16, 80, 2, 1),
            (64, 64, 20, 16, 640, 2, 1),
            (64, 200, 20, 16, 1024, 5, 1),
            (1, 1, 1, 1, 1, 1, 1),
        ] {
            let counts = [n, 77, m2, heads, HEAD];
            let (at, strides, dtype) = ([0; 6], [0; 3], DType::F16);
            let few = FewKeys { at, b, counts, strides, scale: 1.0, weight: 1.0, dtype };
            let division = few.division(132);
            assert_eq!((division.blocks, division.threads / 128, division.share[1]), (blocks, together, rounds), "{n}");
            let per_head = n.div_ceil(BLOCK);
            for block in 0..division.blocks {
                let first = block * together * rounds;
                let last = (first + together * rounds).min(division.share[0]) - 1;
                let heads_there = last / per_head - first / per_head + 1;
                let keys = FEW[0] + if m2 > 0 { FEW[1] } else { 0 };
                let needed = (2 * together * BLOCK + heads_there * 2 * keys) * HEAD * 2;
                assert!(heads_there <= 2 && needed <= division.shared, "{n}: block {block}");
            }
        }
    }
}
