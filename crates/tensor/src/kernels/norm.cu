// Group and layer normalisation. Bound: memory: one read for the statistics, one read and one write to apply them.

template <typename T, int N> struct alignas(N * sizeof(T)) Part { T x[N]; };

// x [b, pixels, c], to which `add` [b, c], whose rows lie `apart` numbers apart, is added where it is not null. Sums of
// x - shift and of its square, for each group and chunk of pixels, into partial [b, groups, chunks, 2]. The shift is the
// group's first number, which keeps squares from cancelling where the mean is large. W channels are read at once; grid
// (chunks, b), 256 threads, shared memory for the sums of all channels.
template <typename T, int W>
__device__ __forceinline__ void group_sums(const T *x, const float *add, int apart, float *partial, i64 pixels, int c,
                                           int size, int chunk) {
    extern __shared__ u32 channels[];
    __shared__ float sums[256 * W], squares[256 * W];
    float *channel_sums = (float *)channels, *channel_squares = channel_sums + c;
    int packs = c / W, lanes = packs < 256 ? packs : 256, rows = 256 / lanes;
    int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    const T *picture = x + blockIdx.y * pixels * c;
    if (add) add += blockIdx.y * (i64)apart;
    i64 begin = blockIdx.x * (i64)chunk, end = begin + chunk < pixels ? begin + chunk : pixels;
    for (int base = 0; base < packs; base += lanes) {
        int pack = base + lane;
        bool works = row < rows && pack < packs;
        float s[W], q[W], shift[W];
#pragma unroll
        for (int j = 0; j < W; j++) {
            int channel = pack * W + j, first = channel / size * size;
            s[j] = q[j] = 0.0f;
            shift[j] = works ? to_float(picture[first]) : 0.0f;
            if (works && add) shift[j] += add[first] - add[channel];
        }
        if (works) {
            // Four reads at once, as each takes long; summed in the order of the pixels.
            for (i64 p = begin + row; p < end; p += 4 * rows) {
                alignas(16) T values[4][W];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    i64 at = p + i * rows < end ? p + i * rows : p;
                    if (W > 1) *(Pack<T> *)values[i] = *(const Pack<T> *)(picture + at * c + pack * W);
                    else values[i][0] = picture[at * c + pack];
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (p + i * rows < end) {
#pragma unroll
                        for (int j = 0; j < W; j++) {
                            float d = to_float(values[i][j]) - shift[j];
                            s[j] += d;
                            q[j] += d * d;
                        }
                    }
                }
            }
        }
#pragma unroll
        for (int j = 0; j < W; j++) {
            sums[threadIdx.x * W + j] = s[j];
            squares[threadIdx.x * W + j] = q[j];
        }
        __syncthreads();
        for (int i = threadIdx.x; i < lanes * W; i += 256) {
            int channel = base * W + i;
            if (channel < c) {
                float sum = 0.0f, square = 0.0f;
                for (int r = 0; r < rows; r++) {
                    sum += sums[r * lanes * W + i];
                    square += squares[r * lanes * W + i];
                }
                channel_sums[channel] = sum;
                channel_squares[channel] = square;
            }
        }
        __syncthreads();
    }
    int groups = c / size, thread = threadIdx.x % 32;
    for (int group = threadIdx.x / 32; group < groups; group += 8) {
        float sum = 0.0f, square = 0.0f;
        for (int i = thread; i < size; i += 32) {
            sum += channel_sums[group * size + i];
            square += channel_squares[group * size + i];
        }
        sum = warp_sum(sum);
        square = warp_sum(square);
        if (thread == 0) {
            float *out = partial + (((i64)blockIdx.y * groups + group) * gridDim.x + blockIdx.x) * 2;
            out[0] = sum;
            out[1] = square;
        }
    }
}
template <typename T>
__device__ __forceinline__ void group_sums_wide(const T *x, const float *add, int apart, float *partial, i64 pixels,
                                                int c, int size, int chunk) {
    group_sums<T, 16 / sizeof(T)>(x, add, apart, partial, pixels, c, size, chunk);
}
template <typename T>
__device__ __forceinline__ void group_sums_narrow(const T *x, const float *add, int apart, float *partial, i64 pixels,
                                                  int c, int size, int chunk) {
    group_sums<T, 1>(x, add, apart, partial, pixels, c, size, chunk);
}
#define GROUP_SUMS(T)                                                                                                  \
    (const T *x, const float *add, int apart, float *partial, i64 pixels, int c, int size, int chunk)
KERNELS(group_sums_wide, GROUP_SUMS, (x, add, apart, partial, pixels, c, size, chunk))
KERNELS(group_sums_narrow, GROUP_SUMS, (x, add, apart, partial, pixels, c, size, chunk))

// activation((x + add - mean) / deviation * weight + bias) from the sums of `chunks` chunks. Where packs can be read, a
// thread keeps to its channels, and so to their gains, over the `part` pixels of its block. Grid (.., b), 256 threads,
// shared memory for mean and deviation of all groups.
template <typename T>
__device__ __forceinline__ void group_apply(const T *x, const float *add, int apart, const float *partial,
                                            const float *weight, const float *bias, T *out, i64 pixels, int c,
                                            int size, int chunks, int part, float eps, int which) {
    extern __shared__ u32 groups_[];
    const int W = 16 / sizeof(T);
    int groups = c / size, thread = threadIdx.x % 32;
    float *means = (float *)groups_, *inverses = means + groups;
    i64 n = pixels * c, base = blockIdx.y * n;
    if (add) add += blockIdx.y * (i64)apart;
    for (int group = threadIdx.x / 32; group < groups; group += 8) {
        const Part<float, 2> *mine = (const Part<float, 2> *)partial + ((i64)blockIdx.y * groups + group) * chunks;
        float sum = 0.0f, square = 0.0f;
#pragma unroll 4
        for (int i = thread; i < chunks; i += 32) {
            Part<float, 2> p = mine[i];
            sum += p.x[0];
            square += p.x[1];
        }
        sum = warp_sum(sum);
        square = warp_sum(square);
        if (thread == 0) {
            double count = (double)pixels * size, d = sum / count;
            double variance = square / count - d * d;
            // A number that is not finite must show in the result.
            double inverse = variance != variance ? variance : 1.0 / sqrt((variance > 0.0 ? variance : 0.0) + (double)eps);
            means[group] = (float)(to_float(x[base + group * size]) + (add ? add[group * size] : 0.0f) + d);
            inverses[group] = (float)inverse;
        }
    }
    __syncthreads();
    if (c % W == 0 && (((u64)x | (u64)out) & 15) == 0) {
        int packs = c / W, lanes = packs < 256 ? packs : 256, rows = 256 / lanes;
        int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
        if (row >= rows) return;
        i64 begin = blockIdx.x * (i64)part, end = begin + part < pixels ? begin + part : pixels;
        for (int pack = lane; pack < packs; pack += lanes) {
            float g[W], o[W];
#pragma unroll
            for (int j = 0; j < W; j++) {
                int channel = pack * W + j, group = channel / size;
                float mean = means[group];
                if (add) mean -= add[channel];
                g[j] = inverses[group] * weight[channel];
                o[j] = bias[channel] - mean * g[j];
            }
            const Pack<T> *from = (const Pack<T> *)(x + base) + pack;
            Pack<T> *to = (Pack<T> *)(out + base) + pack;
            for (i64 p = begin + row; p < end; p += 4 * rows) {
                Pack<T> v[4];
#pragma unroll
                for (int i = 0; i < 4; i++) v[i] = from[(p + i * rows < end ? p + i * rows : p) * packs];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (p + i * rows >= end) break;
#pragma unroll
                    for (int j = 0; j < W; j++) {
                        float y = to_float(v[i].x[j]) * g[j] + o[j];
                        from_float(which == 1 ? silu<T>(y) : activate<T>(y, which), v[i].x[j]);
                    }
                    to[(p + i * rows) * packs] = v[i];
                }
            }
        }
        return;
    }
    i64 begin = blockIdx.x * (i64)part * c, end = begin + (i64)part * c < n ? begin + (i64)part * c : n;
    for (i64 i = begin + threadIdx.x; i < end; i += 256) {
        int channel = (int)(i % c), group = channel / size;
        float gain = inverses[group] * weight[channel], mean = means[group];
        if (add) mean -= add[channel];
        from_float(activate<T>(to_float(x[base + i]) * gain + (bias[channel] - mean * gain), which), out[base + i]);
    }
}
#define GROUP_APPLY(T)                                                                                                 \
    (const T *x, const float *add, int apart, const float *partial, const float *weight, const float *bias, T *out,    \
     i64 pixels, int c, int size, int chunks, int part, float eps, int which)
KERNELS(group_apply, GROUP_APPLY, (x, add, apart, partial, weight, bias, out, pixels, c, size, chunks, part, eps, which))

// The sum over a block of up to 1024 threads, in all of them.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float parts[32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

// The whole normalisation where a group's numbers fit into shared memory: one read and one write. N channels are moved at
// once. Grid (groups, b), a multiple of 32 threads, pixels * size numbers of shared memory.
template <typename T, int N>
__device__ __forceinline__ void group_whole(const T *x, const float *add, int apart, const float *weight,
                                            const float *bias, T *out, i64 pixels, int c, int size, float eps,
                                            int which) {
    extern __shared__ u32 kept[];
    Part<T, N> *parts = (Part<T, N> *)kept;
    int first = blockIdx.x * size, per = size / N, count = (int)pixels * per, width = c / N;
    const Part<T, N> *from = (const Part<T, N> *)(x + (i64)blockIdx.y * pixels * c + first);
    Part<T, N> *to = (Part<T, N> *)(out + (i64)blockIdx.y * pixels * c + first);
    float sum = 0.0f;
    if (add) add += blockIdx.y * (i64)apart + first;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        int pixel = i / per;
        Part<T, N> p = from[(i64)pixel * width + (i - pixel * per)];
        parts[i] = p;
#pragma unroll
        for (int j = 0; j < N; j++) sum += to_float(p.x[j]) + (add ? add[(i - pixel * per) * N + j] : 0.0f);
    }
    float numbers = (float)pixels * (float)size, mean = block_sum(sum) / numbers, square = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            float d = to_float(parts[i].x[j]) - mean;
            if (add) d += add[i % per * N + j];
            square += d * d;
        }
    }
    float inverse = 1.0f / sqrtf(block_sum(square) / numbers + eps);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        int pixel = i / per, at = i - pixel * per;
        Part<T, N> p = parts[i];
#pragma unroll
        for (int j = 0; j < N; j++) {
            float gain = inverse * weight[first + at * N + j];
            float d = to_float(p.x[j]) - mean;
            if (add) d += add[at * N + j];
            from_float(activate<T>(d * gain + bias[first + at * N + j], which), p.x[j]);
        }
        to[(i64)pixel * width + at] = p;
    }
}
#define GROUP_WHOLE(T)                                                                                                 \
    (const T *x, const float *add, int apart, const float *weight, const float *bias, T *out, i64 pixels, int c,       \
     int size, float eps, int which)
#define GROUP_WHOLE_OF(bytes)                                                                                          \
    template <typename T> __device__ __forceinline__ void group_whole_##bytes GROUP_WHOLE(T) {                         \
        group_whole<T, (bytes > sizeof(T) ? bytes / sizeof(T) : 1)>(x, add, apart, weight, bias, out, pixels, c, size, \
                                                                    eps, which);                                       \
    }                                                                                                                  \
    KERNELS(group_whole_##bytes, GROUP_WHOLE, (x, add, apart, weight, bias, out, pixels, c, size, eps, which))
GROUP_WHOLE_OF(16)
GROUP_WHOLE_OF(8)
GROUP_WHOLE_OF(4)

// A row of `packs` packs, at most P for each lane of a warp, which are read once.
template <typename T, int P>
__device__ __forceinline__ void layer_norm_packs(const T *from, const float *weight, const float *bias, T *to, int c,
                                                 int packs, float eps) {
    const int W = 16 / sizeof(T);
    int lane = threadIdx.x % 32;
    Pack<T> p[P];
    float sum = 0.0f, square = 0.0f;
#pragma unroll
    for (int i = 0; i < P; i++) {
        if (lane + 32 * i < packs) p[i] = ((const Pack<T> *)from)[lane + 32 * i];
    }
#pragma unroll
    for (int i = 0; i < P; i++) {
        if (lane + 32 * i < packs) {
#pragma unroll
            for (int j = 0; j < W; j++) sum += to_float(p[i].x[j]);
        }
    }
    float mean = warp_sum(sum) / (float)c;
#pragma unroll
    for (int i = 0; i < P; i++) {
        if (lane + 32 * i < packs) {
#pragma unroll
            for (int j = 0; j < W; j++) {
                float d = to_float(p[i].x[j]) - mean;
                square += d * d;
            }
        }
    }
    float inverse = 1.0f / sqrtf(warp_sum(square) / (float)c + eps);
#pragma unroll
    for (int i = 0; i < P; i++) {
        int at = lane + 32 * i;
        if (at < packs) {
#pragma unroll
            for (int j = 0; j < W; j += 4) {
                // Four at once: single ones, so far apart, would take longer than the row.
                Pack<float> w = ((const Pack<float> *)weight)[(at * W + j) / 4], b;
                if (bias) b = ((const Pack<float> *)bias)[(at * W + j) / 4];
#pragma unroll
                for (int l = 0; l < 4; l++) {
                    float y = (to_float(p[i].x[j + l]) - mean) * inverse * w.x[l];
                    from_float(bias ? y + b.x[l] : y, p[i].x[j + l]);
                }
            }
            ((Pack<T> *)to)[at] = p[i];
        }
    }
}

// x [rows, c] normalised over c; bias may be null. A warp for each row, 4 in a block.
template <typename T>
__device__ __forceinline__ void layer_norm(const T *x, const float *weight, const float *bias, T *out, i64 rows, int c,
                                           float eps) {
    const int W = 16 / sizeof(T);
    i64 row = blockIdx.x * 4ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T *from = x + row * c;
    T *to = out + row * c;
    int packs = c / W;
    if (c % W == 0 && (((u64)x | (u64)out | (u64)weight | (u64)bias) & 15) == 0 && packs <= 320) {
        if (packs <= 96) layer_norm_packs<T, 3>(from, weight, bias, to, c, packs, eps);
        else if (packs <= 160) layer_norm_packs<T, 5>(from, weight, bias, to, c, packs, eps);
        else layer_norm_packs<T, 10>(from, weight, bias, to, c, packs, eps);
        return;
    }
    float sum = 0.0f, square = 0.0f;
    for (int i = lane; i < c; i += 32) sum += to_float(from[i]);
    float mean = warp_sum(sum) / (float)c;
    for (int i = lane; i < c; i += 32) {
        float d = to_float(from[i]) - mean;
        square += d * d;
    }
    float inverse = 1.0f / sqrtf(warp_sum(square) / (float)c + eps);
    for (int i = lane; i < c; i += 32) {
        float y = (to_float(from[i]) - mean) * inverse * weight[i];
        from_float(bias ? y + bias[i] : y, to[i]);
    }
}
#define LAYER_NORM(T) (const T *x, const float *weight, const float *bias, T *out, i64 rows, int c, float eps)
KERNELS(layer_norm, LAYER_NORM, (x, weight, bias, out, rows, c, eps))

// Softmax over rows of m scores in f32, into weights [rows, m], which may be the scores' own place. A block for each row.
template <typename T> __device__ __forceinline__ void softmax(const float *scores, T *weights, int rows, int m) {
    __shared__ float parts[256];
    const float *from = scores + (i64)blockIdx.x * m;
    T *to = weights + (i64)blockIdx.x * m;
    float top = -INFINITY;
    for (int i = threadIdx.x; i < m; i += 256) top = fmaxf(top, from[i]);
    parts[threadIdx.x] = top;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] = fmaxf(parts[threadIdx.x], parts[threadIdx.x + half]);
        __syncthreads();
    }
    top = parts[0];
    __syncthreads();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < m; i += 256) sum += expf(from[i] - top);
    parts[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    float inverse = 1.0f / parts[0];
    for (int i = threadIdx.x; i < m; i += 256) from_float(expf(from[i] - top) * inverse, to[i]);
}
#define SOFTMAX(T) (const float *scores, T *weights, int rows, int m)
KERNELS(softmax, SOFTMAX, (scores, weights, rows, m))
