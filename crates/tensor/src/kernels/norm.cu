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
            for (i64 p = begin + row; p < end; p += rows) {
                alignas(16) T values[W];
                if (W > 1) *(Pack<T> *)values = *(const Pack<T> *)(picture + p * c + pack * W);
                else values[0] = picture[p * c + pack];
#pragma unroll
                for (int j = 0; j < W; j++) {
                    float d = to_float(values[j]) - shift[j];
                    s[j] += d;
                    q[j] += d * d;
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

// From the sums of `chunks` chunks to gain and offset of each channel, gains [b, 2, c]. Grid (groups, b), 128 threads;
// the last sums in f64, as there are few.
template <typename T>
__device__ __forceinline__ void group_gains(const T *x, const float *partial, const float *weight, const float *bias,
                                            float *gains, i64 pixels, int c, int size, int chunks, float eps) {
    __shared__ double sums[128], squares[128];
    int first = blockIdx.x * size;
    const float *mine = partial + (i64)blockIdx.y * chunks * 2 * c;
    double sum = 0.0, square = 0.0;
    for (int i = threadIdx.x; i < chunks * size; i += 128) {
        int at = i / size, channel = first + i % size;
        sum += mine[(i64)at * 2 * c + channel];
        square += mine[(i64)at * 2 * c + c + channel];
    }
    sums[threadIdx.x] = sum;
    squares[threadIdx.x] = square;
    __syncthreads();
    for (int half = 64; half > 0; half /= 2) {
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
    for (int i = threadIdx.x; i < size; i += 128) {
        double gain = inverse * (double)weight[first + i];
        gains[(i64)blockIdx.y * 2 * c + first + i] = (float)gain;
        gains[(i64)blockIdx.y * 2 * c + c + first + i] = (float)((double)bias[first + i] - mean * gain);
    }
}
#define GROUP_GAINS(T)                                                                                                 \
    (const T *x, const float *partial, const float *weight, const float *bias, float *gains, i64 pixels, int c,        \
     int size, int chunks, float eps)
KERNELS(group_gains, GROUP_GAINS, (x, partial, weight, bias, gains, pixels, c, size, chunks, eps))

// activation(x * gain + offset). Grid (.., b), 256 threads.
template <typename T>
__device__ __forceinline__ void group_apply(const T *x, const float *gains, T *out, i64 pixels, int c, int which) {
    const int W = 16 / sizeof(T);
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    i64 n = pixels * c, base = blockIdx.y * n;
    const float *gain = gains + (i64)blockIdx.y * 2 * c, *offset = gain + c;
    if (c % W == 0 && (((u64)x | (u64)out) & 15) == 0) {
        int packs = c / W;
        const Pack<T> *from = (const Pack<T> *)(x + base);
        Pack<T> *to = (Pack<T> *)(out + base);
        for (i64 i = first; i < n / W; i += step) {
            int channel = (int)(i % packs) * W;
            Pack<T> p = from[i];
#pragma unroll
            for (int j = 0; j < W; j++) {
                from_float(activate(to_float(p.x[j]) * gain[channel + j] + offset[channel + j], which), p.x[j]);
            }
            to[i] = p;
        }
        return;
    }
    for (i64 i = first; i < n; i += step) {
        int channel = (int)(i % c);
        from_float(activate(to_float(x[base + i]) * gain[channel] + offset[channel], which), out[base + i]);
    }
}
#define GROUP_APPLY(T) (const T *x, const float *gains, T *out, i64 pixels, int c, int which)
KERNELS(group_apply, GROUP_APPLY, (x, gains, out, pixels, c, which))

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// x [rows, c] normalised over c; bias may be null. A warp for each row, 8 in a block.
template <typename T>
__device__ __forceinline__ void layer_norm(const T *x, const float *weight, const float *bias, T *out, i64 rows, int c,
                                           float eps) {
    const int W = 16 / sizeof(T);
    i64 row = blockIdx.x * 8ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T *from = x + row * c;
    T *to = out + row * c;
    // Whole packs, where every row begins at one; the rest one by one.
    int packs = c % W == 0 && (((u64)x | (u64)out) & 15) == 0 ? c / W : 0;
    float sum = 0.0f;
    for (int i = lane; i < packs; i += 32) {
        Pack<T> p = ((const Pack<T> *)from)[i];
#pragma unroll
        for (int j = 0; j < W; j++) sum += to_float(p.x[j]);
    }
    for (int i = packs * W + lane; i < c; i += 32) sum += to_float(from[i]);
    float mean = warp_sum(sum) / (float)c;
    float square = 0.0f;
    for (int i = lane; i < packs; i += 32) {
        Pack<T> p = ((const Pack<T> *)from)[i];
#pragma unroll
        for (int j = 0; j < W; j++) {
            float d = to_float(p.x[j]) - mean;
            square += d * d;
        }
    }
    for (int i = packs * W + lane; i < c; i += 32) {
        float d = to_float(from[i]) - mean;
        square += d * d;
    }
    float inverse = 1.0f / sqrtf(warp_sum(square) / (float)c + eps);
    for (int i = lane; i < packs; i += 32) {
        Pack<T> p = ((const Pack<T> *)from)[i];
#pragma unroll
        for (int j = 0; j < W; j++) {
            float y = (to_float(p.x[j]) - mean) * inverse * weight[i * W + j];
            from_float(bias ? y + bias[i * W + j] : y, p.x[j]);
        }
        ((Pack<T> *)to)[i] = p;
    }
    for (int i = packs * W + lane; i < c; i += 32) {
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
