// Conversion to FP4 (e2m1), for which Hopper has no instruction.
#pragma once
#include "common/cast.cuh"
#include "common/types.cuh"

__device__ constexpr float e2m1_inverse() { return 1.0f / 6.0f; }  // of the largest number

constexpr u32 kCodeOrigin = 0x4b000000u;  // the bits of 2^23

// The code of a magnitude of at most 6, on top of kCodeOrigin: codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
//
// Between these the code is linear, and as a whole it is the least of three lines. Added to 2^23 a line is rounded to a
// whole number, once and to nearest even, which is what rounding to e2m1 is. The products are exact, fused or not.
__device__ __forceinline__ u32 e2m1_code(float magnitude) {
    const float halves = magnitude * 2.0f + 8388608.0f, ones = magnitude + 8388610.0f,
                twos = magnitude * 0.5f + 8388612.0f;
    return __float_as_uint(min(min(halves, ones), twos));
}

// Four bytes that begin with the signs of elements first, first + 2, first + 4 and first + 6 of the words.
template <class In>
__device__ __forceinline__ u32 sign_bytes(const u32* words, u32 first) {
    constexpr u32 kElements = Words<In>::kElements;
    const u32 byte = kElements == 1 ? 3 : first % 2 * 2 + 1, selector = byte | (byte + 4) << 4;
    const u32* const from = words + first / kElements;
    return __byte_perm(__byte_perm(from[0], from[2 / kElements], selector),
                       __byte_perm(from[4 / kElements], from[6 / kElements], selector), 0x5410);
}

// Eight elements times `by`, none of which becomes more than 6: the first in the lowest half of a byte.
template <class In>
__device__ __forceinline__ u32 pack_e2m1(const u32* words, float by) {
    u32 even = 0, odd = 0;  // codes, a byte each; of their origins only the last remains
#pragma unroll
    for (u32 i = 4; i-- > 0;) {
        constexpr u32 kElements = Words<In>::kElements;
        u32 first = Words<In>::magnitude(words[2 * i / kElements]);
        // Else the mask becomes part of what takes a word of two elements apart, once for each.
        asm("" : "+r"(first));
        const u32 second = kElements == 2 ? first : Words<In>::magnitude(words[(2 * i + 1) / kElements]);
        const u32 element = Words<In>::element(first, 0), other = Words<In>::element(second, 1);
        even = (even << 8) + e2m1_code(__fmul_rn(Words<In>::value(element), by));
        odd = (odd << 8) + e2m1_code(__fmul_rn(Words<In>::value(other), by));
    }
    const u32 codes = (even - kCodeOrigin) + ((odd - kCodeOrigin) << 4);
    return codes | (sign_bytes<In>(words, 0) >> 4 & 0x08080808u) | (sign_bytes<In>(words, 1) & 0x80808080u);
}
