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

// What a row's scales have in common: one scale for all of the tile's K, for a block of 128, or none but for 32. Masks,
// so that `&` gives what several rows have in common.
constexpr u32 kCommonToTile = 3, kCommonToBlock = 1, kCommonToNone = 0;

// How kCount times 32 of a row's 128 values are decoded: a table and a scale for each.
template <u32 kCount>
struct RowDecoding {
    Fp4Table tables[kCount];
    float scales[kCount];
    u32 common;
};

// The three kinds of scales. Raw: of a row's 128 values, in memory. kSets: scales that a row can have in a block.
// Tile: what is known of a row for all of the tile's K, from `begin`.
struct Ue8m0By32 {
    using Raw = u32;
    static constexpr u32 kSets = 4;
    // Exponents that a table can carry, relative to a common scale.
    static constexpr int kHighest = 6, kLowest = -5;

    static __device__ __forceinline__ bool fits(int top, int bottom) {
        return bottom - max(top - kHighest, 0) >= kLowest && top < 255;
    }

    // Of exponents, four at a time.
    struct Range {
        u32 high = 0, low = 0x00ff00ff;

        __device__ __forceinline__ void add(u32 x) {
            const u32 even = x & 0x00ff00ff, odd = x >> 8 & 0x00ff00ff;
            high = __vmaxu2(high, __vmaxu2(even, odd)), low = __vminu2(low, __vminu2(even, odd));
        }

        // That of a scale for all of them, or -1.
        __device__ __forceinline__ int common() const {
            const int top = max(high & 0xffff, high >> 16), bottom = min(low & 0xffff, low >> 16);
            return fits(top, bottom) ? max(top - kHighest, 0) : -1;
        }
    };

    struct Tile {
        int common = -1;  // the exponent of the row's scale, if one serves all of the tile's K

        __device__ __forceinline__ void begin(const Raw* scales, u32 count) {
            Range range;
            u32 i = 0;
#pragma unroll 4
            for (; i + 4 <= count; i += 4) {
                const uint4 x = *reinterpret_cast<const uint4*>(scales + i);
                range.add(x.x), range.add(x.y), range.add(x.z), range.add(x.w);
            }
#pragma unroll 1
            for (; i < count; ++i) range.add(scales[i]);
            common = range.common();
        }
    };

    template <u32 kCount>
    static __device__ __forceinline__ RowDecoding<kCount> read(Raw packed, u32 first, Tile tile) {
        int exponents[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) exponents[i] = packed >> 8 * i & 255;
        RowDecoding<kCount> row;
        row.common = kCommonToTile;
        int common = tile.common;
        if (common < 0) {
            const int top = max(max(exponents[0], exponents[1]), max(exponents[2], exponents[3]));
            const int bottom = min(min(exponents[0], exponents[1]), min(exponents[2], exponents[3]));
            row.common = fits(top, bottom) ? kCommonToBlock : kCommonToNone;
            common = max(top - kHighest, 0);
        }
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) {
            const int exponent = kCount == 4 ? exponents[i] : packed >> 8 * (first + i) & 255;
            row.tables[i] = Fp4Table{}.times_power_of_two(row.common ? exponent - common : 0);
            row.scales[i] = ue8m0_value(row.common ? common : exponent);
        }
        return row;
    }
};

struct FloatBy32 {
    using Raw = float4;
    static constexpr u32 kSets = 4;

    struct Tile {
        __device__ __forceinline__ void begin(const Raw*, u32) {}
    };

    template <u32 kCount>
    static __device__ __forceinline__ RowDecoding<kCount> read(Raw s, u32 first, Tile) {
        RowDecoding<kCount> row;
        row.common = s.x == s.y && s.x == s.z && s.x == s.w ? kCommonToBlock : kCommonToNone;
        const float all[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
        for (u32 i = 0; i < kCount; ++i) row.scales[i] = kCount == 4 || first == 0 ? all[i] : all[4 - kCount + i];
        return row;
    }
};

struct FloatBy128 {
    using Raw = float;
    static constexpr u32 kSets = 1;

    struct Tile {
        __device__ __forceinline__ void begin(const Raw*, u32) {}
    };

    template <u32 kCount>
    static __device__ __forceinline__ RowDecoding<kCount> read(Raw scale, u32, Tile) {
        return {{}, {scale}, kCommonToBlock};
    }
};
