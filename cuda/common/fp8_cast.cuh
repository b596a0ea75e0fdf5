// What quantising to FP8 (e4m3) is made of: elements as they lie in words, and the scale of a block.
#pragma once
#include "common/types.cuh"

// The elements of a 32-bit word. Magnitudes are compared as integers: they order the same, with NaN on top.
template <class In>
struct Words;

template <>
struct Words<float> {
    static constexpr u32 kElements = 1;
    static __device__ __forceinline__ u32 magnitude(u32 word) { return word & 0x7fffffffu; }
    static __device__ __forceinline__ u32 larger(u32 a, u32 b) { return max(a, b); }
    static __device__ __forceinline__ u32 element(u32 word, u32) { return word; }
    static __device__ __forceinline__ float value(u32 element) { return __uint_as_float(element); }
};

template <>
struct Words<bf16> {
    static constexpr u32 kElements = 2;
    static __device__ __forceinline__ u32 magnitude(u32 word) { return word & 0x7fff7fffu; }
    static __device__ __forceinline__ u32 larger(u32 a, u32 b) { return __vmaxu2(a, b); }
    static __device__ __forceinline__ u32 element(u32 word, u32 i) { return i ? word >> 16 : word & 0xffffu; }
    static __device__ __forceinline__ float value(u32 element) { return __uint_as_float(element << 16); }
};

template <>
struct Words<f16> {
    static constexpr u32 kElements = 2;
    static __device__ __forceinline__ u32 magnitude(u32 word) { return word & 0x7fff7fffu; }
    static __device__ __forceinline__ u32 larger(u32 a, u32 b) { return __vmaxu2(a, b); }
    static __device__ __forceinline__ u32 element(u32 word, u32 i) { return i ? word >> 16 : word & 0xffffu; }
    static __device__ __forceinline__ float value(u32 element) {
        float wide;
        asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(static_cast<u16>(element)));
        return wide;
    }
};

// The scale of a block, and how a value is divided by it. `Scale` is how it is stored: float, or u8 for UE8M0.
template <class Scale>
struct Divisor;

template <>
struct Divisor<float> {
    float scale, reciprocal;

    // From the largest magnitude of the block, a float's bits.
    static __device__ __forceinline__ Divisor of(u32 amax) {
        const float scale = __fmul_rn(__uint_as_float(amax), 1.0f / 448.0f);
        return {scale, __frcp_rn(scale)};
    }

    __device__ __forceinline__ float stored() const { return scale; }

    // x / scale rounded to nearest, as by the division of IEEE 754: two corrections of the product with the reciprocal.
    // What lies too low for them rounds to zero in FP8 anyway. The signs keep that of a zero.
    __device__ __forceinline__ float divide(float x) const {
        const float by = scale == __uint_as_float(0x7f800000u) ? 0.0f : scale;  // x / Inf needs no correction
        float quotient = __fmul_rn(x, reciprocal);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) quotient = __fmaf_rn(-__fmaf_rn(by, quotient, -x), reciprocal, quotient);
        return quotient;
    }

    __device__ __forceinline__ Divisor shuffle(u32 lane) const {
        return {__shfl_sync(0xffffffffu, scale, lane), __shfl_sync(0xffffffffu, reciprocal, lane)};
    }
};

template <>
struct Divisor<u8> {
    u32 exponent;

    // The least power of two that is not under amax / 448; NaN for NaN and Inf.
    static __device__ __forceinline__ Divisor of(u32 amax) {
        const u32 bits = __float_as_uint(__fmul_rn(__uint_as_float(amax), 1.0f / 448.0f));
        return {min((bits >> 23) + ((bits & 0x7fffffu) != 0), 255u)};
    }

    __device__ __forceinline__ u8 stored() const { return static_cast<u8>(exponent); }

    // 2^-k is exact. amax / 448 is so far under the largest float that it is never subnormal.
    __device__ __forceinline__ float divide(float x) const {
        return __fmul_rn(x, __uint_as_float(exponent == 255 ? 0x7fc00000u : (254 - exponent) << 23));
    }

    __device__ __forceinline__ Divisor shuffle(u32 lane) const { return {__shfl_sync(0xffffffffu, exponent, lane)}; }
};

// Rounds to nearest even; beyond 448 becomes 448, NaN stays. `first` in the lowest byte.
__device__ __forceinline__ u32 pack_e4m3(float first, float second, float third, float fourth) {
    u32 packed;
    asm("{\n"
        ".reg .b16 low, high;\n"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high};\n"
        "}\n"
        : "=r"(packed)
        : "f"(first), "f"(second), "f"(third), "f"(fourth));
    return packed;
}
