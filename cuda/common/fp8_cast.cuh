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

// The scale of a block, as it is stored (float, or u8 for UE8M0), and what its values are multiplied with.
template <class Scale>
struct BlockScale;

template <>
struct BlockScale<float> {
    float stored, reciprocal;

    // From the largest magnitude of the block.
    static __device__ __forceinline__ BlockScale of(float amax) {
        const float scale = __fmul_rn(amax, 1.0f / 448.0f);
        return {scale, __frcp_rn(scale)};
    }
};

template <>
struct BlockScale<u8> {
    u8 stored;
    float reciprocal;

    // The least power of two that is not under amax / 448; NaN for NaN and Inf. Its reciprocal is exact: amax / 448 is
    // so far under the largest float that it is no subnormal number.
    static __device__ __forceinline__ BlockScale of(float amax) {
        const u32 bits = __float_as_uint(__fmul_rn(amax, 1.0f / 448.0f));
        const u32 exponent = min((bits >> 23) + ((bits & 0x7fffffu) != 0), 255u);
        return {static_cast<u8>(exponent), __uint_as_float(exponent == 255 ? 0x7fc00000u : (254 - exponent) << 23)};
    }
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

// ---- accesses of 1 to 16 bytes -------------------------------------------------------------------------------------

// Into words that are zero; of 2 bytes, into the upper half of a word if `half` is 1.
template <u32 kBytes>
__device__ __forceinline__ void read_bytes(u32* to, const void* from, u32 half) {
    if constexpr (kBytes == 16) {
        const uint4 v = *reinterpret_cast<const uint4*>(from);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else if constexpr (kBytes == 8) {
        const uint2 v = *reinterpret_cast<const uint2*>(from);
        to[0] = v.x, to[1] = v.y;
    } else if constexpr (kBytes == 4) {
        to[0] = *reinterpret_cast<const u32*>(from);
    } else {
        to[0] |= static_cast<u32>(*reinterpret_cast<const u16*>(from)) << (16 * half);
    }
}

// kBytes from `byte` of the first of the words on.
template <u32 kBytes>
__device__ __forceinline__ void write_bytes(u8* to, const u32* from, u32 byte) {
    if constexpr (kBytes == 16) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else if constexpr (kBytes == 8) {
        *reinterpret_cast<uint2*>(to) = make_uint2(from[0], from[1]);
    } else if constexpr (kBytes == 4) {
        *reinterpret_cast<u32*>(to) = from[0];
    } else if constexpr (kBytes == 2) {
        *reinterpret_cast<u16*>(to) = static_cast<u16>(from[0] >> (8 * byte));
    } else {
        *to = static_cast<u8>(from[0] >> (8 * byte));
    }
}
