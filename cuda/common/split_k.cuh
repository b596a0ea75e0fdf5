// Split-K inside a cluster: every CTA leaves its FP32 partial tile in shared memory, then each adds up its share of the
// tile over all CTAs (through distributed shared memory, in rank order: deterministic) and writes it out.
#pragma once
#include "common/barrier.cuh"
#include "common/head_splits.cuh"
#include "common/result_rows.cuh"
#include "common/types.cuh"

__device__ __forceinline__ float4 load_remote(const float* local, u32 rank) {
    float4 v;
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %4, %5;\n"
        "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
        "}\n"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "r"(shared_address(local)), "r"(rank)
        : "memory");
    return v;
}

// Four neighbours of one output row, plus C's where there is one.
template <bool kHasC, class Out>
__device__ __forceinline__ void write_four(Out* d, const Out* c, u64 offset, float4 v) {
    if constexpr (sizeof(Out) == 4) {
        if constexpr (kHasC) {
            const float4 old = *reinterpret_cast<const float4*>(c + offset);
            v.x += old.x, v.y += old.y, v.z += old.z, v.w += old.w;
        }
        asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(d + offset), "f"(v.x), "f"(v.y), "f"(v.z),
                     "f"(v.w)
                     : "memory");
    } else {
        if constexpr (kHasC) {
            const uint2 old = *reinterpret_cast<const uint2*>(c + offset);
            v.x += bf16_low(old.x), v.y += bf16_high(old.x), v.z += bf16_low(old.y), v.w += bf16_high(old.y);
        }
        asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(d + offset), "r"(pack_bf16(v.x, v.y)),
                     "r"(pack_bf16(v.z, v.w))
                     : "memory");
    }
}

// `partial` is this CTA's [kM][kPitch] tile, at the same place in every CTA; m0, n0 its corner in d [m, n].
// Called by kThreads threads of each of the kSplits CTAs, after their barrier; n is a multiple of 4. A CTA has kTiles partial
// tiles, one behind the other.
template <u32 kSplits, bool kHasC, u32 kM, u32 kN, u32 kPitch, u32 kThreads, class Columns = AllColumns,
          class Out, u32 kTiles = 1, class Rows = AllRows>
__device__ __forceinline__ void add_up_and_store(const float* partial, Out* d, const Out* c, u32 m0, u32 n0, u32 m,
                                                 u32 n, u32 rank, u32 thread, Rows rows = {}) {
    constexpr u32 kQuads = kN / 4;
    const u32 height = m0 < m ? min(kM, m - m0) : 0;  // a cluster's last CTA may have no rows left
#pragma unroll(kSplits > 1 ? 2 : 1)
    for (u32 i = rank * kThreads + thread; i < height * kQuads; i += kSplits * kThreads) {
        const u32 row = i / kQuads, column = i % kQuads * 4;
        if (n0 + column >= n || !rows.has(m0 + row)) continue;
        const float* at = partial + row * kPitch + column;
        float4 parts[kSplits * kTiles];
#pragma unroll
        for (u32 s = 0; s < kSplits * kTiles; ++s) {
            const float* const of_tile = at + s % kTiles * kM * kPitch;
            if constexpr (kSplits == 1) {
                parts[s] = *reinterpret_cast<const float4*>(of_tile);
            } else {
                parts[s] = load_remote(of_tile, s / kTiles);
            }
        }
        float4 sum = parts[0];
#pragma unroll
        for (u32 s = 1; s < kSplits * kTiles; ++s) {
            sum.x += parts[s].x, sum.y += parts[s].y, sum.z += parts[s].z, sum.w += parts[s].w;
        }
        write_four<kHasC>(d, c, static_cast<u64>(m0 + row) * Columns::at(n) + Columns::at(n0 + column), sum);
    }
}
