// Numbers of 8 bits (e4m3: four of exponent, three of mantissa, up to 448) with a scale for each row. Bound: memory.
// Cards before Ada Lovelace have no such numbers and no such kernels.

#if defined HOST_CHECK || !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 890
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

// The scale of a row whose largest number is `top`, at which that becomes 448.
__device__ __forceinline__ float scale_of(float top) { return top > 0.0f ? top / 448.0f : 1.0f; }

// Eight numbers of a row by a factor, the `at`th eight, into their places among sixteen (see `eights`), of whose other half
// the thread beside this one calls with.
__device__ __forceinline__ void put8(u8 *row, int at, const float (&x)[8], float factor) {
    u32 low = eights(x[0] * factor, x[1] * factor) | (u32)eights(x[2] * factor, x[3] * factor) << 16;
    u32 high = eights(x[4] * factor, x[5] * factor) | (u32)eights(x[6] * factor, x[7] * factor) << 16;
    bool second = at & 1;
    u32 other = __shfl_xor_sync(3u << (threadIdx.x & 30), second ? low : high, 1);
    u32 first = second ? other : low, last = second ? high : other;
    *(u64 *)(row + at * 8) = first & 0xffff | last << 16 | (u64)(first >> 16 | last & 0xffff0000) << 32;
}

// x [rows, c], each column times its factor where there are some, -> out [rows, c] in 8 bits and the rows' scales. A warp for
// each row, 4 in a block; c is a multiple of 16.
template <typename T>
__device__ __forceinline__ void narrow_rows(const T *x, const float *columns, u8 *out, float *scales, i64 rows, int c) {
    i64 row = blockIdx.x * 4ll + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const Pack<T> *from = (const Pack<T> *)(x + row * c);
    float top = 0.0f;
    for (int i = lane; i < c / 8; i += 32) {
        Pack<T> p = from[i];
#pragma unroll
        for (int j = 0; j < 8; j++) top = fmaxf(top, fabsf(to_float(p.x[j]) * (columns ? columns[i * 8 + j] : 1.0f)));
    }
    float scale = scale_of(warp_max(top)), factor = 1.0f / scale;
    for (int i = lane; i < c / 8; i += 32) {
        Pack<T> p = from[i];
        float y[8];
#pragma unroll
        for (int j = 0; j < 8; j++) y[j] = to_float(p.x[j]) * (columns ? columns[i * 8 + j] : 1.0f);
        put8(out + row * c, i, y, factor);
    }
    if (lane == 0) scales[row] = scale;
}
#define NARROW_ROWS(T) (const T *x, const float *columns, u8 *out, float *scales, i64 rows, int c)
KERNEL_OF(narrow_rows, f16, f16, NARROW_ROWS, (x, columns, out, scales, rows, c))
KERNEL_OF(narrow_rows, bf16, bf16, NARROW_ROWS, (x, columns, out, scales, rows, c))

// The square of a row's length, by a warp.
template <typename T> __device__ __forceinline__ float row_square(const T *row, int c) {
    const Pack<T> *from = (const Pack<T> *)row;
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < c / 8; i += 32) {
        Pack<T> p = from[i];
#pragma unroll
        for (int k = 0; k < 8; k++) sum += to_float(p.x[k]) * to_float(p.x[k]);
    }
    return warp_sum(sum);
}

// Brings the gated outputs of a layer behind a layer norm, w [2 count, c] and bias, to a size near one, so that 8 bits hold
// them without a scale for each row: on normalised rows an output is about as large as its weight's row is long. Each of
// the first `count` has its power of two in scales and in sized, where bias goes, and what undoes it in columns [count]. A
// warp for each, 4 in a block.
template <typename T>
__device__ __forceinline__ void gated_sizes(const T *w, const float *bias, float *scales, float *sized, float *columns,
                                            int count, int c) {
    int j = blockIdx.x * 4 + threadIdx.x / 32, gate = j + count;
    if (j >= count) return;
    float one = row_square(w + (i64)j * c, c) + bias[j] * bias[j];
    float other = row_square(w + (i64)gate * c, c) + bias[gate] * bias[gate];
    float factor = largest_power(1.0f / fminf(fmaxf(sqrtf(one) * sqrtf(other), 1e-6f), 1e6f));
    if (threadIdx.x % 32) return;
    scales[j] *= factor;
    sized[j] = bias[j] * factor;
    sized[gate] = bias[gate];
    columns[j] = 1.0f / factor;
}
#define GATED_SIZES(T)                                                                                                 \
    (const T *w, const float *bias, float *scales, float *sized, float *columns, int count, int c)
KERNEL_OF(gated_sizes, f16, f16, GATED_SIZES, (w, bias, scales, sized, columns, count, c))
KERNEL_OF(gated_sizes, bf16, bf16, GATED_SIZES, (w, bias, scales, sized, columns, count, c))

// As `narrow_rows` without factors of the layer norm of x; c is at most 8 * 32 * P.
template <typename T, int P>
__device__ __forceinline__ void norm_packs(const Pack<T> *from, const float *weight, const float *bias, u8 *out,
                                           float *scale_at, int c, float eps) {
    int lane = threadIdx.x % 32, packs = c / 8;
    float y[P][8], sum = 0.0f, square = 0.0f, top = 0.0f;
#pragma unroll
    for (int i = 0; i < P; i++) {
        Pack<T> p;
        bool there = lane + 32 * i < packs;
        if (there) p = from[lane + 32 * i];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            y[i][j] = there ? to_float(p.x[j]) : 0.0f;
            sum += y[i][j];
        }
    }
    float mean = warp_sum(sum) / (float)c;
#pragma unroll
    for (int i = 0; i < P; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float d = lane + 32 * i < packs ? y[i][j] - mean : 0.0f;
            square += d * d;
        }
    float inverse = 1.0f / sqrtf(warp_sum(square) / (float)c + eps);
#pragma unroll
    for (int i = 0; i < P; i++) {
        int at = lane + 32 * i;
        if (at < packs) {
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                Pack<float> w = ((const Pack<float> *)weight)[at * 2 + j / 4], b = ((const Pack<float> *)bias)[at * 2 + j / 4];
#pragma unroll
                for (int l = 0; l < 4; l++) {
                    float normal = (y[i][j + l] - mean) * inverse * w.x[l] + b.x[l];
                    y[i][j + l] = normal;
                    top = fmaxf(top, fabsf(normal));
                }
            }
        }
    }
    float scale = scale_of(warp_max(top)), factor = 1.0f / scale;
#pragma unroll
    for (int i = 0; i < P; i++) {
        int at = lane + 32 * i;
        if (at < packs) put8(out, at, y[i], factor);
    }
    if (lane == 0) *scale_at = scale;
}
template <typename T>
__device__ __forceinline__ void narrow_norm(const T *x, const float *weight, const float *bias, u8 *out, float *scales,
                                            i64 rows, int c, float eps) {
    i64 row = blockIdx.x * 4ll + threadIdx.x / 32;
    if (row >= rows) return;
    const Pack<T> *from = (const Pack<T> *)(x + row * c);
    u8 *to = out + row * c;
    if (c <= 768) norm_packs<T, 3>(from, weight, bias, to, scales + row, c, eps);
    else if (c <= 1280) norm_packs<T, 5>(from, weight, bias, to, scales + row, c, eps);
    else norm_packs<T, 8>(from, weight, bias, to, scales + row, c, eps);
}
#define NARROW_NORM(T)                                                                                                 \
    (const T *x, const float *weight, const float *bias, u8 *out, float *scales, i64 rows, int c, float eps)
KERNEL_OF(narrow_norm, f16, f16, NARROW_NORM, (x, weight, bias, out, scales, rows, c, eps))
KERNEL_OF(narrow_norm, bf16, bf16, NARROW_NORM, (x, weight, bias, out, scales, rows, c, eps))

// As `narrow_rows` of both [rows, 2 width]'s first half times GELU of the second. A block of 128 threads for each row;
// width is a multiple of 16 and at most 8 * 128 * 5.
template <typename T>
__device__ __forceinline__ void narrow_geglu(const T *both, u8 *out, float *scales, int width) {
    __shared__ float tops[4];
    int packs = width / 8;
    const Pack<T> *from = (const Pack<T> *)both + (i64)blockIdx.x * 2 * packs;
    float y[5][8], top = 0.0f;
#pragma unroll
    for (int i = 0; i < 5; i++) {
        int at = threadIdx.x + 128 * i;
        if (at < packs) {
            Pack<T> x = from[at], gate = from[at + packs];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                y[i][j] = to_float(x.x[j]) * gelu<T>(to_float(gate.x[j]));
                top = fmaxf(top, fabsf(y[i][j]));
            }
        }
    }
    top = warp_max(top);
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
    float scale = scale_of(top), factor = 1.0f / scale;
#pragma unroll
    for (int i = 0; i < 5; i++) {
        int at = threadIdx.x + 128 * i;
        if (at < packs) put8(out + (i64)blockIdx.x * width, at, y[i], factor);
    }
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}
#define NARROW_GEGLU(T) (const T *both, u8 *out, float *scales, int width)
KERNEL_OF(narrow_geglu, f16, f16, NARROW_GEGLU, (both, out, scales, width))
KERNEL_OF(narrow_geglu, bf16, bf16, NARROW_GEGLU, (both, out, scales, width))
#endif
