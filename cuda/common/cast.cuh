// What quantising is made of: elements as they lie in words, the largest of them, the scale of a block, accesses.
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

// Two of 16 bits.
struct HalfWords {
    static constexpr u32 kElements = 2;
    static __device__ __forceinline__ u32 magnitude(u32 word) { return word & 0x7fff7fffu; }
    static __device__ __forceinline__ u32 larger(u32 a, u32 b) { return __vmaxu2(a, b); }
    static __device__ __forceinline__ u32 element(u32 word, u32 i) { return i ? word >> 16 : word & 0xffffu; }
};

template <>
struct Words<bf16> : HalfWords {
    static __device__ __forceinline__ float value(u32 element) { return __uint_as_float(element << 16); }
};

template <>
struct Words<f16> : HalfWords {
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

    // From the largest magnitude of the block, and the reciprocal of the largest number of the type.
    static __device__ __forceinline__ BlockScale of(float amax, float inverse) {
        const float scale = __fmul_rn(amax, inverse);
        return {scale, __frcp_rn(scale)};
    }
};

template <>
struct BlockScale<u8> {
    u8 stored;
    float reciprocal;

    // The least power of two that is not under amax * inverse; NaN for NaN and Inf. Its reciprocal is exact: a sixth of
    // amax is so far under the largest float that it is no subnormal number.
    static __device__ __forceinline__ BlockScale of(float amax, float inverse) {
        const u32 bits = __float_as_uint(__fmul_rn(amax, inverse));
        const u32 exponent = min((bits >> 23) + ((bits & 0x7fffffu) != 0), 255u);
        return {static_cast<u8>(exponent), __uint_as_float(exponent == 255 ? 0x7fc00000u : (254 - exponent) << 23)};
    }
};

// The bits of the largest magnitude among all elements of the words.
template <class In, u32 kWords>
__device__ __forceinline__ u32 largest_magnitude(const u32 (&words)[kWords]) {
    u32 found = Words<In>::magnitude(words[0]);
#pragma unroll
    for (u32 w = 1; w < kWords; ++w) found = Words<In>::larger(found, Words<In>::magnitude(words[w]));
    u32 largest = Words<In>::element(found, 0);
    if constexpr (Words<In>::kElements == 2) largest = max(largest, Words<In>::element(found, 1));
    return largest;
}

__device__ __forceinline__ u32 exchanged_maximum(u32 zero, u32 one, u32 lane, u32 bit) {
    const bool set = lane & bit;
    return max(set ? one : zero, __shfl_xor_sync(0xffffffffu, set ? zero : one, bit));
}

// Of 4 rows, which kLanes lanes share, the maximum of row `lane % 4`, where `mine(i)` is that of the lane's part of row
// i: the lanes share out the rows while they compare.
template <u32 kLanes, class Mine>
__device__ __forceinline__ u32 row_maximum(Mine&& mine, u32 lane) {
    const u32 even = exchanged_maximum(mine(0), mine(1), lane, 1), odd = exchanged_maximum(mine(2), mine(3), lane, 1);
    u32 largest = exchanged_maximum(even, odd, lane, 2);
#pragma unroll
    for (u32 step = 4; step < kLanes; step *= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    return largest;
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
