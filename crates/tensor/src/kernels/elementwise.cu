// Element by element. Bound: memory.

// Runs `one` on every number, 16 bytes at a time where the addresses allow it.
template <typename T, typename F> __device__ __forceinline__ void map1(const T *a, T *out, i64 n, F one) {
    const int W = 16 / sizeof(T);
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    i64 packs = (((u64)a | (u64)out) & 15) == 0 ? n / W : 0;
    for (i64 i = first; i < packs; i += step) {
        Pack<T> p = ((const Pack<T> *)a)[i];
#pragma unroll
        for (int j = 0; j < W; j++) from_float(one(to_float(p.x[j])), p.x[j]);
        ((Pack<T> *)out)[i] = p;
    }
    for (i64 i = packs * W + first; i < n; i += step) from_float(one(to_float(a[i])), out[i]);
}

template <typename T, typename F>
__device__ __forceinline__ void map2(const T *a, const T *b, T *out, i64 n, F one) {
    const int W = 16 / sizeof(T);
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    i64 packs = (((u64)a | (u64)b | (u64)out) & 15) == 0 ? n / W : 0;
    for (i64 i = first; i < packs; i += step) {
        Pack<T> p = ((const Pack<T> *)a)[i], q = ((const Pack<T> *)b)[i];
#pragma unroll
        for (int j = 0; j < W; j++) from_float(one(to_float(p.x[j]), to_float(q.x[j])), p.x[j]);
        ((Pack<T> *)out)[i] = p;
    }
    for (i64 i = packs * W + first; i < n; i += step) from_float(one(to_float(a[i]), to_float(b[i])), out[i]);
}

template <typename T> __device__ __forceinline__ void activation(const T *a, T *out, i64 n, int which) {
    map1(a, out, n, [=](float x) { return activate<T>(x, which); });
}
#define ACTIVATION(T) (const T *a, T *out, i64 n, int which)
KERNELS(activation, ACTIVATION, (a, out, n, which))

template <typename T> __device__ __forceinline__ void add_scaled(const T *a, const T *b, T *out, i64 n, float s) {
    map2(a, b, out, n, [=](float x, float y) { return __fadd_rn(x, __fmul_rn(s, y)); });
}
#define ADD_SCALED(T) (const T *a, const T *b, T *out, i64 n, float s)
KERNELS(add_scaled, ADD_SCALED, (a, b, out, n, s))

template <typename T> __device__ __forceinline__ void scale(const T *a, T *out, i64 n, float s) {
    map1(a, out, n, [=](float x) { return x * s; });
}
#define SCALE(T) (const T *a, T *out, i64 n, float s)
KERNELS(scale, SCALE, (a, out, n, s))

// Conversion; one kernel for each pair of types.
template <typename S, typename D> __device__ __forceinline__ void convert(const S *a, D *out, i64 n) {
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    for (i64 i = first; i < n; i += step) from_float(to_float(a[i]), out[i]);
}
#define TO_F32(T) (const T *a, float *out, i64 n)
#define TO_F16(T) (const T *a, f16 *out, i64 n)
#define TO_BF16(T) (const T *a, bf16 *out, i64 n)
template <typename T> __device__ __forceinline__ void to_f32(const T *a, float *out, i64 n) { convert(a, out, n); }
template <typename T> __device__ __forceinline__ void to_f16(const T *a, f16 *out, i64 n) { convert(a, out, n); }
template <typename T> __device__ __forceinline__ void to_bf16(const T *a, bf16 *out, i64 n) { convert(a, out, n); }
KERNELS(to_f32, TO_F32, (a, out, n))
KERNELS(to_f16, TO_F16, (a, out, n))
KERNELS(to_bf16, TO_BF16, (a, out, n))

// The sum of s * x over up to eight terms, left to right and rounded after each operation, as the CPU does it.
struct Terms { const float *x[8]; };
struct Shares { float s[8]; };
extern "C" __global__ void combine(Terms terms, Shares shares, int count, float *out, i64 n) {
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    for (i64 i = first; i < n; i += step) {
        float sum = __fmul_rn(shares.s[0], terms.x[0][i]);
        for (int t = 1; t < count; t++) sum = __fadd_rn(sum, __fmul_rn(shares.s[t], terms.x[t][i]));
        out[i] = sum;
    }
}

// both [rows, 2 width] -> out [rows, width]: first half times GELU of the second. `parts` blocks for each row.
template <typename T> __device__ __forceinline__ void geglu(const T *both, T *out, i64 rows, int width, int parts) {
    const int W = 16 / sizeof(T);
    if ((((u64)both | (u64)out) & 15) == 0 && width % W == 0) {
        int packs = width / W;
        i64 row = blockIdx.x / parts;
        const Pack<T> *from = (const Pack<T> *)both + row * 2 * packs;
        Pack<T> *to = (Pack<T> *)out + row * packs;
        for (int i = (blockIdx.x - (int)row * parts) * blockDim.x + threadIdx.x; i < packs; i += parts * blockDim.x) {
            Pack<T> x = from[i], gate = from[i + packs];
#pragma unroll
            for (int j = 0; j < W; j++) from_float(to_float(x.x[j]) * gelu<T>(to_float(gate.x[j])), x.x[j]);
            to[i] = x;
        }
        return;
    }
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    for (i64 i = first; i < rows * width; i += step) {
        i64 at = i / width * width + i;
        from_float(to_float(both[at]) * gelu<T>(to_float(both[at + width])), out[i]);
    }
}
#define GEGLU(T) (const T *both, T *out, i64 rows, int width, int parts)
KERNELS(geglu, GEGLU, (both, out, rows, width, parts))

// What follows a product that could not do it itself: y [n / width, width] becomes
// activation(y + bias + add) + residual, where `add` has one row for each `rows` rows of y. Null: none.
template <typename T>
__device__ __forceinline__ void finish(T *y, const float *bias, const T *add, const T *residual, i64 n, int width,
                                       i64 rows, int which) {
    const int W = 16 / sizeof(T);
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    bool wide = (((u64)y | (u64)bias | (u64)add | (u64)residual) & 15) == 0 && width % W == 0;
    i64 packs = wide ? n / W : 0;
    for (i64 i = first; i < packs; i += step) {
        i64 row = i * W / width;
        int column = (int)(i * W - row * width);
        Pack<T> p = ((Pack<T> *)y)[i], a, r;
        if (add) a = *(const Pack<T> *)(add + row / rows * width + column);
        if (residual) r = ((const Pack<T> *)residual)[i];
#pragma unroll
        for (int j = 0; j < W; j++) {
            float x = to_float(p.x[j]);
            if (bias) x += bias[column + j];
            if (add) x += to_float(a.x[j]);
            x = activate<T>(x, which);
            if (residual) x += to_float(r.x[j]);
            from_float(x, p.x[j]);
        }
        ((Pack<T> *)y)[i] = p;
    }
    for (i64 i = packs * W + first; i < n; i += step) {
        i64 row = i / width;
        int column = (int)(i - row * width);
        float x = to_float(y[i]);
        if (bias) x += bias[column];
        if (add) x += to_float(add[row / rows * width + column]);
        x = activate<T>(x, which);
        if (residual) x += to_float(residual[i]);
        from_float(x, y[i]);
    }
}
#define FINISH(T)                                                                                                      \
    (T * y, const float *bias, const T *add, const T *residual, i64 n, int width, i64 rows, int which)
KERNELS(finish, FINISH, (y, bias, add, residual, n, width, rows, which))
