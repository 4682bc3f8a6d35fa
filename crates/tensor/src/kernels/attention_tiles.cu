// Heads of up to HEAD numbers, f16 or bf16, on tensor cores (mma.sync): a block of four warps has 16 or 32 queries of one
// head for each warp; tiles of 64 keys and values lie in shared memory, the next one on its way while one is worked on.
// Scores, weights and sums stay in registers. With 32 queries what is read from shared memory serves twice as many
// products; with 16 there is room for the sum of two branches. Bound: tensor cores and exponentials; 4 n m d operations.

#define KEYS 64
// Rows base .. base + 64 of x, `stride` numbers apart, into a tile; zeros beyond `rows` and beyond `d`, of which rows that
// no product reads are left out.
__device__ __forceinline__ void stage(u16 *tile, const u16 *x, int base, int rows, int d, i64 stride) {
    int needed = rows - base < KEYS ? (rows - base + 15) / 16 * 16 : KEYS;
    for (int i = threadIdx.x; i < needed * TILES; i += 128) {
        int r = i / TILES, e = i % TILES * 8;
        bool there = base + r < rows && e < d;
        fetch(tile + r * ROW + e, there ? x + (base + r) * stride + e : x, there);
    }
}

// Keys and values of one branch: `m` rows, of which those before `end` count, `rounds` tiles.
template <typename T> struct Branch {
    const u16 *k, *v;
    int m, end, rounds;
    i64 stride;
};
template <typename T>
__device__ __forceinline__ Branch<T> branch_of(const T *k, const T *v, int m, int end, i64 stride) {
    return {(const u16 *)k, (const u16 *)v, m, end, (end + KEYS - 1) / KEYS, stride};
}

// Two pairs of tiles: keys and values of this round and of the next.
#define PAIR (2 * KEYS * ROW)

// Asks for the tiles of a round, the second branch's following the first's.
template <typename T>
__device__ __forceinline__ void request(u16 *tiles, const Branch<T> &one, const Branch<T> &two, int round, int d) {
    bool first = round < one.rounds;
    int base = (first ? round : round - one.rounds) * KEYS, m = first ? one.m : two.m;
    i64 stride = first ? one.stride : two.stride;
    u16 *to = tiles + round % 2 * PAIR;
    stage(to, first ? one.k : two.k, base, m, d, stride);
    stage(to + KEYS * ROW, first ? one.v : two.v, base, m, d, stride);
    fetch_commit();
}

// Asks for the next round's tiles, if there is one, and waits for this one's.
template <typename T>
__device__ __forceinline__ void advance(u16 *tiles, const Branch<T> &one, const Branch<T> &two, int round, int d) {
    if (round + 1 < one.rounds + two.rounds) {
        request(tiles, one, two, round + 1, d);
        fetch_wait<1>();
    } else {
        fetch_wait<0>();
    }
    __syncthreads();
}

// s = q k^T for the keys of a tile, of which there are `used` sixteens; -infinity for keys from m on, and for those after
// the query where `causal`. `first` is the warp's first query, `base` the tile's first key.
template <typename T, int M>
__device__ __forceinline__ void scores(const u32 (&q)[M][STEPS][4], const u16 *keys, int used, int m, int base,
                                       int first, int causal, float (&s)[M][8][4]) {
    int lane = threadIdx.x % 32, group = lane / 4, place = lane % 4 * 2;
#pragma unroll
    for (int part = 0; part < M; part++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[part][j][i] = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            if (j / 2 >= used) break;
            // Keys j 8 .. j 8 + 16 and 16 numbers of each.
            u32 b[4];
            load4(b, keys + (j * 8 + lane / 16 * 8 + lane % 8) * ROW + step * 16 + lane / 8 % 2 * 8);
#pragma unroll
            for (int part = 0; part < M; part++) {
                mma(s[part][j], q[part][step], b[0], b[1], T());
                mma(s[part][j + 1], q[part][step], b[2], b[3], T());
            }
        }
    }
    if (causal || base + KEYS > m) {
        // Rows group and group + 8; columns base + 8 j + place and the next.
#pragma unroll
        for (int part = 0; part < M; part++)
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int key = base + j * 8 + place + i % 2, query = first + part * 16 + group + i / 2 * 8;
                    if (key >= m || (causal && key > query)) s[part][j][i] = -INFINITY;
                }
    }
}

// acc += p v for the values of a tile.
template <typename T, int M>
__device__ __forceinline__ void accumulate(const float (&p)[M][8][4], const u16 *values, int used,
                                           float (&acc)[M][TILES][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < 4; step++) {
        if (step >= used) break;
        // The scores' registers are the weights' fragments as they lie.
        u32 a[M][4];
#pragma unroll
        for (int part = 0; part < M; part++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float(&from)[4] = p[part][2 * step + i / 2];
                a[part][i] = pair(from[i % 2 * 2], from[i % 2 * 2 + 1], T());
            }
#pragma unroll
        for (int j = 0; j < TILES; j += 2) {
            u32 b[4];
            load4_transposed(b, values + (step * 16 + lane % 16) * ROW + j * 8 + lane / 16 * 8);
#pragma unroll
            for (int part = 0; part < M; part++) {
                mma(acc[part][j], a[part], b[0], b[1], T());
                mma(acc[part][j + 1], a[part], b[2], b[3], T());
            }
        }
    }
}

// One branch for the queries of the block, the second where `later`: acc = weight * softmax(q k^T) v. Its first tiles are
// on their way. `q` holds the warp's fragments, 16 queries in each of M, `factor` is the scale times log2(e), `first` the
// warp's first query.
template <typename T, int M>
__device__ __forceinline__ void branch(const u32 (&q)[M][STEPS][4], u16 *tiles, const Branch<T> &one,
                                       const Branch<T> &two, bool later, int d, int first, float factor, int causal,
                                       float weight, float (&acc)[M][TILES][4]) {
    int m = later ? two.m : one.m, from = later ? one.rounds : 0, to = later ? one.rounds + two.rounds : one.rounds;
    float highest[M][2], total[M][2];
#pragma unroll
    for (int part = 0; part < M; part++) {
        highest[part][0] = highest[part][1] = -INFINITY;
        total[part][0] = total[part][1] = 0.0f;
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[part][j][i] = 0.0f;
    }
    for (int round = from; round < to; round++) {
        const u16 *keys = tiles + round % 2 * PAIR;
        int base = (round - from) * KEYS;
        // Sixteens of keys that there are.
        int used = m - base < KEYS ? (m - base + 15) / 16 : KEYS / 16;
        advance(tiles, one, two, round, d);
        float s[M][8][4];
        scores<T, M>(q, keys, used, m, base, first, causal, s);
#pragma unroll
        for (int part = 0; part < M; part++) {
            float top[2] = {highest[part][0], highest[part][1]}, change[2];
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) top[i / 2] = fmaxf(top[i / 2], s[part][j][i]);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                top[h] = row_max(top[h]);
                // A query may see none of these keys; then nothing changes.
                float safe = top[h] == -INFINITY ? 0.0f : top[h] * factor;
                change[h] = power_of_two(highest[part][h] * factor - safe);
                highest[part][h] = top[h];
                top[h] = safe;
                total[part][h] *= change[h];
            }
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (j / 2 >= used) break;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[part][j][i] = power_of_two(s[part][j][i] * factor - top[i / 2]);
                    total[part][i / 2] += s[part][j][i];
                }
            }
#pragma unroll
            for (int j = 0; j < TILES; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) acc[part][j][i] *= change[i / 2];
        }
        accumulate<T, M>(s, keys + KEYS * ROW, used, acc);
        __syncthreads();
    }
#pragma unroll
    for (int part = 0; part < M; part++) {
#pragma unroll
        for (int h = 0; h < 2; h++) total[part][h] = weight / row_sum(total[part][h]);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[part][j][i] *= total[part][i / 2];
    }
}

// acc += weight * softmax(q k^T) v for a second branch of one tile, whose sums are known before the values are needed, so
// that no second result has to be held.
template <typename T>
__device__ __forceinline__ void short_branch(const u32 (&q)[1][STEPS][4], u16 *tiles, const Branch<T> &one,
                                             const Branch<T> &two, int d, float factor, float weight,
                                             float (&acc)[1][TILES][4]) {
    const u16 *keys = tiles + one.rounds % 2 * PAIR;
    int used = (two.m + 15) / 16;
    advance(tiles, one, two, one.rounds, d);
    float s[1][8][4], top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    scores<T, 1>(q, keys, used, two.m, 0, 0, 0, s);
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) top[i / 2] = fmaxf(top[i / 2], s[0][j][i]);
#pragma unroll
    for (int h = 0; h < 2; h++) top[h] = row_max(top[h]) * factor;
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[0][j][i] = power_of_two(s[0][j][i] * factor - top[i / 2]);
            total[i / 2] += s[0][j][i];
        }
#pragma unroll
    for (int h = 0; h < 2; h++) total[h] = weight / row_sum(total[h]);
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[0][j][i] *= total[i / 2];
    accumulate<T, 1>(s, keys + KEYS * ROW, used, acc);
}

// As the general kernel, with M times 64 queries in a block and two branches only where M is 1, the second of one tile
// where SHORT; d is a multiple of 8 and
// at most HEAD, rows begin at multiples of 16 bytes, the scale is positive. Grid (n / (64 M), heads, b), 128 threads,
// 4 * 64 * ROW numbers of shared memory.
template <typename T, int M, bool SHORT>
__device__ __forceinline__ void attend_rows(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out,
                                            Counts counts, Strides strides, float scale, int causal, float weight) {
    extern __shared__ u16 tiles[];
    int n = counts.n, d = counts.d, head = blockIdx.y, picture = blockIdx.z;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4 * 2;
    int block = blockIdx.x * 64 * M, first = block + warp * 16 * M;
    // The block's queries by way of the second tiles, while the first keys and values come.
    const u16 *mine = (const u16 *)q + (i64)picture * n * strides.q + head * d;
#pragma unroll
    for (int part = 0; part < M; part++) {
        stage(tiles + PAIR + part * KEYS * ROW, mine, block + part * 64, n, d, strides.q);
    }
    fetch_commit();
    int last = block + 64 * M;
    i64 at = (i64)picture * counts.m * strides.k + head * d;
    Branch<T> one = branch_of(k + at, v + at, counts.m, causal && last < counts.m ? last : counts.m, strides.k), two = one;
    two.rounds = 0;
    if (M == 1 && k2) {
        at = (i64)picture * counts.m2 * strides.k2 + head * d;
        two = branch_of(k2 + at, v2 + at, counts.m2, counts.m2, strides.k2);
    }
    request(tiles, one, two, 0, d);
    fetch_wait<1>();
    __syncthreads();
    u32 fragments[M][STEPS][4];
#pragma unroll
    for (int part = 0; part < M; part++)
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            load4(fragments[part][step],
                  tiles + PAIR + ((warp * M + part) * 16 + lane % 16) * ROW + step * 16 + lane / 16 * 8);
        }
    __syncthreads();
    float sum[M][TILES][4];
    float factor = scale * 1.4426950408889634f;
    branch<T, M>(fragments, tiles, one, two, false, d, first, factor, causal, 1.0f, sum);
    if constexpr (SHORT) {
        if (two.rounds) short_branch<T>(fragments, tiles, one, two, d, factor, weight, sum);
    }
    if (!SHORT && M == 1 && k2) {
        float second[M][TILES][4];
        branch<T, M>(fragments, tiles, one, two, true, d, first, factor, 0, weight, second);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[0][j][i] += second[0][j][i];
    }
    u16 *to = (u16 *)out + (i64)picture * n * counts.heads * d + head * d;
#pragma unroll
    for (int part = 0; part < M; part++)
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                int row = first + part * 16 + group + h * 8, column = j * 8 + place;
                if (row < n && column < d) {
                    *(u32 *)(to + (i64)row * counts.heads * d + column) =
                        pair(sum[part][j][2 * h], sum[part][j][2 * h + 1], T());
                }
            }
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <typename T>
__device__ __forceinline__ void attend(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out,
                                       Counts counts, Strides strides, float scale, int causal, float weight) {
    attend_rows<T, 1, false>(q, k, v, k2, v2, out, counts, strides, scale, causal, weight);
}
KERNEL_OF(attend, f16, f16, ATTEND, (q, k, v, k2, v2, out, counts, strides, scale, causal, weight))
KERNEL_OF(attend, bf16, bf16, ATTEND, (q, k, v, k2, v2, out, counts, strides, scale, causal, weight))
// With few registers, so that more blocks run at once.
template <typename T>
__device__ __forceinline__ void attend_short(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out,
                                             Counts counts, Strides strides, float scale, int causal, float weight) {
    attend_rows<T, 1, true>(q, k, v, k2, v2, out, counts, strides, scale, causal, weight);
}
#define ATTEND_SHORT(suffix, type)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128, HEAD <= 64 ? 5 : 1) attend_short_##suffix ATTEND(type) {         \
        attend_short<type>(q, k, v, k2, v2, out, counts, strides, scale, causal, weight);                              \
    }
ATTEND_SHORT(f16, f16)
ATTEND_SHORT(bf16, bf16)
#if HEAD <= 64
template <typename T>
__device__ __forceinline__ void attend_many(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out,
                                            Counts counts, Strides strides, float scale, int causal, float weight) {
    attend_rows<T, 2, false>(q, k, v, k2, v2, out, counts, strides, scale, causal, weight);
}
KERNEL_OF(attend_many, f16, f16, ATTEND, (q, k, v, k2, v2, out, counts, strides, scale, causal, weight))
KERNEL_OF(attend_many, bf16, bf16, ATTEND, (q, k, v, k2, v2, out, counts, strides, scale, causal, weight))
#endif
#endif
