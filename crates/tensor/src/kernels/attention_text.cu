// Attention over few keys on Hopper, heads of 64 numbers, f16 or bf16: over text and identity, in a block for each multiprocessor
// that asks for all it needs at once; over identity alone, by warps that need nothing of each other. Bound: memory, and waiting
// for it.
//
// `multiply` for 80 and 96 columns and `weigh` are generated in front of this file, behind fragments.cuh and hopper.cuh.

// The most keys of the first branch and of the second; the most groups of four warps in a block.
const int FIRST = 80, SECOND = 16, GROUPS = 5;

// How many pieces of work there are in all, and how many a group of warps takes, one after the other.
struct Share { int pieces, rounds; };

// 16 bytes from global to shared memory on the way; zeros where `there` is false.
__device__ __forceinline__ void ask(u32 to, const u16 *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
// What was asked for is there, for this thread and for products.
__device__ __forceinline__ void arrived() {
    fetch_wait<0>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Which head of which picture a piece is of, where each has `per` of them, and its first row of `tall`.
struct Piece {
    int picture, head, row;
    __device__ __forceinline__ Piece(int piece, int per, int heads, int tall) {
        int whole = piece / per;
        picture = whole / heads, head = whole - picture * heads, row = (piece - whole * per) * tall;
    }
};

// The largest scores, times `factor`, of this thread's two rows in columns FROM to FROM + COUNT, of which those from `m` on are
// made infinitely small.
template <int FROM, int COUNT, int N>
__device__ __forceinline__ void largest(float (&s)[N], int m, float factor, float (&top)[2]) {
    int place = threadIdx.x % 4 * 2;
    // All but the last eight in a branch of their own, as a text seldom has so few.
    if (m <= COUNT - 8) {
#pragma unroll
        for (int i = 0; i < COUNT / 2 - 4; i++)
            if (i / 4 * 8 + place + i % 2 >= m) s[FROM / 2 + i] = -INFINITY;
    }
#pragma unroll
    for (int i = COUNT / 2 - 4; i < COUNT / 2; i++)
        if (i / 4 * 8 + place + i % 2 >= m) s[FROM / 2 + i] = -INFINITY;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float a = s[FROM / 2 + 2 * h], b = s[FROM / 2 + 2 * h + 1];
#pragma unroll
        for (int i = 1; i < COUNT / 8; i++) {
            a = fmaxf(a, s[FROM / 2 + 4 * i + 2 * h]);
            b = fmaxf(b, s[FROM / 2 + 4 * i + 2 * h + 1]);
        }
        top[h] = row_max(fmaxf(a, b)) * factor;
    }
}

// `softmax(q k^T scale) v` over up to FIRST keys, and for BOTH plus `weight` times the same over up to SECOND others. A piece of
// work is 64 queries of a head, one for each group of four warps, up to GROUPS of them in a block, whose pieces are of two heads
// at most. Shared memory: for each group two times 64 queries of 128 bytes, then keys and values of each head, all swizzled.
template <typename T, bool BOTH>
__device__ __forceinline__ void attend_text(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out, Counts counts,
                                            Strides strides, float scale, float weight, Share share) {
    const int KEYS = BOTH ? FIRST + SECOND : FIRST, TILE = KEYS * 128;
    extern __shared__ Shared memory[];
    int n = counts.n, heads = counts.heads, per = (n + 63) / 64, together = blockDim.x / 128, rounds = share.rounds;
    int first = blockIdx.x * together * rounds, last = min(first + together * rounds, share.pieces) - 1;
    int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0), thread = threadIdx.x % 128, lane = thread % 32;
    u32 queries = shared_address(memory) + group * 8192, next = together * 8192;
    u32 all_keys = shared_address(memory) + 2 * next;
    // Eight threads ask for a row.
    int line = thread / 8, column = thread % 8 * 8;
    u32 swizzled = (thread % 8 ^ line & 7) << 4;
    auto ask_queries = [&](int piece, u32 to) {
        if (piece > last) return;
        Piece at(piece, per, heads, 64);
        const u16 *from = (const u16 *)q + ((i64)at.picture * n + at.row + line) * strides.q + at.head * 64 + column;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool there = at.row + line + 16 * i < n;
            ask(to + (line + 16 * i) * 128 + swizzled, there ? from + (i64)16 * i * strides.q : (const u16 *)q, there);
        }
    };
    ask_queries(first + group, queries);
    int head0 = first / per, rows = (last / per - head0 + 1) * KEYS;
    for (int r = threadIdx.x / 8; r < rows; r += together * 16) {
        int slot = r >= KEYS, row = r - slot * KEYS, picture = (head0 + slot) / heads, head = head0 + slot - picture * heads;
        u32 to = all_keys + slot * 2 * TILE + row * 128 + swizzled;
        bool one = !BOTH || row < FIRST;
        if (!one) row -= FIRST;
        int m = one ? counts.m : counts.m2;
        bool there = row < m;
        i64 at = ((i64)picture * m + (there ? row : 0)) * (one ? strides.k : strides.k2) + head * 64 + column;
        ask(to, (const u16 *)(one ? k : k2) + at, there);
        ask(to + TILE, (const u16 *)(one ? v : v2) + at, there);
    }
    fetch_commit();
    arrived();
    __syncthreads();
    float factor = scale * 1.4426950408889634f;
    for (int round = 0; round < rounds; round++) {
        int piece = first + round * together + group;
        if (piece > last) break;
        Piece at(piece, per, heads, 64);
        u32 keys = all_keys + (piece / per - head0) * 2 * TILE, mine = queries + round % 2 * next;
        if (round) {
            arrived();
            group_sync(1 + group);
        }
        ask_queries(piece + together, queries + (round + 1) % 2 * next);
        fetch_commit();
        float s[KEYS / 2], o[32] = {}, top[2], top2[2], total[2] = {0.0f, 0.0f}, total2[2] = {0.0f, 0.0f};
        u32 p[KEYS / 4];
        u64 left = describe(mine), right = describe(keys), values = describe(keys + TILE);
        products_begin();
#pragma unroll
        for (int i = 0; i < 4; i++) multiply(s, left + 2 * i, right + 2 * i, i, T());
        products_end();
        products_wait();
        settle(s);
        largest<0, FIRST>(s, counts.m, factor, top);
        if (BOTH) {
            largest<FIRST, KEYS - FIRST>(s, counts.m2, factor, top2);
#pragma unroll
            for (int i = FIRST / 2; i < KEYS / 2; i++) {
                s[i] = power_of_two(s[i] * factor - top2[i / 2 % 2]);
                total2[i / 2 % 2] += s[i];
            }
        }
        // Weights of 16 keys are multiplied while those of the next are computed; for one branch alone the compiler makes the
        // products wait for each other then.
#pragma unroll
        for (int t = 0; t < FIRST / 16; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *x = s + t * 8 + 2 * i;
                float a = power_of_two(x[0] * factor - top[i % 2]), b = power_of_two(x[1] * factor - top[i % 2]);
                total[i % 2] += a + b;
                p[t * 4 + i] = pair(a, b, T());
            }
            if (BOTH) {
                products_begin();
                weigh(o, p + t * 4, values + 128 * t, T());
                products_end();
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) total[h] = row_sum(total[h]);
        if (BOTH) {
            // The result is divided by the first branch's sum.
            float part[2];
#pragma unroll
            for (int h = 0; h < 2; h++) part[h] = weight * total[h] * quick_inverse(row_sum(total2[h]));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *x = s + FIRST / 2 + 2 * i;
                p[FIRST / 4 + i] = pair(x[0] * part[i % 2], x[1] * part[i % 2], T());
            }
        }
        products_begin();
#pragma unroll
        for (int t = BOTH ? FIRST / 16 : 0; t < KEYS / 16; t++) weigh(o, p + t * 4, values + 128 * t, T());
        products_end();
#pragma unroll
        for (int h = 0; h < 2; h++) total[h] = quick_inverse(total[h]);
        products_wait();
        settle(o);
        settle(p);
        // All four warps are done with the queries, whose place results take on their way, so that whole lines are written.
        group_sync(1 + group);
        u32 named = mine + (thread / 32 * 16 + lane % 16) * 128;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 x[4];
#pragma unroll
            for (int e = 0; e < 4; e++) x[e] = pair(o[8 * i + 2 * e] * total[e % 2], o[8 * i + 2 * e + 1] * total[e % 2], T());
            store_squares(named + ((2 * i + lane / 16 ^ lane & 7) << 4), x);
        }
        __syncwarp();
        u16 *to = (u16 *)out + (((i64)at.picture * n + at.row) * heads + at.head) * 64 + lane % 8 * 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = thread / 32 * 16 + i * 4 + lane / 8;
            uint4 x;
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                         : "r"(mine + r * 128 + ((lane % 8 ^ r & 7) << 4)) : "memory");
            if (at.row + r < n) *(uint4 *)(to + (i64)r * heads * 64) = x;
        }
    }
}

// Numbers of a row of 64 that the four threads of it have: eight from 8 `part` on, and eight from 32 behind that.
struct Parts {
    uint4 x[2];
    __device__ __forceinline__ u32 operator[](int i) const { return ((const u32 *)x)[i]; }
};

// `softmax(q k^T scale) v` over up to 16 keys; a warp has TALL queries of a head. Fragments are read as they lie, in another
// order of columns, in which queries and keys, values and results agree: nothing passes through shared memory.
const int TALL = 32;
template <typename T>
__device__ __forceinline__ void attend_thin(const T *q, const T *k, const T *v, T *out, Counts counts, Strides strides,
                                            float scale, Share share) {
    int n = counts.n, m = counts.m, heads = counts.heads, piece = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32, line = lane / 4, part = lane % 4;
    if (piece >= share.pieces) return;
    Piece at(piece, (n + TALL - 1) / TALL, heads, TALL);
    auto parts = [&](const T *x, i64 row, int stride) {
        const u16 *from = (const u16 *)x + row * stride + at.head * 64 + part * 8;
        return Parts{{__ldg((const uint4 *)from), __ldg((const uint4 *)(from + 32))}};
    };
    Parts queries[TALL / 16][2], keys[2];
    uint4 values[4];
#pragma unroll
    for (int t = 0; t < TALL / 16; t++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            queries[t][h] = parts(q, (i64)at.picture * n + min(at.row + t * 16 + h * 8 + line, n - 1), strides.q);
#pragma unroll
    for (int h = 0; h < 2; h++) keys[h] = parts(k, (i64)at.picture * m + min(h * 8 + line, m - 1), strides.k);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int key = i / 2 * 8 + part * 2 + i % 2, first = line / 2 * 8 + line % 2 * 32;
        const u16 *from = (const u16 *)v + ((i64)at.picture * m + min(key, m - 1)) * strides.k + at.head * 64 + first;
        values[i] = __ldg((const uint4 *)from);
    }
    float factor = scale * 1.4426950408889634f;
#pragma unroll
    for (int t = 0; t < TALL / 16; t++) {
        float s[2][4] = {}, o[8][4] = {}, total[2];
        u32 p[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 a[4] = {queries[t][0][i], queries[t][1][i], queries[t][0][4 + i], queries[t][1][4 + i]};
#pragma unroll
            for (int h = 0; h < 2; h++) mma(s[h], a, keys[h][i], keys[h][4 + i], T());
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i / 4 * 8 + part * 2 + i % 2 >= m) s[i / 4][i % 4] = -INFINITY;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = row_max(fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]))) * factor;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float a = power_of_two(s[i][2 * h] * factor - top), b = power_of_two(s[i][2 * h + 1] * factor - top);
                sum += a + b;
                p[2 * i + h] = pair(a, b, T());
            }
            total[h] = quick_inverse(row_sum(sum));
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            auto both = [&](int i) {
                return __byte_perm(((u32 *)&values[i])[j / 2], ((u32 *)&values[i + 1])[j / 2], j % 2 ? 0x7632 : 0x5410);
            };
            mma(o[j], p, both(0), both(2), T());
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 x[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int j = i % 4 * 2, e = 2 * h + i / 4;
                x[i] = pair(o[j][e] * total[h], o[j + 1][e] * total[h], T());
            }
            int row = at.row + t * 16 + h * 8 + line;
            if (row >= n) continue;
            u16 *to = (u16 *)out + (((i64)at.picture * n + row) * heads + at.head) * 64 + part * 8;
            *(uint4 *)to = uint4{x[0], x[1], x[2], x[3]};
            *(uint4 *)(to + 32) = uint4{x[4], x[5], x[6], x[7]};
        }
    }
}

#define TEXT(name, threads, blocks, T, call)                                                                           \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                                      \
        name(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out, Counts counts, Strides strides,     \
             float scale, float weight, Share share) {                                                                 \
        call;                                                                                                          \
    }
#define TEXTS(suffix, T)                                                                                               \
    TEXT(attend_both_##suffix, 128 * GROUPS, 1, T,                                                                     \
         (attend_text<T, true>(q, k, v, k2, v2, out, counts, strides, scale, weight, share)))                          \
    TEXT(attend_text_##suffix, 128 * GROUPS, 1, T,                                                                     \
         (attend_text<T, false>(q, k, v, k2, v2, out, counts, strides, scale, weight, share)))                         \
    TEXT(attend_thin_##suffix, 128, 5, T, attend_thin(q, k, v, out, counts, strides, scale, share))
TEXTS(f16, f16)
TEXTS(bf16, bf16)
