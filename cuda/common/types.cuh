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

// Rounds to nearest even and packs: `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ float bf16_low(u32 packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float bf16_high(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

template <class T>
__host__ __device__ constexpr T align_up(T a, T b) {
    return ceil_div(a, b) * b;
}
