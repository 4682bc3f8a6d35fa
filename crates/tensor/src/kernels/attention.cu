// Any head width up to 512 and any element type, f32 sums: 16 queries of one head in a block of 128 threads.
// Bound: f32 arithmetic units; simple rather than fast.

#define QUERIES 16
#define KEYS 32
#define SLICE 32

// One branch: leaves sum over keys of softmax * v in acc[query][column / 128] of the thread that owns the column.
template <typename T>
__device__ __forceinline__ void branch(const float *qs, float (*scores)[KEYS + 1], float (*staged)[SLICE + 1],
                                       float *highest, float *total, float *correction, const T *k, const T *v, int m,
                                       int d, i64 width, int first, int queries, float scale, int causal,
                                       float (*acc)[4]) {
    int t = threadIdx.x;
#pragma unroll
    for (int i = 0; i < QUERIES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) acc[i][j] = 0.0f;
    if (t < QUERIES) {
        highest[t] = -INFINITY;
        total[t] = 0.0f;
    }
    int end = causal && first + queries < m ? first + queries : m;
    for (int base = 0; base < end; base += KEYS) {
        int count = end - base < KEYS ? end - base : KEYS;
        // Scores: a thread has one key and four queries.
        int key = t % KEYS, group = t / KEYS;
        float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int from = 0; from < d; from += SLICE) {
            __syncthreads();
            for (int i = t; i < KEYS * SLICE; i += 128) {
                int r = i / SLICE, e = from + i % SLICE;
                staged[r][i % SLICE] = r < count && e < d ? to_float(k[(i64)(base + r) * width + e]) : 0.0f;
            }
            __syncthreads();
            int upto = d - from < SLICE ? d - from : SLICE;
            for (int e = 0; e < upto; e++) {
                float x = staged[key][e];
#pragma unroll
                for (int i = 0; i < 4; i++) s[i] += qs[(group * 4 + i) * d + from + e] * x;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int query = group * 4 + i;
            bool seen = key < count && (!causal || base + key <= first + query);
            scores[query][key] = seen ? s[i] * scale : -INFINITY;
        }
        __syncthreads();
        if (t < QUERIES) {
            float top = highest[t];
            for (int j = 0; j < KEYS; j++) top = fmaxf(top, scores[t][j]);
            // A query may see none of these keys; then nothing changes.
            float factor = top == -INFINITY ? 1.0f : expf(highest[t] - top);
            float sum = 0.0f;
            for (int j = 0; j < KEYS; j++) {
                float e = top == -INFINITY ? 0.0f : expf(scores[t][j] - top);
                scores[t][j] = e;
                sum += e;
            }
            highest[t] = top;
            total[t] = total[t] * factor + sum;
            correction[t] = factor;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < QUERIES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) acc[i][j] *= correction[i];
        for (int r = 0; r < count; r++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int column = t + 128 * j;
                float x = column < d ? to_float(v[(i64)(base + r) * width + column]) : 0.0f;
#pragma unroll
                for (int i = 0; i < QUERIES; i++) acc[i][j] += scores[i][r] * x;
            }
        }
    }
    __syncthreads();
}

// q, out [b, n, heads d]; k, v [b, m, heads d]; k2, v2 [b, m2, heads d] or null. Rows of q, k and k2 are `strides`
// numbers apart. Grid (n / 16, heads, b).
template <typename T>
__device__ __forceinline__ void attend(const T *q, const T *k, const T *v, const T *k2, const T *v2, T *out,
                                       Counts counts, Strides strides, float scale, int causal, float weight) {
    int n = counts.n, m = counts.m, m2 = counts.m2, heads = counts.heads, d = counts.d;
    extern __shared__ float qs[];
    __shared__ float scores[QUERIES][KEYS + 1], staged[KEYS][SLICE + 1];
    __shared__ float highest[QUERIES], total[QUERIES], correction[QUERIES];
    int t = threadIdx.x, first = blockIdx.x * QUERIES, head = blockIdx.y, picture = blockIdx.z;
    int queries = n - first < QUERIES ? n - first : QUERIES;
    i64 width = (i64)heads * d;
    const T *mine = q + ((i64)picture * n + first) * strides.q + head * d;
    for (int i = t; i < QUERIES * d; i += 128) {
        int r = i / d;
        qs[i] = r < queries ? to_float(mine[(i64)r * strides.q + i % d]) : 0.0f;
    }
    float acc[QUERIES][4], result[QUERIES][4];
    i64 at = (i64)picture * m * strides.k + head * d;
    branch(qs, scores, staged, highest, total, correction, k + at, v + at, m, d, strides.k, first, queries, scale, causal,
           acc);
#pragma unroll
    for (int i = 0; i < QUERIES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) result[i][j] = acc[i][j] / total[i];
    if (k2) {
        __syncthreads();
        at = (i64)picture * m2 * strides.k2 + head * d;
        branch(qs, scores, staged, highest, total, correction, k2 + at, v2 + at, m2, d, strides.k2, first, queries, scale, 0,
               acc);
#pragma unroll
        for (int i = 0; i < QUERIES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) result[i][j] += weight * (acc[i][j] / total[i]);
    }
    T *to = out + ((i64)picture * n + first) * width + head * d;
#pragma unroll
    for (int i = 0; i < QUERIES; i++) {
        if (i >= queries) continue;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int column = t + 128 * j;
            if (column < d) from_float(result[i][j], to[i * width + column]);
        }
    }
}
KERNELS(attend, ATTEND, (q, k, v, k2, v2, out, counts, strides, scale, causal, weight))
