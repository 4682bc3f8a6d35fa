// Heads of up to HEAD numbers, 64 at most, f16 or bf16, on tensor cores, over so few keys that a block of 64 queries holds all
// of them: text and identity tokens. Bound: memory, and waiting for it.

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// Sixteens of keys that the kernel for few keys takes: of the first branch, and with one of the second.
#define FEW 5
#define FEWER (FEW + 1)

// All rows of x, up to a whole sixteen with zeros.
__device__ __forceinline__ void stage_all(u16 *tile, const u16 *x, int rows, int d, i64 stride) {
    for (int i = threadIdx.x; i < (rows + 15) / 16 * 16 * TILES; i += 128) {
        int r = i / TILES, e = i % TILES * 8;
        bool there = r < rows && e < d;
        fetch(tile + r * ROW + e, there ? x + r * stride + e : x, there);
    }
}

// Turns scores of `count` sixteens, of which `m` keys count, into weights whose sum is returned for the thread's two rows.
__device__ __forceinline__ void soften(float (*s)[2][4], int count, int m, float factor, float (&total)[2]) {
    int place = threadIdx.x % 4 * 2;
    float top[2] = {-INFINITY, -INFINITY};
    total[0] = total[1] = 0.0f;
#pragma unroll
    for (int t = 0; t < count; t++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (t * 16 + j * 8 + place + i % 2 >= m) s[t][j][i] = -INFINITY;
                top[i / 2] = fmaxf(top[i / 2], s[t][j][i]);
            }
#pragma unroll
    for (int h = 0; h < 2; h++) top[h] = row_max(top[h]) * factor;
#pragma unroll
    for (int t = 0; t < count; t++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[t][j][i] = power_of_two(s[t][j][i] * factor - top[i / 2]);
                total[i / 2] += s[t][j][i];
            }
#pragma unroll
    for (int h = 0; h < 2; h++) total[h] = row_sum(total[h]);
}

// acc += p v for a sixteen of keys.
template <typename T>
__device__ __forceinline__ void weigh(const float (&p)[2][4], const u16 *values, float (&acc)[TILES][4]) {
    int lane = threadIdx.x % 32;
    u32 a[4], b[4];
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = pair(p[i / 2][i % 2 * 2], p[i / 2][i % 2 * 2 + 1], T());
#pragma unroll
    for (int j = 0; j < TILES; j += 2) {
        load4_transposed(b, values + lane % 16 * ROW + j * 8 + lane / 16 * 8);
        mma(acc[j], a, b[0], b[1], T());
        mma(acc[j + 1], a, b[2], b[3], T());
    }
}

// As the general kernel where the first branch has at most 16 FEW keys and the second at most 16: everything is asked for
// at once, so a block waits for memory once where it would wait for each tile. Not causal; grid (n / 64, heads, b), 128
// threads, 64 + 2 * 16 FEWER rows of shared memory.
template <typename T>
__device__ __forceinline__ void attend_few(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out,
                                           Counts counts, Strides strides, float scale, float weight) {
    extern __shared__ u16 tiles[];
    int n = counts.n, d = counts.d, head = blockIdx.y, picture = blockIdx.z, block = blockIdx.x * 64;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, place = lane % 4 * 2;
    u16 *keys = tiles + 64 * ROW, *values = keys + 16 * FEWER * ROW;
    const u16 *mine = (const u16 *)q + ((i64)picture * n + block) * strides.q + head * d;
    i64 at = (i64)picture * counts.m * strides.k + head * d, at2 = (i64)picture * counts.m2 * strides.k2 + head * d;
    stage_all(tiles, mine, n - block < 64 ? n - block : 64, d, strides.q);
    stage_all(keys, (const u16 *)k + at, counts.m, d, strides.k);
    if (k2) stage_all(keys + 16 * FEW * ROW, (const u16 *)k2 + at2, counts.m2, d, strides.k2);
    fetch_commit();
    stage_all(values, (const u16 *)v + at, counts.m, d, strides.k);
    if (k2) stage_all(values + 16 * FEW * ROW, (const u16 *)v2 + at2, counts.m2, d, strides.k2);
    fetch_commit();
    int used = (counts.m + 15) / 16;
    float s[FEWER][2][4];
#pragma unroll
    for (int t = 0; t < FEWER; t++)
#pragma unroll
        for (int i = 0; i < 8; i++) s[t][i / 4][i % 4] = 0.0f;
    fetch_wait<1>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 a[4], b[4];
        load4(a, tiles + (warp * 16 + lane % 16) * ROW + step * 16 + lane / 16 * 8);
#pragma unroll
        for (int t = 0; t < FEWER; t++) {
            if (t < FEW ? t >= used : !k2) continue;
            load4(b, keys + (t * 16 + lane / 16 * 8 + lane % 8) * ROW + step * 16 + lane / 8 % 2 * 8);
            mma(s[t][0], a, b[0], b[1], T());
            mma(s[t][1], a, b[2], b[3], T());
        }
    }
    float factor = scale * 1.4426950408889634f, total[2], sum[TILES][4];
    soften(s, FEW, counts.m, factor, total);
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[j][i] = 0.0f;
    fetch_wait<0>();
    __syncthreads();
#pragma unroll
    for (int t = 0; t < FEW; t++) {
        if (t < used) weigh<T>(s[t], values + t * 16 * ROW, sum);
    }
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[j][i] /= total[i / 2];
    if (k2) {
        soften(s + FEW, 1, counts.m2, factor, total);
#pragma unroll
        for (int i = 0; i < 8; i++) s[FEW][i / 4][i % 4] *= weight / total[i / 2 % 2];
        weigh<T>(s[FEW], values + 16 * FEW * ROW, sum);
    }
    // By way of the warp's own queries, of which nothing is needed any more, so that whole lines are written.
    u16 *rows = tiles + warp * 16 * ROW, *to = (u16 *)out + ((i64)picture * n + block) * counts.heads * d + head * d;
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            *(u32 *)(rows + (group + h * 8) * ROW + j * 8 + place) = pair(sum[j][2 * h], sum[j][2 * h + 1], T());
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        int r = (i * 32 + lane) / TILES, e = (i * 32 + lane) % TILES * 8, row = warp * 16 + r;
        if (block + row < n && e < d) *(Pack<T> *)(to + (i64)row * counts.heads * d + e) = *(Pack<T> *)(rows + r * ROW + e);
    }
}
#define ATTEND_FEW(suffix, type)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128, 5) attend_few_##suffix ATTEND(type) {                            \
        attend_few<type>(q, k, v, k2, v2, out, counts, strides, scale, weight);                                        \
    }
ATTEND_FEW(f16, f16)
ATTEND_FEW(bf16, bf16)
#endif
