// What all kernels share: element types, their conversion, activations. NVRTC gets no headers, so that nothing but its
// library is needed; 16-bit types are their bits, converted by the card's own instructions.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct e4m3 { u8 bits; };

#ifndef HOST_CHECK
__device__ __forceinline__ float f16_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ u16 float_to_f16(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

#if !defined HOST_CHECK && (!defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 890)
// Two numbers in 8 bits (e4m3), rounded to nearest even, the first in the low byte; what is too large becomes the largest.
// Of a row's sixteen numbers the first two of each half lie side by side, then their next two and so on, as a thread of a
// product has them: numbers 0, 1, 8, 9, 2, 3, 10, 11, 4, ...
__device__ __forceinline__ u16 eights(float low, float high) {
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(high), "f"(low));
    return r;
}
#endif

__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float float_of(u32 bits) { return __uint_as_float(bits); }

// The largest power of two that is not above x, of a size that has a reciprocal.
__device__ __forceinline__ float largest_power(float x) {
    return float_of(min(max(bits_of(x) >> 23, 1u), 252u) << 23);
}

#ifndef INFINITY
#define INFINITY float_of(0x7f800000u)
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return f16_to_float(x.bits); }
__device__ __forceinline__ float to_float(bf16 x) { return float_of((u32)x.bits << 16); }

// Rounded to nearest even.
__device__ __forceinline__ void from_float(float x, float &out) { out = x; }
__device__ __forceinline__ void from_float(float x, f16 &out) { out.bits = float_to_f16(x); }
__device__ __forceinline__ void from_float(float x, bf16 &out) {
    u32 bits = bits_of(x);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out.bits = (u16)(x != x ? (bits >> 16) | 0x40u : rounded);
}

// 16 bytes of numbers, read and written in one access.
template <typename T> struct alignas(16) Pack { T x[16 / sizeof(T)]; };

// Two to the power of x and 1 / x to 1e-7 of them, in one instruction.
__device__ __forceinline__ float quick_power(float x) {
#ifdef __CUDA_ARCH__
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
#else
    return exp2f(x);
#endif
}
__device__ __forceinline__ float quick_inverse(float x) {
#ifdef __CUDA_ARCH__
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
#else
    return 1.0f / x;
#endif
}

// Whether numbers are of 16 bits, of which 1e-7 is nothing: norms and GEGLU would else compute for longer than they read.
template <typename T> struct Narrow { static const bool is = sizeof(T) == 2; };

template <typename T> __device__ __forceinline__ float silu(float x) {
    if (Narrow<T>::is) return x * quick_inverse(1.0f + quick_power(x * -1.44269504f));
    return x / (1.0f + expf(-x));
}

// With the error function, for 16 bits by its approximation to 1.2e-7 of itself (Press et al., Numerical Recipes, 6.2).
template <typename T> __device__ __forceinline__ float gelu(float x) {
    if (!Narrow<T>::is) return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    const float factors[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                             0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    float z = fabsf(x) * 0.70710678f, t = quick_inverse(1.0f + 0.5f * z), power = 0.17087277f;
#pragma unroll
    for (int i = 0; i < 9; i++) power = power * t + factors[i];
    // What is beyond |x|.
    float rest = 0.5f * t * quick_power((power - z * z) * 1.44269504f);
    return x * (x < 0.0f ? rest : 1.0f - rest);
}

// As crate::ops::Activation, in its order, for numbers that become of type T.
template <typename T> __device__ __forceinline__ float activate(float x, int which) {
    switch (which) {
    case 1: return silu<T>(x);
    case 2: return gelu<T>(x);
    case 3: return 0.5f * x * (1.0f + tanhf(0.7978846f * (x + 0.044715f * x * x * x)));
    case 4: return x / (1.0f + expf(-1.702f * x));
    case 5: return x > 0.0f || x != x ? x : 0.0f;
    default: return x;
    }
}

// The sum over a warp, in all of its threads.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// A kernel for each element type: KERNELS(name, (parameters with T), (arguments)) over a template `name`.
#define KERNELS(name, parameters, arguments)                                                                           \
    KERNEL_OF(name, f32, float, parameters, arguments)                                                                 \
    KERNEL_OF(name, f16, f16, parameters, arguments)                                                                   \
    KERNEL_OF(name, bf16, bf16, parameters, arguments)
#define KERNEL_OF(name, suffix, type, parameters, arguments)                                                           \
    extern "C" __global__ void name##_##suffix parameters(type) { name<type> arguments; }
