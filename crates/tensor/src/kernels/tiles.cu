// Products of 16-bit and 8-bit matrices on Hopper's tensor cores: tiles of 128 rows by WIDE columns, whose operands the copy
// engine brings into shared memory while two groups of four warps multiply what is there; it brings the residual too, and
// takes the result. Bound: tensor cores. Blocks fetch for themselves: in clusters of two or four that share operands
// bringing these took 1.5 times as long and longer.
//
// WIDE and `multiply` are generated in front of this file, behind fragments.cuh and hopper.cuh.

// Bytes of shared memory that a block may have.
const int SHARED = 227 << 10;
// 128 rows of the input and WIDE of the weight, 128 bytes of each.
const int STAGE = (128 + WIDE) * 128;

__device__ __forceinline__ void fetch(u32 to, const TensorMap &map, int column, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
__device__ __forceinline__ void put(const TensorMap &map, int column, int row, u32 from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
                 "r"(row), "r"(from) : "memory");
}
template <typename T> __device__ __forceinline__ float2 unpack(u32 x) {
    T a, b;
    a.bits = (u16)x;
    b.bits = (u16)(x >> 16);
    return {to_float(a), to_float(b)};
}

// x Phi(x) with the error function of Abramowitz and Stegun 7.1.26, within 1.5e-7, in fewer instructions than `gelu`: while it
// is computed the tensor cores wait.
__device__ __forceinline__ float short_gelu(float x) {
    float size = fabsf(x), t = quick_inverse(1.0f + 0.23164189f * size), e = quick_power(-0.72134752f * size * size);
    float tail = t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f))));
    return fmaxf(x, 0.0f) - size * tail * e;
}

// x Phi(x) within 3e-4 beside what the card's own tanh errs, 5e-4 of it: for results in 8 bits, whose rounding is 60 times
// that. The two factors make the error least.
__device__ __forceinline__ float rough_gelu(float x) {
    float half = 0.5f * x, tanh = x * (0.80015708f + 0.03470089f * x * x);
    asm("tanh.approx.f32 %0, %0;" : "+f"(tanh));
    return half + half * tanh;
}

// Most parts of a row's sums, an even number as all are.
const int PARTS = 8;

// The whole product: `columns` of the result, `steps` of 128 bytes of depth, `down` by `across` tiles, those of a row or of
// a column first.
struct Plan {
    int rows, columns, steps, down, across, row_first;
    __device__ __forceinline__ int row(int tile) const { return row_first ? tile / across : tile % down; }
    __device__ __forceinline__ int column(int tile) const { return row_first ? tile % across : tile / down; }
};

// What layer norms of rows need: the sums of each row's parts and of their squares. `sums`: those of x, in `parts` if there
// are any, by which its rows are normalised here, without their mean, which the weight does not see; where a copy in 8 bits
// is written, those of the residual. `leave`: where this product leaves those of its result, a part for each tile.
struct Norm {
    const float2 *sums;
    float2 *leave;
    int parts;
    float eps;
};

// Numbers of 8 bits: the scales of x's rows and of the weight's, and where those of the copy's rows go, if one is written.
struct Scales {
    const float *x, *w;
    float *copy;
};

// The power of two that brings numbers of this mean square to a size between one and two: in 8 bits, which reach from 2^-9 to
// 448, none of a row that wide is too large and few are too small. What a row becomes by adding to it is of a like size.
__device__ __forceinline__ float factor_of(float square) {
    int exponent = (int)(bits_of(sqrtf(square)) >> 23) - 127;
    return float_of((u32)(127 - min(max(exponent, -6), 15)) << 23);
}

// out [rows, columns] = x w^T + bias; GATED: the first half of the weight's rows, times GELU of the second, where `columns`
// counts the first, in 8 bits alone where E is; ADDS: plus residual; LEAVES: with sums of rows where norm.leave says so;
// COPIED: with a copy in 8 bits where scales.copy does. Numbers of 8 bits have their place among sixteen as `eights` says.
// All of this is known when it is compiled: branches would keep each part of a result waiting for the one before.
template <typename T, typename E, bool GATED, bool ADDS, bool LEAVES, bool COPIED>
__device__ __forceinline__ void product(const TensorMap &x, const TensorMap &w, const TensorMap &residual, const TensorMap &out,
                                        const TensorMap &copy, const float *bias, Scales scales, Plan plan, Norm norm) {
    const int KEPT = GATED ? WIDE / 2 : WIDE, DEEP = 128 / sizeof(E);
    const bool SCALED = sizeof(E) == 1, NARROW = SCALED && GATED;
    const int columns = plan.columns, steps = plan.steps, tiles = plan.down * plan.across;
    // The result leaves in parts of so many columns, a group's 64 rows of each, swizzled; in 8 bits all its columns at once.
    const int PART = KEPT % 64 == 0 ? 64 : 32, HALF = NARROW ? 0 : 64 * KEPT * 2, COPY = NARROW || COPIED ? 64 * KEPT : 0;
    // A float for each column and group, two in 8 bits: scale and bias.
    const int SIDES = (SCALED ? 16 : 8) * WIDE, STAGES = (SHARED - 2 * HALF - 2 * COPY - SIDES - 256) / STAGE;
    extern __shared__ Shared memory[];
    u32 stages = shared_address(memory), copies = stages + STAGES * STAGE, results = copies + 2 * COPY;
    float *biases = (float *)((u8 *)memory + STAGES * STAGE + 2 * COPY + 2 * HALF);
    u32 full = results + 2 * HALF + SIDES, empty = full + 8 * STAGES, added = empty + 8 * STAGES, vacant = added + 8;
    int group = threadIdx.x / 128;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 2);
        }
        barrier_init(added, 1);
        barrier_init(vacant, 2);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            u32 stage = 0, round = 0, turn = 0;
            int late = steps < STAGES ? steps - 1 : STAGES - 1;
            for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
                int row = plan.row(tile) * 128, column = plan.column(tile) * KEPT;
                for (int k = 0; k < steps; k++) {
                    u32 at = stages + stage * STAGE, barrier = full + 8 * stage;
                    barrier_wait(empty + 8 * stage, round ^ 1);
                    barrier_expect(barrier, STAGE);
                    fetch(at, x, k * DEEP, row, barrier);
                    fetch(at + 16384, w, k * DEEP, column, barrier);
                    if (GATED) fetch(at + 16384 + KEPT * 128, w, k * DEEP, columns + column, barrier);
                    // Behind what the first products need.
                    if (ADDS && k == late) {
                        barrier_wait(vacant, turn ^ 1);
                        barrier_expect(added, 2 * HALF);
                        for (int half = 0; half < 2; half++)
                            for (int part = 0; part < KEPT / PART; part++)
                                fetch(results + half * HALF + part * PART * 128, residual, column + part * PART,
                                      row + half * 64, added);
                    }
                    if (++stage == STAGES) stage = 0, round ^= 1;
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        int half = group - 1, thread = threadIdx.x % 128, lane = thread % 32;
        // Of the squares that this thread names: its row, and what that swizzles.
        int named = thread / 32 * 16 + lane % 16, swizzle = PART == 64 ? named & 7 : named >> 1 & 3;
        u32 own = results + half * HALF + named * PART * 2, own_copy = copies + half * COPY + named * KEPT;
        float *own_biases = biases + half * (SIDES / 8);
        u32 stage = 0, round = 0, turn = 0;
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, turn ^= 1) {
            int row = plan.row(tile) * 128 + half * 64, column = plan.column(tile) * KEPT;
            // Asked for before the products and looked at behind them, so that nobody waits: biases and scales of the tile's
            // columns, and of this thread's two rows the scale and the sums of which it is made.
            const int ASKED = (WIDE + 127) / 128;
            float asked[ASKED], scaled[ASKED], scale[2] = {1.0f, 1.0f}, factor[2] = {1.0f, 1.0f};
            float4 sums[2][PARTS / 2];
#pragma unroll
            for (int i = 0; i < ASKED; i++) {
                int at = i * 128 + thread, from = column + at + (GATED && at >= KEPT ? columns - KEPT : 0);
                asked[i] = bias && at < WIDE ? bias[from] : 0.0f;
                if (SCALED) scaled[i] = at < WIDE ? scales.w[from] : 0.0f;
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                i64 at = row + thread / 32 * 16 + lane / 4 + 8 * h;
                if (SCALED && at < plan.rows) scale[h] = scales.x[at];
#pragma unroll
                for (int i = 0; i < PARTS / 2; i++)
                    sums[h][i] = 2 * i < norm.parts && at < plan.rows
                                     ? *(const float4 *)(norm.sums + at * norm.parts + 2 * i)
                                     : float4{0.0f, 0.0f, 0.0f, 0.0f};
            }
            float d[WIDE / 2];
            u32 before = 0;
            for (int k = 0; k < steps; k++) {
                u32 at = stages + stage * STAGE;
                barrier_wait(full + 8 * stage, round);
                u64 left = describe(at + half * 8192), right = describe(at + 16384);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int i = 0; i < 4; i++) multiply(d, left + 2 * i, right + 2 * i, k + i, E());
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                // The product before this one has read its operands.
                asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
                if (k > 0 && thread == 0) barrier_arrive(empty + 8 * before);
                before = stage;
                if (++stage == STAGES) stage = 0, round ^= 1;
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (thread == 0) barrier_arrive(empty + 8 * before);
#pragma unroll
            for (int i = 0; i < ASKED; i++) {
                int at = i * 128 + thread;
                if (at < WIDE && SCALED) ((float2 *)own_biases)[at] = {scaled[i], asked[i]};
                else if (at < WIDE) own_biases[at] = asked[i];
            }
            if (norm.parts) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float sum = 0.0f, squares = 0.0f, count = COPIED ? columns : steps * DEEP;
#pragma unroll
                    for (int i = 0; i < PARTS / 2; i++)
                        sum += sums[h][i].x + sums[h][i].z, squares += sums[h][i].y + sums[h][i].w;
                    float mean = sum * quick_inverse(count), square = squares * quick_inverse(count);
                    if (COPIED) factor[h] = factor_of(square);
                    else scale[h] *= rsqrtf(fmaxf(square - mean * mean, 0.0f) + norm.eps);
                }
            }
            // The last tile's results are out of the way.
            if (ADDS) barrier_wait(added, turn);
            else if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
            group_sync(group);
            float2 left[2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
            // Of two sixteens of columns, each with its rows 0 to 7 and 8 to 15.
            u16 bytes[4][2];
#pragma unroll
            for (int g = 0; g < KEPT / 8; g += 2) {
                const int EIGHTS = PART / 8;
                u32 at = own + g / EIGHTS * (PART * 128) + ((g % EIGHTS + lane / 16 ^ swizzle) << 4);
                u32 y[4], r[4];
                if (ADDS) load_squares(r, at);
                float4 sides[4];
                if (SCALED) {
#pragma unroll
                    for (int i = 0; i < (GATED ? 4 : 2); i++)
                        sides[i] = *(const float4 *)(own_biases + 2 * (i / 2 * KEPT + (g + i % 2) * 8 + lane % 4 * 2));
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    // Square j: eight columns more for each second one, rows 8 to 15 of 16 for the odd ones.
                    int eight = g + j / 2, from = eight * 4 + j % 2 * 2, of = eight * 8 + lane % 4 * 2;
                    float a = d[from], b = d[from + 1], p, q;
                    if (GATED) p = d[from + WIDE / 4], q = d[from + WIDE / 4 + 1];
                    if (SCALED) {
                        float4 s = sides[j / 2];
                        a = a * scale[j % 2] * s.x + s.y, b = b * scale[j % 2] * s.z + s.w;
                        if (GATED) {
                            s = sides[2 + j / 2];
                            p = p * scale[j % 2] * s.x + s.y, q = q * scale[j % 2] * s.z + s.w;
                        }
                    } else {
                        a = a * scale[j % 2] + own_biases[of], b = b * scale[j % 2] + own_biases[of + 1];
                        if (GATED) {
                            p = p * scale[j % 2] + own_biases[KEPT + of];
                            q = q * scale[j % 2] + own_biases[KEPT + of + 1];
                        }
                    }
                    if (NARROW) a *= rough_gelu(p), b *= rough_gelu(q);
                    else if (GATED) a *= short_gelu(p), b *= short_gelu(q);
                    if (ADDS) {
                        float2 more = unpack<T>(r[j]);
                        a += more.x, b += more.y;
                    }
                    if (NARROW || COPIED)
                        bytes[g / 2 % 2 * 2 + j % 2][j / 2] = eights(a * factor[j % 2], b * factor[j % 2]);
                    if (NARROW) continue;
                    y[j] = pair(a, b, T());
                    if (LEAVES) {
                        float2 rounded = unpack<T>(y[j]);
                        left[j % 2].x += rounded.x + rounded.y;
                        left[j % 2].y += rounded.x * rounded.x + rounded.y * rounded.y;
                    }
                }
                if (!NARROW) store_squares(at, y);
                if (g % 4 == 2 && (NARROW || COPIED)) {
                    u32 z[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) z[i] = bytes[i][0] | (u32)bytes[i][1] << 16;
                    int sixteen = g / 2 - 1 + lane / 16;
                    store_squares(own_copy + ((NARROW ? sixteen ^ named & 7 : sixteen) << 4), z);
                }
            }
            if ((NARROW || COPIED && scales.copy) && plan.column(tile) == 0 && lane % 4 == 0)
                for (int h = 0; h < 2; h++) {
                    int at = row + thread / 32 * 16 + lane / 4 + 8 * h;
                    if (at < plan.rows) scales.copy[at] = 1.0f / factor[h];
                }
            if (LEAVES && norm.leave)
                for (int h = 0; h < 2; h++) {
                    // Four threads have a row.
                    for (int other = 1; other < 4; other *= 2) {
                        left[h].x += __shfl_xor_sync(0xffffffffu, left[h].x, other);
                        left[h].y += __shfl_xor_sync(0xffffffffu, left[h].y, other);
                    }
                    int at = row + thread / 32 * 16 + lane / 4 + 8 * h;
                    if (lane % 4 == 0 && at < plan.rows) norm.leave[(i64)at * plan.across + plan.column(tile)] = left[h];
                }
            // The copy engine sees what the threads wrote.
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            group_sync(group);
            if (thread == 0) {
                for (int part = 0; part < KEPT / PART && !NARROW; part++)
                    put(out, column + part * PART, row, results + half * HALF + part * PART * 128);
                if (NARROW || COPIED && scales.copy) put(NARROW ? out : copy, column, row, copies + half * COPY);
                asm volatile("cp.async.bulk.commit_group;" ::: "memory");
                if (ADDS) {
                    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                    barrier_arrive(vacant);
                }
            }
        }
        if (thread == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
}

#define TILES_OF(name, suffix, T, E, gated, adds, leaves, copied)                                                      \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                               \
        name##_##suffix(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,                      \
                        const __grid_constant__ TensorMap residual, const __grid_constant__ TensorMap out,             \
                        const __grid_constant__ TensorMap copy, const float *bias, Scales scales, Plan plan,           \
                        Norm norm) {                                                                                   \
        product<T, E, gated, adds, leaves, copied>(x, w, residual, out, copy, bias, scales, plan, norm);                       \
    }
#if WIDE == 256
TILES_OF(gated, f16, f16, f16, true, false, false, false)
TILES_OF(gated, bf16, bf16, bf16, true, false, false, false)
TILES_OF(gated_narrow, f16, f16, e4m3, true, false, false, false)
TILES_OF(gated_narrow, bf16, bf16, e4m3, true, false, false, false)
#else
TILES_OF(plain, f16, f16, f16, false, false, false, false)
TILES_OF(plain, bf16, bf16, bf16, false, false, false, false)
TILES_OF(begun, f16, f16, f16, false, false, true, false)
TILES_OF(begun, bf16, bf16, bf16, false, false, true, false)
TILES_OF(added, f16, f16, f16, false, true, true, false)
TILES_OF(added, bf16, bf16, bf16, false, true, true, false)
TILES_OF(added_copied, f16, f16, f16, false, true, true, true)
TILES_OF(added_copied, bf16, bf16, bf16, false, true, true, true)
TILES_OF(plain_narrow, f16, f16, e4m3, false, false, false, false)
TILES_OF(plain_narrow, bf16, bf16, e4m3, false, false, false, false)
TILES_OF(added_narrow, f16, f16, e4m3, false, true, true, true)
TILES_OF(added_narrow, bf16, bf16, e4m3, false, true, true, true)

// A layer behind a layer norm, as it reads rows that are only divided by their deviation: out [rows, depth] = w gamma less
// its rows' means, so that a mean of what they are multiplied by adds nothing; shift = w beta + bias. What rounding a number
// leaves goes to the next one, or the rows' sums would not be zero. A thread for each row, as this is done once.
template <typename T>
__device__ __forceinline__ void fold(const T *w, const float *gamma, const float *beta, const float *bias, T *out, float *shift,
                                     int rows, int depth) {
    int row = blockIdx.x * 32 + threadIdx.x;
    if (row >= rows) return;
    w += (i64)row * depth, out += (i64)row * depth;
    float sum = 0.0f, more = bias ? bias[row] : 0.0f, left = 0.0f;
    for (int k = 0; k < depth; k++) {
        float x = to_float(w[k]);
        sum += x * gamma[k], more += x * beta[k];
    }
    shift[row] = more;
    for (int k = 0; k < depth; k++) {
        float x = to_float(w[k]) * gamma[k] - sum / depth + left;
        from_float(x, out[k]);
        left = x - to_float(out[k]);
    }
}
#define FOLD(T)                                                                                                        \
    (const T *w, const float *gamma, const float *beta, const float *bias, T *out, float *shift, int rows, int depth)
KERNEL_OF(fold, f16, f16, FOLD, (w, gamma, beta, bias, out, shift, rows, depth))
KERNEL_OF(fold, bf16, bf16, FOLD, (w, gamma, beta, bias, out, shift, rows, depth))
#endif
