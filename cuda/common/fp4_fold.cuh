// Where a thread decodes few rows of FP4 weights: what of a row's scales within 128 of K is folded into what it decodes,
// and what is left for the promotion.
//
// `RowFold<Scales>`: `Fold`, of a row and a block of 128 of K in shared memory, with one scale (`together`) or one for each 32
// (`apart`). kAhead: units of 256 of K whose scales a warp copies from memory ahead of their use.
//
// All scales are negative, since `decode_negated` decodes so.
#pragma once
#include "common/fp4_decode.cuh"

// 0x40 four times. The compiler makes a constant anew for each use, if it knows one. `size` is under 2^31.
constexpr u32 kForties = 0x40404040;
__device__ __forceinline__ u32 keep_forties(u32 size) { return kForties + (size >> 31); }

// Four values, the lower 16 bits of `codes`, negated. `prmt` takes their lower three bits for the number of a byte; the
// fourth replaces the byte by its sign, eight times: of 0x40 nothing is left. `forties`: kForties.
__device__ __forceinline__ u32 decode_negated(u32 codes, Fp4Table table, u32 forties) {
    const u32 positive = permute_bytes(forties, forties, codes);
    return positive * 2 + permute_bytes(table.low, table.high, codes & 0x7777);
}

template <class Scales>
struct RowFold;

template <>
struct RowFold<Ue8m0By32> {
    static constexpr u32 kAhead = 4;
    static constexpr int kSpread = Ue8m0By32::kHighest - Ue8m0By32::kLowest;

    // Together: the exponents less the least that fits beside the largest, and the scale that goes with it. Apart: the
    // exponents.
    struct alignas(8) Fold {
        u32 exponents;
        float common;

        __device__ __forceinline__ float scale() const { return common; }
        __device__ __forceinline__ float scale(u32 i) const { return -ue8m0_value(exponents >> 8 * i & 255); }
        __device__ __forceinline__ Fp4Table table(u32 i) const {
            constexpr u32 kLowest = static_cast<u32>(Ue8m0By32::kLowest);
            constexpr Fp4Table kTable{Fp4Table{}.low + kLowest * 0x08080800u, Fp4Table{}.high + kLowest * 0x08080808u};
            return kTable.times_power_of_two(permute_bytes(exponents, 0, 0x4440 + i));
        }
    };

    // Whether the row's scales fold into one, and both ways to say them.
    struct Row {
        bool fits;
        u32 exponents;
        int top;

        __device__ __forceinline__ explicit Row(u32 packed) : exponents(packed) {
            const int e[4] = {static_cast<int>(packed & 255), static_cast<int>(packed >> 8 & 255),
                              static_cast<int>(packed >> 16 & 255), static_cast<int>(packed >> 24)};
            top = max(max(e[0], e[1]), max(e[2], e[3]));
            fits = top - min(min(e[0], e[1]), min(e[2], e[3])) <= kSpread && top < 255;
        }
        __device__ __forceinline__ Fold together() const {
            constexpr float kHighest = -0x1p-6f;
            static_assert(Ue8m0By32::kHighest == 6);
            return {exponents + (kSpread - top) * 0x01010101u, kHighest * ue8m0_value(top)};
        }
        __device__ __forceinline__ Fold apart() const { return {exponents, 0}; }
    };
};

template <>
struct RowFold<FloatBy32> {
    static constexpr u32 kAhead = 2;

    struct alignas(16) Fold {
        float scales[4];

        __device__ __forceinline__ float scale() const { return scales[0]; }
        __device__ __forceinline__ float scale(u32 i) const { return scales[i]; }
        __device__ __forceinline__ Fp4Table table(u32) const { return {}; }
    };

    struct Row {
        bool fits;
        float4 scales;

        __device__ __forceinline__ explicit Row(float4 s)
            : fits(s.x == s.y && s.x == s.z && s.x == s.w), scales(s) {}
        __device__ __forceinline__ Fold together() const { return {{-scales.x, -scales.y, -scales.z, -scales.w}}; }
        __device__ __forceinline__ Fold apart() const { return together(); }
    };
};

template <>
struct RowFold<FloatBy128> {
    static constexpr u32 kAhead = 4;

    struct Fold {
        float common;

        __device__ __forceinline__ float scale() const { return common; }
        __device__ __forceinline__ float scale(u32) const { return common; }
        __device__ __forceinline__ Fp4Table table(u32) const { return {}; }
    };

    struct Row {
        static constexpr bool fits = true;
        float scale;

        __device__ __forceinline__ explicit Row(float s) : scale(s) {}
        __device__ __forceinline__ Fold together() const { return {-scale}; }
        __device__ __forceinline__ Fold apart() const { return {-scale}; }
    };
};
