// Warpgroup matrix multiply-accumulate whose A comes from registers.
#pragma once
#include "common/wgmma.cuh"

// D[64, N] (+)= A[64, 32] B[N, 32]^T in e4m3. Of A, thread (g, t) = (lane / 4, lane % 4) of a warp holds four values each of
// rows g, g + 8, g, g + 8 of the warp's 16: from 4 t on of the first 16 of K, in a[0] and a[1], and of the second.
template <u32 kN>
struct WgmmaE4m3Rs;

#define JDG_WGMMA_E4M3_RS_TEXT(n, quarter, a0, a1, a2, a3, b, compare)                                                \
    "{\n.reg .pred p;\nsetp." compare ".u32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" #n                           \
    "k32.f32.e4m3.e4m3 {" JDG_TEXT##quarter "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b ", p, 1, 1;\n}\n"

#define JDG_WGMMA_E4M3_RS(n, quarter, a0, a1, a2, a3, b)                                                              \
    template <>                                                                                                       \
    struct WgmmaE4m3Rs<n> {                                                                                           \
        template <bool kAdd>                                                                                          \
        static __device__ __forceinline__ void run(float (&d)[n / 2], const u32 (&a)[4], u64 desc_b) {                \
            if constexpr (kAdd) {                                                                                     \
                asm volatile(JDG_WGMMA_E4M3_RS_TEXT(n, quarter, a0, a1, a2, a3, b, "eq")                              \
                             : JDG_REGS##quarter                                                                      \
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b));                              \
            } else {                                                                                                  \
                asm volatile(JDG_WGMMA_E4M3_RS_TEXT(n, quarter, a0, a1, a2, a3, b, "ne")                              \
                             : JDG_REGS##quarter                                                                      \
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(desc_b));                              \
            }                                                                                                         \
        }                                                                                                             \
    };

JDG_EACH_N(JDG_WGMMA_E4M3_RS)
