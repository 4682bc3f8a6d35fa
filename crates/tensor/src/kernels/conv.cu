// Convolution and linear layers without NVIDIA's libraries: for sizes that those do not take, and where they are not
// found. A product of gathered windows [b oh ow, kh kw c] with weights [n, kh kw c] in blocks of 64 x 64, f32 sums.
// Bound: f32 arithmetic units; simple rather than fast.

struct Window {
    int h, w, c;           // the stored picture
    int seen_h, seen_w;    // the picture that the convolution sees: larger where it is enlarged on the way
    int kh, kw, oh, ow;
    int stride, top, left;
};

template <typename T>
__device__ __forceinline__ void product(const T *x, const T *weight, T *out, Window win, int rows, int n,
                                        const float *bias, const T *add, int which, const T *residual) {
    __shared__ float a[16][64 + 4], b[16][64 + 4];
    int depth = win.kh * win.kw * win.c;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    // Each thread stages four numbers of depth of one row and of one column.
    int line = threadIdx.x / 4, part = threadIdx.x % 4 * 4;
    int row = blockIdx.x * 64 + line, column = blockIdx.y * 64 + line;
    int picture = 0, oy = 0, ox = 0;
    if (row < rows) {
        picture = row / (win.oh * win.ow);
        oy = row / win.ow % win.oh;
        ox = row % win.ow;
    }
    float sum[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = 0.0f;
    for (int base = 0; base < depth; base += 16) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int k = base + part + j;
            float value = 0.0f;
            if (row < rows && k < depth) {
                int tap = k / win.c, channel = k - tap * win.c;
                int y = oy * win.stride + tap / win.kw - win.top, z = ox * win.stride + tap % win.kw - win.left;
                if (y >= 0 && z >= 0 && y < win.seen_h && z < win.seen_w) {
                    int sy = win.seen_h == win.h ? y : (int)((i64)y * win.h / win.seen_h);
                    int sx = win.seen_w == win.w ? z : (int)((i64)z * win.w / win.seen_w);
                    value = to_float(x[(((i64)picture * win.h + sy) * win.w + sx) * win.c + channel]);
                }
            }
            a[part + j][line] = value;
            b[part + j][line] = column < n && k < depth ? to_float(weight[(i64)column * depth + k]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; k++) {
            float p[4], q[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[i] = a[k][ty * 4 + i];
                q[i] = b[k][tx * 4 + i];
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] += p[i] * q[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int r = blockIdx.x * 64 + ty * 4 + i;
        if (r >= rows) continue;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int col = blockIdx.y * 64 + tx * 4 + j;
            if (col >= n) continue;
            float value = sum[i][j];
            i64 at = (i64)r * n + col;
            if (bias) value += bias[col];
            if (add) value += to_float(add[(i64)(r / (win.oh * win.ow)) * n + col]);
            value = activate<T>(value, which);
            if (residual) value += to_float(residual[at]);
            from_float(value, out[at]);
        }
    }
}
#define PRODUCT(T)                                                                                                     \
    (const T *x, const T *weight, T *out, Window win, int rows, int n, const float *bias, const T *add, int which,     \
     const T *residual)
KERNELS(product, PRODUCT, (x, weight, out, win, rows, n, bias, add, which, residual))
