// Moving elements, in units of 16, 4 or 2 bytes whatever their type. Bound: memory.

struct alignas(16) U16 { u32 x[4]; };

// Row r of `units` units goes from (r / inner) * outer + (r % inner) * from to r * to, all counted in units.
template <typename U>
__device__ __forceinline__ void move_rows(const U *x, U *out, i64 rows, int units, i64 inner, i64 outer, i64 from, i64 to) {
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    for (i64 i = first; i < rows * units; i += step) {
        i64 r = i / units;
        int u = (int)(i - r * units);
        i64 o = r / inner;
        out[r * to + u] = x[o * outer + (r - o * inner) * from + u];
    }
}

// Nearest neighbour from ih x iw to h x w, pixels of `units` units.
template <typename U>
__device__ __forceinline__ void resize(const U *x, U *out, int b, int ih, int iw, int h, int w, int units) {
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    i64 total = (i64)b * h * w * units;
    for (i64 i = first; i < total; i += step) {
        i64 pixel = i / units;
        int u = (int)(i - pixel * units);
        int ox = (int)(pixel % w);
        i64 line = pixel / w;
        int oy = (int)(line % h), picture = (int)(line / h);
        int sy = (int)((i64)oy * ih / h), sx = (int)((i64)ox * iw / w);
        out[i] = x[(((i64)picture * ih + sy) * iw + sx) * units + u];
    }
}

// Rows `ids` of a table, rows of `units` units.
template <typename U> __device__ __forceinline__ void gather(const U *table, const u32 *ids, U *out, i64 rows, int units) {
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    for (i64 i = first; i < rows * units; i += step) {
        i64 r = i / units;
        out[i] = table[(i64)ids[r] * units + (i - r * units)];
    }
}

// A convolution's weight [n, c, taps] -> [n, taps, c], as windows lie in NHWC.
template <typename U> __device__ __forceinline__ void filter(const U *x, U *out, i64 total, int c, int taps) {
    i64 first = blockIdx.x * (i64)blockDim.x + threadIdx.x, step = gridDim.x * (i64)blockDim.x;
    for (i64 i = first; i < total; i += step) {
        i64 rest = i / c;
        int channel = (int)(i - rest * c), tap = (int)(rest % taps);
        out[i] = x[(rest / taps * c + channel) * taps + tap];
    }
}

#define MOVERS(bytes, U)                                                                                               \
    extern "C" __global__ void move_rows_##bytes(const U *x, U *out, i64 rows, int units, i64 inner, i64 outer,        \
                                                 i64 from, i64 to) {                                                   \
        move_rows<U>(x, out, rows, units, inner, outer, from, to);                                                     \
    }                                                                                                                  \
    extern "C" __global__ void resize_##bytes(const U *x, U *out, int b, int ih, int iw, int h, int w, int units) {    \
        resize<U>(x, out, b, ih, iw, h, w, units);                                                                     \
    }                                                                                                                  \
    extern "C" __global__ void gather_##bytes(const U *table, const u32 *ids, U *out, i64 rows, int units) {           \
        gather<U>(table, ids, out, rows, units);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void filter_##bytes(const U *x, U *out, i64 total, int c, int taps) {                        \
        filter<U>(x, out, total, c, taps);                                                                             \
    }
MOVERS(16, U16)
MOVERS(4, u32)
MOVERS(2, u16)
