// Conversion to FP8 (e4m3).
#pragma once
#include "common/cast.cuh"
#include "common/types.cuh"

// Of the largest number. A function, since a constant is a variable in every kernel that includes it.
__device__ constexpr float e4m3_inverse() { return 1.0f / 448.0f; }

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
