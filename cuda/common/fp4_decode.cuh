// FP4 (e2m1) to FP8 (e4m3), eight values of a register at once, with a power of two folded into the exponent.
#pragma once
#include "common/types.cuh"

// The e4m3 bytes of the magnitudes 0, 0.5, 1, 1.5 (low) and 2, 3, 4, 6 (high), times 2^q.
struct Fp4Table {
    u32 low = 0x3c383000, high = 0x4c484440;

    // -5 <= q <= 6: the smallest, 0.5 x 2^-5, is the smallest normal number, the largest, 6 x 2^6, under 448. All of
    // them have two bits of mantissa, so none is rounded. No byte leaves 0..0x7f, so none carries into its neighbour.
    __device__ __forceinline__ Fp4Table times_power_of_two(u32 q) const {
        return {low + q * 0x08080800u, high + q * 0x08080808u};
    }
};

// Byte i of the result is that of {high, low} which the low three bits of nibble i name; bit 3 must be 0.
__device__ __forceinline__ u32 permute_bytes(u32 low, u32 high, u32 nibbles) {
    u32 bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(nibbles));
    return bytes;
}

// The low nibble comes first.
__device__ __forceinline__ uint2 decode_fp4(u32 packed, Fp4Table table) {
    constexpr u32 kSigns = 0x80808080;
    const u32 codes = packed & 0x77777777, even = packed << 4;
    // Each byte has its value's sign on top: of even values in `even`, of odd ones in `packed`.
    const u32 first = permute_bytes(even, packed, 0x5140), second = permute_bytes(even, packed, 0x7362);
    return {(first & kSigns) | permute_bytes(table.low, table.high, codes),
            (second & kSigns) | permute_bytes(table.low, table.high, codes >> 16)};
}

__device__ __forceinline__ float ue8m0_value(u32 exponent) {
    const u32 half = exponent == 0 || exponent == 255 ? 0x400000 : 0;  // 2^-127 is subnormal; 255 is NaN
    return __uint_as_float(exponent << 23 | half);
}

// How kCount times 32 of a row's 128 values are decoded: a table and a scale for each 32. If `whole`, all scales of the
// row are equal, and the products over it can be scaled together.
template <u32 kCount>
struct RowDecoding {
    Fp4Table tables[kCount];
    float scales[kCount];
    bool whole;
};

// The three kinds of scales. kBytes: of a row's 128 values in memory. kSets: scales that a row can have.
struct Ue8m0By32 {
    static constexpr u32 kBytes = 4, kSets = 4;

    // The common scale is that of a table times 2^6 for the largest exponent; the others' tables are times less.
    template <u32 kCount>
    static __device__ __forceinline__ RowDecoding<kCount> read(const void* raw, u32 first) {
        constexpr int kHighest = 6, kLowest = -5;
        const u32 packed = *static_cast<const u32*>(raw);
        int exponents[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) exponents[i] = packed >> 8 * i & 255;
        const int top = max(max(exponents[0], exponents[1]), max(exponents[2], exponents[3]));
        const int bottom = min(min(exponents[0], exponents[1]), min(exponents[2], exponents[3]));
        const int common = max(top - kHighest, 0);
        RowDecoding<kCount> row;
        row.whole = bottom - common >= kLowest && top < 255;
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) {
            const int exponent = kCount == 4 ? exponents[i] : packed >> 8 * (first + i) & 255;
            row.tables[i] = Fp4Table{}.times_power_of_two(row.whole ? exponent - common : 0);
            row.scales[i] = ue8m0_value(row.whole ? common : exponent);
        }
        return row;
    }
};

struct FloatBy32 {
    static constexpr u32 kBytes = 16, kSets = 4;

    template <u32 kCount>
    static __device__ __forceinline__ RowDecoding<kCount> read(const void* raw, u32 first) {
        const float4 s = *static_cast<const float4*>(raw);
        RowDecoding<kCount> row;
        row.whole = s.x == s.y && s.x == s.z && s.x == s.w;
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) row.scales[i] = static_cast<const float*>(raw)[first + i];
        return row;
    }
};

struct FloatBy128 {
    static constexpr u32 kBytes = 4, kSets = 1;

    template <u32 kCount>
    static __device__ __forceinline__ RowDecoding<kCount> read(const void* raw, u32 /*first*/) {
        return {{}, {*static_cast<const float*>(raw)}, true};
    }
};
