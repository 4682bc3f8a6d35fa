// 3x3 convolutions of stride 1 by Winograd's tiles: a picture's tiles become elements, each plane of which is multiplied by
// the weight's, and products become pixels. Bound: memory, mostly the second-level cache.

template <typename T, int N> struct alignas(N * sizeof(T)) Part { T x[N]; };

// N numbers in words, or they would be written one by one.
template <int N> struct alignas(2 * N) Words {
    u32 x[N / 2];
    __device__ __forceinline__ float number(int j) const { return f16_to_float((u16)(x[j / 2] >> j % 2 * 16)); }
};
template <int N> __device__ __forceinline__ Words<N> rounded(const float (&x)[N]) {
    Words<N> p;
#pragma unroll
    for (int j = 0; j < N; j += 2) {
#ifdef __CUDA_ARCH__
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(p.x[j / 2]) : "f"(x[j + 1]), "f"(x[j]));
#else
        p.x[j / 2] = float_to_f16(x[j]) | (u32)float_to_f16(x[j + 1]) << 16;
#endif
    }
    return p;
}

// Eight numbers in one access, which the compiler would make four of.
__device__ __forceinline__ void put(const Words<8> &p, f16 *to) {
#ifdef __CUDA_ARCH__
    asm volatile("st.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(p.x[0]), "r"(p.x[1]), "r"(p.x[2]), "r"(p.x[3]) : "memory");
#else
    *(Words<8> *)to = p;
#endif
}

// SiLU of two numbers with one inverse for both, as these bound how fast pixels are normalised.
__device__ __forceinline__ void silu_of_both(float &a, float &b) {
    // Powers that cannot overflow when they are multiplied.
    float p = 1.0f + quick_power(fminf(a * -1.44269504f, 60.0f)), q = 1.0f + quick_power(fminf(b * -1.44269504f, 60.0f));
    float inverse = quick_inverse(p * q);
    a *= inverse * q, b *= inverse * p;
}

// Along a side of a tile: the pixels that it reads, its elements, its results, how far tiles are apart in the picture that
// is read; tiles of a block. SCALE: what pixels are multiplied by, so that elements are of their size. `taps`, `forth` and
// `back` are the transforms of the weight, of pixels and of products.
template <int FORM> struct Form;
// Pixels are smaller by this on their way, as products of tiles may be some ten times a result before they are added up.
const float ROOM = 0.0625f;
// F(2, 3).
template <> struct Form<0> {
    static const int IN = 4, PLANES = 4, OUT = 2, STEP = 2, ACROSS = 16, DOWN = 2;
    static constexpr float SCALE = 1.0f;
    static __device__ __forceinline__ void taps(const float *g, float *u) {
        u[0] = g[0], u[1] = 0.5f * (g[0] + g[1] + g[2]), u[2] = 0.5f * (g[0] - g[1] + g[2]), u[3] = g[2];
    }
    static __device__ __forceinline__ void forth(const float *d, float *v) {
        v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[3] - d[1];
    }
    static __device__ __forceinline__ void back(const float *m, float *y) {
        y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] + m[3];
    }
};
// F(4, 3) at the points 0, +-5/8, +-3/2 and infinity.
template <> struct Form<1> {
    static const int IN = 6, PLANES = 6, OUT = 4, STEP = 4, ACROSS = 8, DOWN = 2;
    static constexpr float SCALE = 0.125f, A = 0.625f, B = 1.5f, AA = A * A, BB = B * B;
    static __device__ __forceinline__ void taps(const float *g, float *u) {
        const float BY_A = 0.5f / (AA * (AA - BB)), BY_B = 0.5f / (BB * (BB - AA));
        u[0] = 1.0f / (AA * BB) * g[0], u[5] = g[2];
        float even = BY_A * (g[0] + AA * g[2]), odd = BY_A * A * g[1];
        u[1] = even + odd, u[2] = even - odd;
        even = BY_B * (g[0] + BB * g[2]), odd = BY_B * B * g[1];
        u[3] = even + odd, u[4] = even - odd;
    }
    static __device__ __forceinline__ void forth(const float *d, float *v) {
        float even = d[4] - BB * d[2], odd = d[3] - BB * d[1];
        v[0] = AA * BB * d[0] - (AA + BB) * d[2] + d[4];
        v[1] = even + A * odd, v[2] = even - A * odd;
        even = d[4] - AA * d[2], odd = d[3] - AA * d[1];
        v[3] = even + B * odd, v[4] = even - B * odd;
        v[5] = AA * BB * d[1] - (AA + BB) * d[3] + d[5];
    }
    static __device__ __forceinline__ void back(const float *m, float *y) {
        float sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
        y[0] = m[0] + sum + sum2, y[1] = A * difference + B * difference2, y[2] = AA * sum + BB * sum2;
        y[3] = AA * A * difference + BB * B * difference2 + m[5];
    }
};
// F(2, 3) of a picture whose pixels are doubled: two of a tile's four are one, so the third element is nothing and the
// second that pixel, twice.
template <> struct Form<2> {
    static const int IN = 3, PLANES = 3, OUT = 2, STEP = 1, ACROSS = 32, DOWN = 4;
    static constexpr float SCALE = 1.0f;
    static __device__ __forceinline__ void taps(const float *g, float *u) {
        u[0] = g[0], u[1] = g[0] + g[1] + g[2], u[2] = g[2];
    }
    static __device__ __forceinline__ void forth(const float *d, float *v) {
        v[0] = d[0] - d[1], v[1] = d[1], v[2] = d[2] - d[1];
    }
    static __device__ __forceinline__ void back(const float *m, float *y) { y[0] = m[0] + m[1], y[1] = m[1] + m[2]; }
};

// Pixels and channels of the picture in memory, tiles, numbers from one plane of rows to the next.
struct Size {
    int h, w, c, across, down;
    i64 plane;
};

// The pixels of a line that a block reads, and its channels.
const int WIDTH = 34, CHANNELS = 64;
// Most channels of the groups that a block's channels are of.
const int GROUPED = 256;

// w [n, 3, 3, c] to out [planes, n, c]. A thread for each of n and c.
template <typename T, int FORM> __device__ __forceinline__ void weights(const T *w, T *out, i64 n, int c) {
    typedef Form<FORM> F;
    const int P = F::PLANES;
    i64 at = blockIdx.x * 256ll + threadIdx.x;
    if (at >= n * c) return;
    float rows[3][P];
    for (int y = 0; y < 3; y++) {
        float g[3];
        for (int x = 0; x < 3; x++) g[x] = to_float(w[(at / c * 9 + y * 3 + x) * c + at % c]);
        F::taps(g, rows[y]);
    }
    for (int x = 0; x < P; x++) {
        float g[3] = {rows[0][x], rows[1][x], rows[2][x]}, u[P];
        F::taps(g, u);
        for (int y = 0; y < P; y++) from_float(u[y] / F::SCALE, out[(y * P + x) * n * c + at]);
    }
}

// Sums of a chunk's channels and of their squares, which a block's rows of threads have, of N channels each, into sums
// [b, chunks, c, 2].
template <int N, int LANES>
__device__ __forceinline__ void leave_sums(const float (&s)[N], const float (&q)[N], float *sums, int c) {
    const int ROWS = 256 / LANES;
    __shared__ float shared[ROWS][2 * CHANNELS];
    int lane = threadIdx.x % LANES, row = threadIdx.x / LANES;
#pragma unroll
    for (int j = 0; j < N; j++) shared[row][(lane * N + j) * 2] = s[j], shared[row][(lane * N + j) * 2 + 1] = q[j];
    __syncthreads();
    if (threadIdx.x < 2 * CHANNELS) {
        float sum = 0.0f;
        for (int i = 0; i < ROWS; i++) sum += shared[i][threadIdx.x];
        sums[(((i64)blockIdx.z * gridDim.x + blockIdx.x) * c + blockIdx.y * CHANNELS) * 2 + threadIdx.x] = sum;
    }
}

// The sums of x [b, pixels, c]. Grid (chunks, c / 64, b), 256 threads.
template <typename T> __device__ __forceinline__ void channel_sums(const T *x, float *sums, int pixels, int c) {
    const int W = 16 / sizeof(T), LANES = CHANNELS / W, ROWS = 256 / LANES;
    int each = (pixels + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each;
    int end = begin + each < pixels ? begin + each : pixels;
    const T *from = x + (i64)blockIdx.z * pixels * c + blockIdx.y * CHANNELS + threadIdx.x % LANES * W;
    float s[W], q[W];
#pragma unroll
    for (int j = 0; j < W; j++) s[j] = q[j] = 0.0f;
    // Four reads at once, as each takes long.
    for (int p = begin + threadIdx.x / LANES; p < end; p += 4 * ROWS) {
        Pack<T> packs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) packs[i] = *(const Pack<T> *)(from + (i64)(p + i * ROWS < end ? p + i * ROWS : p) * c);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (p + i * ROWS < end)
#pragma unroll
                for (int j = 0; j < W; j++) {
                    float y = to_float(packs[i].x[j]);
                    s[j] += y, q[j] += y * y;
                }
    }
    leave_sums<W, LANES>(s, q, sums, c);
}

// A group norm with SiLU or nothing behind it, of x to which `add` [b, c], whose rows lie `apart` numbers apart, is added
// where it is not null: `sums` [b, chunks, c, 2] of channels of x and of their squares. No norm where they are null.
struct Norm {
    const float *sums, *weight, *bias, *add;
    int apart, size, chunks, silu;
    float eps;
};

// Gain and offset of a block's channels.
template <typename T>
__device__ __forceinline__ void norm_channels(const Norm &norm, int pixels, int c, float *gains, float *offsets) {
    __shared__ float channel_sums[GROUPED], channel_squares[GROUPED], means[CHANNELS], inverses[CHANNELS];
    int first = blockIdx.y * CHANNELS, size = norm.size, from = first / size * size;
    int groups = (first + CHANNELS - 1) / size + 1 - first / size, count = groups * size;
    const float *add = norm.add ? norm.add + blockIdx.z * (i64)norm.apart : nullptr;
    for (int i = threadIdx.x; i < count; i += 256) {
        const Part<float, 2> *mine = (const Part<float, 2> *)norm.sums + (i64)blockIdx.z * norm.chunks * c + from + i;
        float sum = 0.0f, square = 0.0f;
#pragma unroll 8
        for (int chunk = 0; chunk < norm.chunks; chunk++) {
            Part<float, 2> p = mine[(i64)chunk * c];
            sum += p.x[0], square += p.x[1];
        }
        if (add) {
            float more = add[from + i];
            square += 2.0f * more * sum + (float)pixels * more * more, sum += (float)pixels * more;
        }
        channel_sums[i] = sum, channel_squares[i] = square;
    }
    __syncthreads();
    for (int group = threadIdx.x / 32; group < groups; group += 8) {
        float sum = 0.0f, square = 0.0f;
        for (int i = threadIdx.x % 32; i < size; i += 32)
            sum += channel_sums[group * size + i], square += channel_squares[group * size + i];
        sum = warp_sum(sum), square = warp_sum(square);
        if (threadIdx.x % 32 == 0) {
            double numbers = (double)pixels * size, mean = sum / numbers, variance = square / numbers - mean * mean;
            // A number that is not finite must show in the result.
            means[group] = (float)mean;
            inverses[group] = variance != variance ? (float)variance : rsqrtf(fmaxf((float)variance, 0.0f) + norm.eps);
        }
    }
    __syncthreads();
    if (threadIdx.x < CHANNELS) {
        int channel = first + threadIdx.x, group = (channel - from) / size;
        float gain = inverses[group] * norm.weight[channel], mean = means[group];
        if (add) mean -= add[channel];
        gains[threadIdx.x] = gain, offsets[threadIdx.x] = norm.bias[channel] - mean * gain;
    }
    __syncthreads();
}

// Packs of numbers that are asked for at once, as each takes long.
const int ASKED = 4;

// The norm alone: x [b, pixels, c] to out. Grid (parts, c / 64, b), 256 threads.
template <typename T> __device__ __forceinline__ void normalise(const T *x, T *out, int pixels, int c, Norm norm) {
    const int W = 16 / sizeof(T), PACKS = CHANNELS / W, ROWS = 256 / PACKS;
    __shared__ float gains[CHANNELS], offsets[CHANNELS];
    int each = (pixels + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each;
    int end = begin + each < pixels ? begin + each : pixels, pack = threadIdx.x % PACKS;
    i64 base = (i64)blockIdx.z * pixels * c + blockIdx.y * CHANNELS + pack * W;
    Pack<T> asked[ASKED];
    auto ask = [&](int from) {
#pragma unroll
        for (int i = 0; i < ASKED; i++)
            if (from + i * ROWS < end) asked[i] = *(const Pack<T> *)(x + base + (i64)(from + i * ROWS) * c);
    };
    ask(begin + threadIdx.x / PACKS);
    norm_channels<T>(norm, pixels, c, gains, offsets);
    float gain[W], offset[W];
#pragma unroll
    for (int j = 0; j < W; j++) gain[j] = gains[pack * W + j], offset[j] = offsets[pack * W + j];
    for (int p = begin + threadIdx.x / PACKS; p < end; p += ASKED * ROWS) {
        if (p >= begin + ASKED * ROWS) ask(p);
#pragma unroll
        for (int i = 0; i < ASKED; i++) {
            if (p + i * ROWS >= end) break;
            float y[W];
#pragma unroll
            for (int j = 0; j < W; j++) y[j] = to_float(asked[i].x[j]) * gain[j] + offset[j];
            if (norm.silu)
#pragma unroll
                for (int j = 0; j < W; j += 2) silu_of_both(y[j], y[j + 1]);
            put(rounded(y), out + base + (i64)(p + i * ROWS) * c);
        }
    }
}

// Tiles of x, normalised, to out: rows [b, down, across] of c numbers in each plane. Grid (tiles of pixels, c / 64, b), 256
// threads; each then has N channels of some tiles.
template <typename T, int FORM, int N>
__device__ __forceinline__ void forth(const T *x, T *out, Size size, Norm norm) {
    typedef Form<FORM> F;
    const int h = size.h, w = size.w, c = size.c, across = size.across, down = size.down;
    const int P = F::PLANES, IN = F::IN, W = 16 / sizeof(T), PACKS = CHANNELS / W;
    const int COUNT = (F::STEP * F::DOWN + 2) * WIDTH * PACKS;
    __shared__ Words<W> kept[COUNT];
    __shared__ float gains[CHANNELS], offsets[CHANNELS];
    int wide = (across + F::ACROSS - 1) / F::ACROSS;
    int tx = blockIdx.x % wide * F::ACROSS, ty = blockIdx.x / wide * F::DOWN, first = blockIdx.y * CHANNELS;
    const T *picture = x + (i64)blockIdx.z * h * w * c + first;
    Pack<T> asked[ASKED];
    bool there[ASKED];
    auto ask = [&](int from) {
#pragma unroll
        for (int i = 0; i < ASKED; i++) {
            int at = from + i * 256 + threadIdx.x, pixel = at / PACKS;
            int py = ty * F::STEP - 1 + pixel / WIDTH, px = tx * F::STEP - 1 + pixel % WIDTH;
            there[i] = at < COUNT && py >= 0 && px >= 0 && py < h && px < w;
            if (there[i]) asked[i] = *(const Pack<T> *)(picture + ((i64)py * w + px) * c + at % PACKS * W);
        }
    };
    // Before the sums are.
    ask(0);
    float gain[W], offset[W];
    if (norm.sums) {
        norm_channels<T>(norm, h * w, c, gains, offsets);
#pragma unroll
        for (int j = 0; j < W; j++)
            gain[j] = gains[threadIdx.x % PACKS * W + j], offset[j] = offsets[threadIdx.x % PACKS * W + j];
    }
#pragma unroll
    for (int from = 0; from < COUNT; from += ASKED * 256) {
        if (from > 0) ask(from);
#pragma unroll
        for (int i = 0; i < ASKED; i++) {
            int at = from + i * 256 + threadIdx.x;
            if (at >= COUNT) break;
            float y[W];
#pragma unroll
            for (int j = 0; j < W; j++) {
                y[j] = there[i] ? to_float(asked[i].x[j]) : 0.0f;
                if (norm.sums) y[j] = y[j] * gain[j] + offset[j];
            }
            if (norm.silu)
#pragma unroll
                for (int j = 0; j < W; j += 2) silu_of_both(y[j], y[j + 1]);
            // What surrounds the picture is nothing, normalised or not.
#pragma unroll
            for (int j = 0; j < W; j++) y[j] = there[i] ? F::SCALE * ROOM * y[j] : 0.0f;
            kept[at] = rounded(y);
        }
    }
    __syncthreads();
    const int LANES = CHANNELS / N, ROWS = 256 / LANES;
    int lane = threadIdx.x % LANES;
#pragma unroll 1
    for (int tile = threadIdx.x / LANES; tile < F::ACROSS * F::DOWN; tile += ROWS) {
        int dx = tile % F::ACROSS, dy = tile / F::ACROSS;
        if (tx + dx >= across || ty + dy >= down) continue;
        const T *from = (const T *)kept + (dy * WIDTH + dx) * F::STEP * CHANNELS + lane * N;
        float rows[N][IN][P];
#pragma unroll
        for (int y = 0; y < IN; y++) {
            float d[N][IN];
#pragma unroll
            for (int x = 0; x < IN; x++) {
                Words<N> p = *(const Words<N> *)(from + (y * WIDTH + x) * CHANNELS);
#pragma unroll
                for (int j = 0; j < N; j++) d[j][x] = p.number(j);
            }
#pragma unroll
            for (int j = 0; j < N; j++) F::forth(d[j], rows[j][y]);
        }
        T *to = out + (((i64)blockIdx.z * down + ty + dy) * across + tx + dx) * c + first + lane * N;
#pragma unroll
        for (int x = 0; x < P; x++) {
            float v[P][N];
#pragma unroll
            for (int j = 0; j < N; j++) {
                float d[IN], column[P];
#pragma unroll
                for (int y = 0; y < IN; y++) d[y] = rows[j][y][x];
                F::forth(d, column);
#pragma unroll
                for (int y = 0; y < P; y++) v[y][j] = column[y];
            }
#pragma unroll
            for (int y = 0; y < P; y++) *(Words<N> *)(to + (y * P + x) * size.plane) = rounded(v[y]);
        }
    }
}

// Products m [planes, b down across, n] to pixels out [b, h, w, n], to which `bias` [n] and a residual are added where they
// are not null; the sums of channels [b, chunks, n, 2]. Grid (chunks, n / 64, b), 256 threads, each with N channels of
// some tiles.
template <typename T, int FORM, int N>
__device__ __forceinline__ void back(const T *m, const float *bias, const T *residual, T *out, float *sums, Size size) {
    typedef Form<FORM> F;
    const int h = size.h, w = size.w, n = size.c, across = size.across;
    const int P = F::PLANES, OUT = F::OUT, LANES = CHANNELS / N, ROWS = 256 / LANES;
    int channel = blockIdx.y * CHANNELS + threadIdx.x % LANES * N, tiles = across * size.down;
    int each = (tiles + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each;
    int end = begin + each < tiles ? begin + each : tiles;
    float more[N], s[N], q[N];
#pragma unroll
    for (int j = 0; j < N; j++) more[j] = bias ? bias[channel + j] : 0.0f, s[j] = q[j] = 0.0f;
#pragma unroll 1
    for (int tile = begin + threadIdx.x / LANES; tile < end; tile += ROWS) {
        int tx = tile % across * OUT, ty = tile / across * OUT;
        const T *from = m + ((i64)blockIdx.z * tiles + tile) * n + channel;
        Words<N> parts[P * P], around[OUT][OUT];
#pragma unroll
        for (int i = 0; i < P * P; i++) parts[i] = *(const Words<N> *)(from + i * size.plane);
        i64 at = (((i64)blockIdx.z * h + ty) * w + tx) * n + channel;
        if (residual)
#pragma unroll
            for (int y = 0; y < OUT; y++)
#pragma unroll
                for (int x = 0; x < OUT; x++)
                    if (ty + y < h && tx + x < w) around[y][x] = *(const Words<N> *)(residual + at + ((i64)y * w + x) * n);
        float rows[N][P][OUT];
#pragma unroll
        for (int y = 0; y < P; y++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                float d[P];
#pragma unroll
                for (int x = 0; x < P; x++) d[x] = parts[y * P + x].number(j);
                F::back(d, rows[j][y]);
            }
#pragma unroll
        for (int x = 0; x < OUT; x++) {
            float v[N][OUT];
#pragma unroll
            for (int j = 0; j < N; j++) {
                float d[P];
#pragma unroll
                for (int y = 0; y < P; y++) d[y] = rows[j][y][x];
                F::back(d, v[j]);
            }
#pragma unroll
            for (int y = 0; y < OUT; y++) {
                if (ty + y >= h || tx + x >= w) continue;
                float value[N];
#pragma unroll
                for (int j = 0; j < N; j++) {
                    value[j] = v[j][y] * (1.0f / ROOM) + more[j];
                    if (residual) value[j] += around[y][x].number(j);
                }
                Words<N> p = rounded(value);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    float number = p.number(j);
                    s[j] += number, q[j] += number * number;
                }
                *(Words<N> *)(out + at + ((i64)y * w + x) * n) = p;
            }
        }
    }
    leave_sums<N, LANES>(s, q, sums, n);
}

#define FORM_OF(name, form, channels)                                                                                  \
    extern "C" __global__ void weights_##name##_f16(const f16 *w, f16 *out, i64 n, int c) {                            \
        weights<f16, form>(w, out, n, c);                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 3)                                                               \
        forth_##name##_f16(const f16 *x, f16 *out, Size size, Norm norm) {                                             \
        forth<f16, form, 2>(x, out, size, norm);                                                                       \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        back_##name##_f16(const f16 *m, const float *bias, const f16 *residual, f16 *out, float *sums, Size size) {    \
        back<f16, form, channels>(m, bias, residual, out, sums, size);                                                 \
    }
FORM_OF(two, 0, 2)
FORM_OF(four, 1, 4)
FORM_OF(doubled, 2, 4)
extern "C" __global__ void __launch_bounds__(256) channel_sums_f16(const f16 *x, float *sums, int pixels, int c) {
    channel_sums<f16>(x, sums, pixels, c);
}
extern "C" __global__ void __launch_bounds__(256) normalise_f16(const f16 *x, f16 *out, int pixels, int c, Norm norm) {
    normalise<f16>(x, out, pixels, c, norm);
}
