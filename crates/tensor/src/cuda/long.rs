//! Long attention with heads of 64 by this crate's own kernel for Hopper, where its groups of queries fill the card.

use super::fused::Shape;
use super::gpu::{Argument, Gpu};
use super::kernels::{Family, HOPPERS};
use super::profile::Work;
use super::tiles;
use crate::{DType, Result};

/// Width of a head.
pub(super) const HEAD: usize = 64;
/// Queries of a group of four warps, and keys of a tile.
const BLOCK: usize = 64;
/// Most groups of a block.
const GROUPS: usize = 5;
/// Tiles of keys and of values that are on their way for each head of a block.
const STAGES: usize = 4;
/// Bytes of shared memory: queries, the tiles of two heads, barriers.
const SHARED: usize = (GROUPS + 4 * STAGES) * BLOCK * HEAD * 2 + 2 * STAGES * 24 + GROUPS * 8;
/// Threads of a group.
const THREADS: usize = 128;

/// The products of a group of four warps with its 64 queries: with keys, and of weights in registers with values, whose
/// instruction names every register.
pub(super) fn products() -> String {
    let count = HEAD / 2;
    let [registers, results] = tiles::results(count);
    let weigh = ["f16", "bf16"].map(|kind| {
        format!(
            "__device__ __forceinline__ void weigh(float (&d)[{count}], const u32 *a, u64 b, {kind}) {{\n\
             asm volatile(\"{{ .reg .pred p; setp.eq.b32 p, 0, 0;\\n\"\n\
             \"wgmma.mma_async.sync.aligned.m64n{HEAD}k16.f32.{kind}.{kind} {{{registers}}}, \
             {{%{count}, %{}, %{}, %{}}}, %{}, p, 1, 1, 1; }}\"\n\
             : {results} : \"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3]), \"l\"(b));\n}}\n",
            count + 1,
            count + 2,
            count + 3,
            count + 4
        )
    });
    tiles::multiply(HEAD) + &weigh.concat()
}

/// How the work is divided, as the kernel reads it.
#[repr(C)]
struct Plan {
    groups: i32,
    per_head: i32,
    heads: i32,
    keys: i32,
    together: i32,
    first: [i32; 3],
    factor: f32,
}

impl Argument for Plan {}

/// Groups in a block, so that the last round of blocks is as full as the others.
fn together(groups: usize, multiprocessors: usize) -> usize {
    let rounds = groups.div_ceil(GROUPS * multiprocessors.max(1));
    groups.div_ceil((rounds * multiprocessors).max(1))
}

impl Gpu {
    /// `softmax(q k^T scale) v`, of which queries, keys and values begin in column `first` of the tensors at these places,
    /// behind which is the result's; false where this kernel does not take it, and nothing was done.
    ///
    /// # Safety
    /// The addresses are of this GPU, multiples of 16, and tensors there reach as far as the shape says.
    pub(super) unsafe fn attend_long(&self, shape: Shape, first: [usize; 3], at: [u64; 4], scale: f32) -> Result<bool> {
        let Shape { b, heads, n, m, d, strides, dtype } = shape;
        if self.arch != HOPPERS || d != HEAD || dtype == DType::F32 || at.iter().any(|at| at % 16 != 0) {
            return Ok(false);
        }
        let per_head = n.div_ceil(BLOCK);
        let groups = b * heads * per_head;
        let together = together(groups, self.multiprocessors as usize);
        // A block has room for two heads' keys.
        if together > per_head {
            return Ok(false);
        }
        let part = [HEAD, BLOCK, 1];
        let queries = self.matrix(Some(dtype), at[0], &[strides[0], n, b], &part)?;
        let keys = self.matrix(Some(dtype), at[1], &[strides[1], m, b], &part)?;
        let values = self.matrix(Some(dtype), at[2], &[strides[1], m, b], &part)?;
        let out = self.matrix(Some(dtype), at[3], &[strides[2], n, b], &part)?;
        let kernel = self.kernel_for(Family::AttentionLong, HEAD, "attend_long", Some(dtype), SHARED)?;
        let whole = |count: usize| count as i32;
        let plan = Plan {
            groups: whole(groups),
            per_head: whole(per_head),
            heads: whole(heads),
            keys: whole(m),
            together: whole(together),
            first: first.map(whole),
            factor: scale * std::f32::consts::LOG2_E,
        };
        self.note("attention", || {
            let name = format!("attention {b}x{n} over {m}, {heads} heads of {d}, own blocks");
            Work { flop: 4 * (b * heads * n * m * d) as u64, ..Work::over(name, 2 * b * (n + m) * heads * d, dtype) }
        });
        let grid = [groups.div_ceil(together) as u32, 1, 1];
        // SAFETY: the caller vouches for the addresses; the copy engine stays within what was described to it.
        unsafe {
            let arguments: [&dyn Argument; 5] = [&queries, &keys, &values, &out, &plan];
            self.launch("attention", kernel, grid, (THREADS * together) as u32, SHARED as u32, &arguments)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_is_full() {
        for (groups, wanted) in [(640, 5), (1280, 5), (320, 3), (132, 1), (160, 2), (1, 1), (700, 3)] {
            assert_eq!(together(groups, 132), wanted, "{groups}");
        }
    }
}
