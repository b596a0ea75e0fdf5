// A piece of a matrix's row: kBytes of elements In, one memory access, as floats.
#pragma once
#include "common/cast.cuh"
#include "common/types.cuh"

__device__ __forceinline__ u32 pack_pair(bf16, float low, float high) { return pack_bf16(low, high); }

__device__ __forceinline__ u32 pack_pair(f16, float low, float high) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

template <class In, u32 kBytes>
struct alignas(16) RowVector {
    static constexpr u32 kElements = kBytes / sizeof(In);
    static constexpr u32 kWords = ceil_div(kBytes, 4);
    static_assert(kBytes >= sizeof(In), "an access holds whole elements");

    u32 words[kWords];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 w = 0; w < kWords; ++w) words[w] = 0;
    }

    __device__ __forceinline__ void load(const u8* from) {
        if constexpr (kBytes == 1) {
            words[0] = *from;
        } else {
            clear();
            read_bytes<kBytes>(words, from, 0);
        }
    }

    __device__ __forceinline__ void store(u8* to) const { write_bytes<kBytes>(to, words, 0); }

    __device__ __forceinline__ float value(u32 i) const {
        return Words<In>::value(Words<In>::element(words[i / Words<In>::kElements], i % Words<In>::kElements));
    }

    __device__ __forceinline__ void round_from(const float (&values)[kElements]) {
        if constexpr (sizeof(In) == 4) {
#pragma unroll
            for (u32 w = 0; w < kWords; ++w) words[w] = __float_as_uint(values[w]);
        } else if constexpr (kElements == 1) {
            words[0] = pack_pair(In{}, values[0], 0);
        } else {
#pragma unroll
            for (u32 w = 0; w < kWords; ++w) words[w] = pack_pair(In{}, values[2 * w], values[2 * w + 1]);
        }
    }
};
