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

/// The products of a group of four warps with its 64 queries: with keys, and of weights with values.
pub(super) fn products() -> String {
    tiles::multiply(HEAD) + &weigh()
}

/// The product of weights in registers with values; its instruction names every register.
pub(super) fn weigh() -> String {
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
    weigh.concat()
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

/// How one attention is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    /// In all, of 64 queries of a head each, and those of a head.
    groups: usize,
    per_head: usize,
    /// In a block.
    together: usize,
    /// Whether every multiprocessor has as many groups as it can at once, and no more come after them: there this kernel is
    /// faster than cuDNN's, whose blocks of 128 queries leave the last round half empty.
    pub(super) suits: bool,
}

impl Division {
    /// None where this kernel does not take it.
    pub(super) fn of(gpu: &Gpu, shape: Shape) -> Option<Division> {
        let fits = gpu.arch == HOPPERS && shape.d == HEAD && shape.dtype != DType::F32;
        fits.then(|| Division::on(gpu.multiprocessors.max(1) as usize, shape))
            // A block has room for two heads' keys.
            .filter(|division| division.together <= division.per_head)
    }

    /// Into blocks whose last round is as full as the others.
    fn on(multiprocessors: usize, shape: Shape) -> Division {
        let per_head = shape.n.div_ceil(BLOCK);
        let groups = shape.b * shape.heads * per_head;
        let rounds = groups.div_ceil(GROUPS * multiprocessors).max(1);
        let together = groups.div_ceil(rounds * multiprocessors);
        Division { groups, per_head, together, suits: rounds == 1 && together == GROUPS }
    }
}

impl Gpu {
    /// `softmax(q k^T scale) v`: queries, keys and values begin in column `first` of the tensors at these places, the last of
    /// which is the result's.
    ///
    /// # Safety
    /// The addresses are of this GPU, multiples of 16, and tensors there reach as far as the shape says.
    pub(super) unsafe fn attend_long(
        &self,
        shape: Shape,
        division: Division,
        first: [usize; 3],
        at: [u64; 4],
        scale: f32,
    ) -> Result<()> {
        let Shape { b, heads, n, m, d, strides, dtype } = shape;
        let Division { groups, per_head, together, .. } = division;
        let rows = [(strides[0], n), (strides[1], m), (strides[1], m), (strides[2], n)];
        let map = |i: usize| self.matrix(Some(dtype), at[i], &[rows[i].0, rows[i].1, b], &[HEAD, BLOCK, 1]);
        let [queries, keys, values, out] = [map(0)?, map(1)?, map(2)?, map(3)?];
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
        let arguments: [&dyn Argument; 5] = [&queries, &keys, &values, &out, &plan];
        // SAFETY: the caller vouches for the addresses; the copy engine stays within what was described to it.
        unsafe { self.launch("attention", kernel, grid, (THREADS * together) as u32, SHARED as u32, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_round_is_full() {
        let of = |heads, n| {
            let shape = Shape { b: 1, heads, n, m: n, d: HEAD, strides: [HEAD * heads; 3], dtype: DType::F16 };
            Division::on(132, shape)
        };
        for (heads, n, together, suits) in
            [(40, 1024, 5, true), (40, 1000, 5, true), (20, 4096, 5, false), (20, 1024, 3, false), (1, 512, 1, false)]
        {
            let division = of(heads, n);
            assert_eq!((division.together, division.suits), (together, suits), "{heads} heads, {n} queries");
        }
    }
}
