// Names for the few types that every kernel shares. NVRTC has no <cstdint> and no cuda.h.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// What the driver calls CUtensorMap: opaque here, always a `const __grid_constant__` kernel parameter.
struct alignas(64) TensorMap {
    u8 opaque[128];
};

// An output element; the bits of a bfloat16.
struct bf16 {
    u16 bits;
};

// An input element; the bits of a float16.
struct f16 {
    u16 bits;
};

// Rounds to nearest even and packs: `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ float bf16_low(u32 packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float bf16_high(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }

__host__ __device__ constexpr u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
__host__ __device__ constexpr u32 align_up(u32 a, u32 b) { return ceil_div(a, b) * b; }
// The largest power of two that divides it.
__host__ __device__ constexpr u32 lowest_bit(u32 a) { return a & (0u - a); }

template <u32 kValue>
struct Constant {
    static constexpr u32 value = kValue;
};

// f(Constant<0>), f(Constant<1>), ...: for loops whose index must be a compile-time constant.
template <u32 kCount, u32 kFirst = 0, class F>
__device__ __forceinline__ void unrolled(F&& f) {
    if constexpr (kFirst < kCount) {
        f(Constant<kFirst>{});
        unrolled<kCount, kFirst + 1>(f);
    }
}
