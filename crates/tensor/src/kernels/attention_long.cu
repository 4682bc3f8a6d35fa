// Attention of many queries over many keys on Hopper's tensor cores, heads of 64 numbers, f16 or bf16: up to five groups of four
// warps in a block, each with 64 queries. The copy engine brings keys and values, 64 at a time, for all groups of a head;
// scores, weights and the sum stay in registers, where a group takes turns with the others at the tensor cores, so that some
// multiply while others compute exponentials. Bound: tensor cores, exponentials, and what else is computed beside products.
//
// `multiply` and `weigh` are generated in front of this file, behind fragments.cuh and hopper.cuh.

// Queries of a group and keys of a tile, of 128 bytes each; most groups; tiles on their way for each head of a block.
const int BLOCK = 64, TILE_BYTES = BLOCK * 128, GROUPS = 5, STAGES = 4;
// A tile is asked for when so many before it are still read.
const int LAG = 2;
// Weights are 2^LIFT times what they should be, so that small ones are not rounded as subnormal numbers; the largest score of a
// row is taken anew, and its sum scaled, when another exceeds it by that of 2^SLACK.
const float LIFT = 6.0f, SLACK = 4.0f;

// `groups` in all, `per_head` of them for each of `heads` in a picture, `together` in a block; columns where the first heads of
// queries, keys and values begin.
struct Plan {
    int groups, per_head, heads, keys, together;
    int first[3];
    float factor;
};

__device__ __forceinline__ void fetch(u32 to, const TensorMap &map, int column, int row, int picture, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(to),
                 "l"(&map), "r"(column), "r"(row), "r"(picture), "r"(barrier) : "memory");
}
__device__ __forceinline__ void put(const TensorMap &map, int column, int row, int picture, u32 from) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map), "r"(column),
                 "r"(row), "r"(picture), "r"(from) : "memory");
}
// Brings a description itself, which else is waited for before what it describes.
__device__ __forceinline__ void foresee(const TensorMap &map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// The same number in all threads of a warp, in a register of its own kind, from which alone products take their descriptions.
__device__ __forceinline__ u32 uniform(u32 x) { return __reduce_max_sync(0xffffffffu, x); }

// Turns at the tensor cores, of each group with the one before and the one behind it: what several ask for at once they do at
// once, so that all wait for all of it and then compute exponentials together, while the tensor cores have nothing to do.
const int SCORES = 1, SUMS = SCORES + GROUPS;
__device__ __forceinline__ void take_turn(int turn) { asm volatile("bar.sync %0, 256;" ::"r"(turn) : "memory"); }
__device__ __forceinline__ void pass_turn(int turn) { asm volatile("bar.arrive %0, 256;" ::"r"(turn) : "memory"); }

// The largest of one of a thread's two rows and its three neighbours', three at a time as whole numbers, in whose order numbers
// are if one of them is not negative; else what is returned is negative, but not the largest.
__device__ __forceinline__ int largest(int a, int b, int c) { return max(max(a, b), c); }
__device__ __forceinline__ float largest(const float (&s)[32], int row) {
    auto at = [&](int i) { return __float_as_int(s[i / 2 * 4 + row * 2 + i % 2]); };
    int a = largest(at(0), at(1), at(2)), b = largest(at(3), at(4), at(5));
#pragma unroll
    for (int i = 6; i < 14; i += 4) a = largest(a, at(i), at(i + 1)), b = largest(b, at(i + 2), at(i + 3));
    return row_max(__int_as_float(max(largest(a, at(14), at(15)), b)));
}

// The sums of a thread's weights in its two rows. Those of 11 bits are added as they are, 16 at most, so that what rounding
// them takes from the products is taken from their sum too.
__device__ __forceinline__ u32 add_pairs(u32 a, u32 b) {
    asm("add.rn.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
    return a;
}
__device__ __forceinline__ float weight_sum(const u32 (&p)[16], int row, const float (&)[2], f16) {
    u32 sum[4];
#pragma unroll
    for (int k = 0; k < 4; k++) sum[k] = add_pairs(p[4 * k + row], p[4 * k + 2 + row]);
    u32 all = add_pairs(add_pairs(sum[0], sum[1]), add_pairs(sum[2], sum[3]));
    return f16_to_float((u16)all) + f16_to_float((u16)(all >> 16));
}
__device__ __forceinline__ float weight_sum(const u32 (&)[16], int row, const float (&sum)[2], bf16) { return sum[row]; }

template <typename T>
__device__ __forceinline__ void attend_long(const TensorMap &queries, const TensorMap &keys, const TensorMap &values,
                                            const TensorMap &out, const Plan &plan) {
    extern __shared__ Shared memory[];
    u32 base = shared_address(memory);
    asm volatile("mov.u32 %0, %0;" : "+r"(base));
    base = uniform(base);
    // Queries of each group; two rings of tiles, as a block's groups have two heads at most; for each of their stages a barrier
    // for keys that are there, for values, and for both when they were read; a barrier for each group's queries.
    u32 ring = base + GROUPS * TILE_BYTES, barriers = ring + 4 * STAGES * TILE_BYTES, asked = barriers + 2 * STAGES * 24;
    int first = blockIdx.x * plan.together, active = min(plan.together, plan.groups - first);
    int head = first / plan.per_head, mine = min(active, (head + 1) * plan.per_head - first);
    if (threadIdx.x == 0) {
        foresee(keys), foresee(queries), foresee(values), foresee(out);
        for (int i = 0; i < 2 * STAGES; i++) {
            barrier_init(barriers + 24 * i, 1);
            barrier_init(barriers + 24 * i + 8, 1);
            barrier_init(barriers + 24 * i + 16, 4 * max(1, i < STAGES ? mine : active - mine));
        }
        for (int i = 0; i < GROUPS; i++) barrier_init(asked + 8 * i, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    int group = uniform(threadIdx.x / 128), thread = threadIdx.x % 128, lane = thread % 32;
    if (group >= active) return;
    int second = group >= mine;
    ring += second * 2 * STAGES * TILE_BYTES, barriers += second * STAGES * 24, asked += 8 * group, head += second;
    u32 own = base + group * TILE_BYTES;
    int row = (first + group) % plan.per_head * BLOCK, column = head % plan.heads * 64, picture = head / plan.heads;
    int tiles = (plan.keys + BLOCK - 1) / BLOCK;
    // One thread of the groups of a head asks for its keys and values.
    bool asks = thread == 0 && group == second * mine;
    auto ask = [&](int tile) {
        if (!asks || tile >= tiles) return;
        u32 at = ring + tile % STAGES * 2 * TILE_BYTES, barrier = barriers + 24 * (tile % STAGES);
        barrier_wait(barrier + 16, tile / STAGES % 2 ^ 1);
        barrier_expect(barrier, TILE_BYTES);
        fetch(at, keys, plan.first[1] + column, tile * BLOCK, picture, barrier);
        barrier_expect(barrier + 8, TILE_BYTES);
        fetch(at + TILE_BYTES, values, plan.first[2] + column, tile * BLOCK, picture, barrier + 8);
    };
    if (thread == 0) {
        barrier_expect(asked, TILE_BYTES);
        fetch(own, queries, plan.first[0] + column, row, picture, asked);
    }
    for (int tile = 0; tile < STAGES - LAG; tile++) ask(tile);

    float s[32], sum[32], top[2] = {-1e30f, -1e30f}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 32; i++) sum[i] = 0.0f;
    // The first turns.
    int next = group + 1 == active ? 0 : group + 1;
    if (next == 0) pass_turn(SCORES), pass_turn(SUMS);
    // Nobody takes another after the last.
    auto pass = [&](int turns, int tile) {
        if (next != 0 || tile + 1 < tiles) pass_turn(turns + next);
    };
    barrier_wait(asked, 0);
    for (int tile = 0; tile < tiles; tile++) {
        u32 barrier = barriers + 24 * (tile % STAGES), parity = tile / STAGES % 2;
        u64 left = describe(own), right = describe(uniform(ring + tile % STAGES * 2 * TILE_BYTES));
        take_turn(SCORES + group);
        barrier_wait(barrier, parity);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply(s, left + 2 * k, right + 2 * k, k, T());
        products_end();
        products_wait();
        pass(SCORES, tile);
        settle(s);
        int there = plan.keys - tile * BLOCK;
        if (there < BLOCK)
#pragma unroll
            for (int i = 0; i < 32; i++)
                if (i / 4 * 8 + lane % 4 * 2 + i % 2 >= there) s[i] = -INFINITY;
        float more[2] = {largest(s, 0), largest(s, 1)}, scale[2], weights[2] = {0.0f, 0.0f};
        if (__any_sync(0xffffffffu, fminf(more[0], more[1]) < 0.0f)) {
            more[0] = s[0], more[1] = s[2];
#pragma unroll
            for (int i = 1; i < 32; i++) more[i / 2 % 2] = fmaxf(more[i / 2 % 2], s[i]);
#pragma unroll
            for (int h = 0; h < 2; h++) more[h] = row_max(more[h]);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if ((more[h] - top[h]) * plan.factor <= SLACK) more[h] = top[h];
            scale[h] = power_of_two((top[h] - more[h]) * plan.factor);
            top[h] = more[h];
            more[h] = more[h] * plan.factor - LIFT;
        }
        if (__any_sync(0xffffffffu, scale[0] != 1.0f || scale[1] != 1.0f))
#pragma unroll
            for (int i = 0; i < 32; i++) sum[i] *= scale[i / 2 % 2];
        u32 p[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float a = power_of_two(s[2 * i] * plan.factor - more[i % 2]);
            float b = power_of_two(s[2 * i + 1] * plan.factor - more[i % 2]);
            weights[i % 2] += a + b;
            p[i] = pair(a, b, T());
        }
#pragma unroll
        for (int h = 0; h < 2; h++) total[h] = total[h] * scale[h] + weight_sum(p, h, weights, T());
        ask(tile + STAGES - LAG);
        take_turn(SUMS + group);
        barrier_wait(barrier + 8, parity);
        settle(p), settle(sum);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) weigh(sum, p + 4 * k, right + (TILE_BYTES + k * 2048) / 16, T());
        products_end();
        products_wait();
        pass(SUMS, tile);
        settle(sum), settle(p);
        if (lane == 0) barrier_arrive(barrier + 16);
    }

    // By way of the group's own queries, of which nothing is needed any more.
    u32 at = own + (thread / 32 * 16 + lane % 16) * 128;
#pragma unroll
    for (int h = 0; h < 2; h++) total[h] = 1.0f / row_sum(total[h]);
#pragma unroll
    for (int g = 0; g < 8; g += 2) {
        u32 y[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int from = (g + j / 2) * 4 + j % 2 * 2;
            y[j] = pair(sum[from] * total[j % 2], sum[from + 1] * total[j % 2], T());
        }
        store_squares(at + ((g + lane / 16 ^ lane & 7) << 4), y);
    }
    // The copy engine sees what the threads wrote.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    group_sync(SUMS + GROUPS + group);
    if (thread == 0) {
        put(out, column, row, picture, own);
        asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
    }
}

#define ATTEND_LONG(suffix, T)                                                                                         \
    extern "C" __global__ void __launch_bounds__(128 * GROUPS, 1)                                                      \
        attend_long_##suffix(const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap keys,        \
                             const __grid_constant__ TensorMap values, const __grid_constant__ TensorMap out,          \
                             const __grid_constant__ Plan plan) {                                                      \
        attend_long<T>(queries, keys, values, out, plan);                                                              \
    }
ATTEND_LONG(f16, f16)
ATTEND_LONG(bf16, bf16)
