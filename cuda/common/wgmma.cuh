// Warpgroup matrix multiply-accumulate (wgmma), both operands in shared memory, 128-byte swizzle.
#pragma once
#include "common/types.cuh"

// Where a tile of 128-byte rows lies, as the lower word of its descriptor has it: what lies `bytes` behind it in shared
// memory has this + bytes / 16. So a loop adds where it would shift, mask and join anew for each stage.
__device__ __forceinline__ u32 wgmma_tile(u32 shared_address) { return 1u << 16 | (shared_address & 0x3ffff) >> 4; }

// Descriptor of that tile, swizzled by 128 bytes: groups of 8 rows are 1024 bytes apart.
__device__ __forceinline__ u64 wgmma_tile_descriptor(u32 tile) {
    constexpr u64 kSwizzle128 = 1ull << 62;
    constexpr u64 kGroupStride = (1024ull >> 4) << 32;
    return kSwizzle128 | kGroupStride | tile;
}

__device__ __forceinline__ u64 wgmma_descriptor(u32 shared_address) {
    return wgmma_tile_descriptor(wgmma_tile(shared_address));
}

// As above, of a tile whose rows run along M or N: slabs of 64 elements of M or N, a row of 128 bytes for each of K. Groups
// of 8 rows are 1024 bytes apart, slabs kSlabBytes.
template <u32 kSlabBytes>
__device__ __forceinline__ u64 wgmma_descriptor_mn(u32 shared_address) {
    constexpr u64 kSwizzle128 = 1ull << 62;
    constexpr u64 kGroupStride = (1024ull >> 4) << 32;
    constexpr u64 kSlabStride = static_cast<u64>(kSlabBytes >> 4) << 16;
    return kSwizzle128 | kGroupStride | kSlabStride | ((shared_address & 0x3ffff) >> 4);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <u32 kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accumulators across the asynchronous products.
template <u32 kCount>
__device__ __forceinline__ void wgmma_pin(float (&d)[kCount]) {
#pragma unroll
    for (u32 i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// PTX wants each register spelled out: lists of 4 n operands, as text (T) and as constraints (C).
#define JDG_T0 "%0, %1, %2, %3"
#define JDG_T1 "%4, %5, %6, %7"
#define JDG_T2 "%8, %9, %10, %11"
#define JDG_T3 "%12, %13, %14, %15"
#define JDG_T4 "%16, %17, %18, %19"
#define JDG_T5 "%20, %21, %22, %23"
#define JDG_T6 "%24, %25, %26, %27"
#define JDG_T7 "%28, %29, %30, %31"
#define JDG_T8 "%32, %33, %34, %35"
#define JDG_T9 "%36, %37, %38, %39"
#define JDG_T10 "%40, %41, %42, %43"
#define JDG_T11 "%44, %45, %46, %47"
#define JDG_T12 "%48, %49, %50, %51"
#define JDG_T13 "%52, %53, %54, %55"
#define JDG_T14 "%56, %57, %58, %59"
#define JDG_T15 "%60, %61, %62, %63"
#define JDG_T16 "%64, %65, %66, %67"
#define JDG_T17 "%68, %69, %70, %71"
#define JDG_T18 "%72, %73, %74, %75"
#define JDG_T19 "%76, %77, %78, %79"
#define JDG_T20 "%80, %81, %82, %83"
#define JDG_T21 "%84, %85, %86, %87"
#define JDG_T22 "%88, %89, %90, %91"
#define JDG_T23 "%92, %93, %94, %95"
#define JDG_T24 "%96, %97, %98, %99"
#define JDG_T25 "%100, %101, %102, %103"
#define JDG_T26 "%104, %105, %106, %107"
#define JDG_T27 "%108, %109, %110, %111"
#define JDG_T28 "%112, %113, %114, %115"
#define JDG_T29 "%116, %117, %118, %119"
#define JDG_T30 "%120, %121, %122, %123"
#define JDG_T31 "%124, %125, %126, %127"
#define JDG_C(i) "+f"(d[4 * i]), "+f"(d[4 * i + 1]), "+f"(d[4 * i + 2]), "+f"(d[4 * i + 3])
#define JDG_TEXT1 JDG_T0
#define JDG_REGS1 JDG_C(0)
#define JDG_TEXT2 JDG_TEXT1 ", " JDG_T1
#define JDG_REGS2 JDG_REGS1, JDG_C(1)
#define JDG_TEXT3 JDG_TEXT2 ", " JDG_T2
#define JDG_REGS3 JDG_REGS2, JDG_C(2)
#define JDG_TEXT4 JDG_TEXT3 ", " JDG_T3
#define JDG_REGS4 JDG_REGS3, JDG_C(3)
#define JDG_TEXT5 JDG_TEXT4 ", " JDG_T4
#define JDG_REGS5 JDG_REGS4, JDG_C(4)
#define JDG_TEXT6 JDG_TEXT5 ", " JDG_T5
#define JDG_REGS6 JDG_REGS5, JDG_C(5)
#define JDG_TEXT7 JDG_TEXT6 ", " JDG_T6
#define JDG_REGS7 JDG_REGS6, JDG_C(6)
#define JDG_TEXT8 JDG_TEXT7 ", " JDG_T7
#define JDG_REGS8 JDG_REGS7, JDG_C(7)
#define JDG_TEXT9 JDG_TEXT8 ", " JDG_T8
#define JDG_REGS9 JDG_REGS8, JDG_C(8)
#define JDG_TEXT10 JDG_TEXT9 ", " JDG_T9
#define JDG_REGS10 JDG_REGS9, JDG_C(9)
#define JDG_TEXT11 JDG_TEXT10 ", " JDG_T10
#define JDG_REGS11 JDG_REGS10, JDG_C(10)
#define JDG_TEXT12 JDG_TEXT11 ", " JDG_T11
#define JDG_REGS12 JDG_REGS11, JDG_C(11)
#define JDG_TEXT13 JDG_TEXT12 ", " JDG_T12
#define JDG_REGS13 JDG_REGS12, JDG_C(12)
#define JDG_TEXT14 JDG_TEXT13 ", " JDG_T13
#define JDG_REGS14 JDG_REGS13, JDG_C(13)
#define JDG_TEXT15 JDG_TEXT14 ", " JDG_T14
#define JDG_REGS15 JDG_REGS14, JDG_C(14)
#define JDG_TEXT16 JDG_TEXT15 ", " JDG_T15
#define JDG_REGS16 JDG_REGS15, JDG_C(15)
#define JDG_TEXT17 JDG_TEXT16 ", " JDG_T16
#define JDG_REGS17 JDG_REGS16, JDG_C(16)
#define JDG_TEXT18 JDG_TEXT17 ", " JDG_T17
#define JDG_REGS18 JDG_REGS17, JDG_C(17)
#define JDG_TEXT19 JDG_TEXT18 ", " JDG_T18
#define JDG_REGS19 JDG_REGS18, JDG_C(18)
#define JDG_TEXT20 JDG_TEXT19 ", " JDG_T19
#define JDG_REGS20 JDG_REGS19, JDG_C(19)
#define JDG_TEXT21 JDG_TEXT20 ", " JDG_T20
#define JDG_REGS21 JDG_REGS20, JDG_C(20)
#define JDG_TEXT22 JDG_TEXT21 ", " JDG_T21
#define JDG_REGS22 JDG_REGS21, JDG_C(21)
#define JDG_TEXT23 JDG_TEXT22 ", " JDG_T22
#define JDG_REGS23 JDG_REGS22, JDG_C(22)
#define JDG_TEXT24 JDG_TEXT23 ", " JDG_T23
#define JDG_REGS24 JDG_REGS23, JDG_C(23)
#define JDG_TEXT25 JDG_TEXT24 ", " JDG_T24
#define JDG_REGS25 JDG_REGS24, JDG_C(24)
#define JDG_TEXT26 JDG_TEXT25 ", " JDG_T25
#define JDG_REGS26 JDG_REGS25, JDG_C(25)
#define JDG_TEXT27 JDG_TEXT26 ", " JDG_T26
#define JDG_REGS27 JDG_REGS26, JDG_C(26)
#define JDG_TEXT28 JDG_TEXT27 ", " JDG_T27
#define JDG_REGS28 JDG_REGS27, JDG_C(27)
#define JDG_TEXT29 JDG_TEXT28 ", " JDG_T28
#define JDG_REGS29 JDG_REGS28, JDG_C(28)
#define JDG_TEXT30 JDG_TEXT29 ", " JDG_T29
#define JDG_REGS30 JDG_REGS29, JDG_C(29)
#define JDG_TEXT31 JDG_TEXT30 ", " JDG_T30
#define JDG_REGS31 JDG_REGS30, JDG_C(30)
#define JDG_TEXT32 JDG_TEXT31 ", " JDG_T31
#define JDG_REGS32 JDG_REGS31, JDG_C(31)

// F(N, N / 8, the numbers of the operands behind the registers) for each N.
#define JDG_EACH_N(F) \
    F(8, 1, "%4", "%5", "%6", "%7", "%8") \
    F(16, 2, "%8", "%9", "%10", "%11", "%12") \
    F(24, 3, "%12", "%13", "%14", "%15", "%16") \
    F(32, 4, "%16", "%17", "%18", "%19", "%20") \
    F(40, 5, "%20", "%21", "%22", "%23", "%24") \
    F(48, 6, "%24", "%25", "%26", "%27", "%28") \
    F(56, 7, "%28", "%29", "%30", "%31", "%32") \
    F(64, 8, "%32", "%33", "%34", "%35", "%36") \
    F(72, 9, "%36", "%37", "%38", "%39", "%40") \
    F(80, 10, "%40", "%41", "%42", "%43", "%44") \
    F(88, 11, "%44", "%45", "%46", "%47", "%48") \
    F(96, 12, "%48", "%49", "%50", "%51", "%52") \
    F(104, 13, "%52", "%53", "%54", "%55", "%56") \
    F(112, 14, "%56", "%57", "%58", "%59", "%60") \
    F(120, 15, "%60", "%61", "%62", "%63", "%64") \
    F(128, 16, "%64", "%65", "%66", "%67", "%68") \
    F(136, 17, "%68", "%69", "%70", "%71", "%72") \
    F(144, 18, "%72", "%73", "%74", "%75", "%76") \
    F(152, 19, "%76", "%77", "%78", "%79", "%80") \
    F(160, 20, "%80", "%81", "%82", "%83", "%84") \
    F(168, 21, "%84", "%85", "%86", "%87", "%88") \
    F(176, 22, "%88", "%89", "%90", "%91", "%92") \
    F(184, 23, "%92", "%93", "%94", "%95", "%96") \
    F(192, 24, "%96", "%97", "%98", "%99", "%100") \
    F(200, 25, "%100", "%101", "%102", "%103", "%104") \
    F(208, 26, "%104", "%105", "%106", "%107", "%108") \
    F(216, 27, "%108", "%109", "%110", "%111", "%112") \
    F(224, 28, "%112", "%113", "%114", "%115", "%116") \
    F(232, 29, "%116", "%117", "%118", "%119", "%120") \
    F(240, 30, "%120", "%121", "%122", "%123", "%124") \
    F(248, 31, "%124", "%125", "%126", "%127", "%128") \
    F(256, 32, "%128", "%129", "%130", "%131", "%132")

// D[64, N] (+)= A[64, 32] B[N, 32]^T in e4m3 with FP32 accumulators, N / 2 of them a thread.
template <u32 kN>
struct WgmmaE4m3;

#define JDG_WGMMA_E4M3(n, quarter, a, b, accumulate, unused1, unused2)                                            \
    template <>                                                                                                   \
    struct WgmmaE4m3<n> {                                                                                         \
        static __device__ __forceinline__ void run(float (&d)[n / 2], u64 desc_a, u64 desc_b, bool add) {         \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate                                           \
                         ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" JDG_TEXT##quarter     \
                         "}, " a ", " b ", p, 1, 1;\n}\n"                                                         \
                         : JDG_REGS##quarter                                                                      \
                         : "l"(desc_a), "l"(desc_b), "r"(static_cast<int>(add)));                                 \
        }                                                                                                         \
    };

JDG_EACH_N(JDG_WGMMA_E4M3)

// D[64, N] (+)= A[64, 16] B[N, 16]^T in bf16 with FP32 accumulators. kMnA, kMnB: whether rows of the tile of A run along
// M, of B along N, instead of along K.
template <u32 kN, bool kMnA, bool kMnB>
struct WgmmaBf16;

#define JDG_WGMMA_BF16(n, quarter, a, b, accumulate, mn_a, mn_b)                                                  \
    template <bool kMnA, bool kMnB>                                                                               \
    struct WgmmaBf16<n, kMnA, kMnB> {                                                                             \
        static __device__ __forceinline__ void run(float (&d)[n / 2], u64 desc_a, u64 desc_b, bool add) {         \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate                                           \
                         ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" JDG_TEXT##quarter     \
                         "}, " a ", " b ", p, 1, 1, " mn_a ", " mn_b ";\n}\n"                                     \
                         : JDG_REGS##quarter                                                                      \
                         : "l"(desc_a), "l"(desc_b), "r"(static_cast<int>(add)), "n"(kMnA), "n"(kMnB));           \
        }                                                                                                         \
    };

JDG_EACH_N(JDG_WGMMA_BF16)
