// Group and layer normalisation. Bound: memory: one read for the statistics, one read and one write to apply them.

// x [b, pixels, c]. Sums of x - shift and of its square, for each chunk of pixels and channel, into
// partial [b, chunks, 2, c]. The shift is the group's first number, which keeps squares from cancelling where the mean
// is large. W channels are read at once; grid (chunks, b), 256 threads.
template <typename T, int W>
__device__ __forceinline__ void group_sums(const T *x, float *partial, i64 pixels, int c, int size, int chunk) {
    __shared__ float sums[256 * W], squares[256 * W];
    int packs = c / W, lanes = packs < 256 ? packs : 256, rows = 256 / lanes;
    int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
    const T *picture = x + blockIdx.y * pixels * c;
    i64 begin = blockIdx.x * (i64)chunk, end = begin + chunk < pixels ? begin + chunk : pixels;
    float *out = partial + ((i64)blockIdx.y * gridDim.x + blockIdx.x) * 2 * c;
    for (int base = 0; base < packs; base += lanes) {
        int pack = base + lane;
        bool works = row < rows && pack < packs;
        float s[W], q[W], shift[W];
#pragma unroll
        for (int j = 0; j < W; j++) {
            s[j] = q[j] = 0.0f;
            shift[j] = works ? to_float(picture[(pack * W + j) / size * size]) : 0.0f;
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
                out[channel] = sum;
                out[c + channel] = square;
            }
        }
        __syncthreads();
    }
}
template <typename T>
__device__ __forceinline__ void group_sums_wide(const T *x, float *partial, i64 pixels, int c, int size, int chunk) {
    group_sums<T, 16 / sizeof(T)>(x, partial, pixels, c, size, chunk);
}
template <typename T>
__device__ __forceinline__ void group_sums_narrow(const T *x, float *partial, i64 pixels, int c, int size, int chunk) {
    group_sums<T, 1>(x, partial, pixels, c, size, chunk);
}
#define GROUP_SUMS(T) (const T *x, float *partial, i64 pixels, int c, int size, int chunk)
KERNELS(group_sums_wide, GROUP_SUMS, (x, partial, pixels, c, size, chunk))
KERNELS(group_sums_narrow, GROUP_SUMS, (x, partial, pixels, c, size, chunk))

// From the sums of `chunks` chunks to gain and offset of each channel, gains [b, 2, c]. Grid (groups, b), 512 threads;
// the last sums in f64, as there are few.
template <typename T>
__device__ __forceinline__ void group_gains(const T *x, const float *partial, const float *weight, const float *bias,
                                            float *gains, i64 pixels, int c, int size, int chunks, float eps) {
    __shared__ double sums[512], squares[512];
    int first = blockIdx.x * size;
    const float *mine = partial + (i64)blockIdx.y * chunks * 2 * c;
    double sum = 0.0, square = 0.0;
    for (int i = threadIdx.x; i < chunks * size; i += 512) {
        int at = i / size, channel = first + i % size;
        sum += mine[(i64)at * 2 * c + channel];
        square += mine[(i64)at * 2 * c + c + channel];
    }
    sums[threadIdx.x] = sum;
    squares[threadIdx.x] = square;
    __syncthreads();
    for (int half = 256; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            sums[threadIdx.x] += sums[threadIdx.x + half];
            squares[threadIdx.x] += squares[threadIdx.x + half];
        }
        __syncthreads();
    }
    double count = (double)pixels * size, d = sums[0] / count;
    double variance = squares[0] / count - d * d;
    double inverse = 1.0 / sqrt((variance > 0.0 ? variance : 0.0) + (double)eps);
    double mean = (double)to_float(x[(i64)blockIdx.y * pixels * c + first]) + d;
    // A number that is not finite must show in the result.
    if (variance != variance) inverse = variance;
    for (int i = threadIdx.x; i < size; i += 512) {
        double gain = inverse * (double)weight[first + i];
        gains[(i64)blockIdx.y * 2 * c + first + i] = (float)gain;
        gains[(i64)blockIdx.y * 2 * c + c + first + i] = (float)((double)bias[first + i] - mean * gain);
    }
}
#define GROUP_GAINS(T)                                                                                                 \
    (const T *x, const float *partial, const float *weight, const float *bias, float *gains, i64 pixels, int c,        \
     int size, int chunks, float eps)
KERNELS(group_gains, GROUP_GAINS, (x, partial, weight, bias, gains, pixels, c, size, chunks, eps))

// activation(x * gain + offset). Where packs can be read, a thread keeps to its channels, and so to their gains, over
// the `chunk` pixels of its block. Grid (.., b), 256 threads.
template <typename T>
__device__ __forceinline__ void group_apply(const T *x, const float *gains, T *out, i64 pixels, int c, int chunk,
                                            int which) {
    const int W = 16 / sizeof(T);
    i64 n = pixels * c, base = blockIdx.y * n;
    const float *gain = gains + (i64)blockIdx.y * 2 * c, *offset = gain + c;
    if (c % W == 0 && (((u64)x | (u64)out) & 15) == 0) {
        int packs = c / W, lanes = packs < 256 ? packs : 256, rows = 256 / lanes;
        int lane = threadIdx.x % lanes, row = threadIdx.x / lanes;
        if (row >= rows) return;
        i64 begin = blockIdx.x * (i64)chunk, end = begin + chunk < pixels ? begin + chunk : pixels;
        for (int pack = lane; pack < packs; pack += lanes) {
            float g[W], o[W];
#pragma unroll
            for (int j = 0; j < W; j++) {
                g[j] = gain[pack * W + j];
                o[j] = offset[pack * W + j];
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
                        from_float(activate(to_float(v[i].x[j]) * g[j] + o[j], which), v[i].x[j]);
                    }
                    to[(p + i * rows) * packs] = v[i];
                }
            }
        }
        return;
    }
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    for (i64 i = first; i < n; i += step) {
        int channel = (int)(i % c);
        from_float(activate(to_float(x[base + i]) * gain[channel] + offset[channel], which), out[base + i]);
    }
}
#define GROUP_APPLY(T) (const T *x, const float *gains, T *out, i64 pixels, int c, int chunk, int which)
KERNELS(group_apply, GROUP_APPLY, (x, gains, out, pixels, c, chunk, which))

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

template <typename T, int N> struct alignas(N * sizeof(T)) Part { T x[N]; };

// The whole normalisation where a group's numbers fit into shared memory: one read and one write. N channels are moved at
// once. Grid (groups, b), a multiple of 32 threads, pixels * size numbers of shared memory.
template <typename T, int N>
__device__ __forceinline__ void group_whole(const T *x, const float *weight, const float *bias, T *out, i64 pixels,
                                            int c, int size, float eps, int which) {
    extern __shared__ u32 kept[];
    Part<T, N> *parts = (Part<T, N> *)kept;
    int first = blockIdx.x * size, per = size / N, count = (int)pixels * per, width = c / N;
    const Part<T, N> *from = (const Part<T, N> *)(x + (i64)blockIdx.y * pixels * c + first);
    Part<T, N> *to = (Part<T, N> *)(out + (i64)blockIdx.y * pixels * c + first);
    float sum = 0.0f;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        int pixel = i / per;
        Part<T, N> p = from[(i64)pixel * width + (i - pixel * per)];
        parts[i] = p;
#pragma unroll
        for (int j = 0; j < N; j++) sum += to_float(p.x[j]);
    }
    float numbers = (float)pixels * (float)size, mean = block_sum(sum) / numbers, square = 0.0f;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            float d = to_float(parts[i].x[j]) - mean;
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
            from_float(activate((to_float(p.x[j]) - mean) * gain + bias[first + at * N + j], which), p.x[j]);
        }
        to[(i64)pixel * width + at] = p;
    }
}
#define GROUP_WHOLE(T)                                                                                                 \
    (const T *x, const float *weight, const float *bias, T *out, i64 pixels, int c, int size, float eps, int which)
#define GROUP_WHOLE_OF(bytes)                                                                                          \
    template <typename T> __device__ __forceinline__ void group_whole_##bytes GROUP_WHOLE(T) {                         \
        group_whole<T, (bytes > sizeof(T) ? bytes / sizeof(T) : 1)>(x, weight, bias, out, pixels, c, size, eps, which);  \
    }                                                                                                                  \
    KERNELS(group_whole_##bytes, GROUP_WHOLE, (x, weight, bias, out, pixels, c, size, eps, which))
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
