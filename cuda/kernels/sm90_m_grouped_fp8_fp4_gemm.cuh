// D[i, N] = A[i, K] B[g, N, K]^T for each row i of group g: A in FP8 (e4m3), B in FP4 (e2m1), scaled as for
// sm90_fp8_fp4_gemm. Hopper.
//
// `layout` tells which rows each group has; Config::Groups says how.
#pragma once
#include "common/group_walk.cuh"
#include "kernels/sm90_fp8_fp4_gemm.cuh"

template <class Config>
__global__ void __launch_bounds__(Fp4Layout<Config>::kThreads, 1)
    sm90_m_grouped_fp8_fp4_gemm(const __grid_constant__ TensorMap weights_map,
                                const __grid_constant__ TensorMap tokens_map, const __grid_constant__ TensorMap d_map,
                                const float* scales_a, const typename Config::Scales::Raw* scales_b, const int* layout,
                                typename Config::Out* d, u32 m, u32 n, u32 k, u32 row_scales, u32 groups) {
    using Gemm = Sm90Fp8Fp4Gemm<Config>;
    using Walk = typename Gemm::Walk;
    static_assert(Walk::kBeside == 1, "who shares tiles must wait for the others' tables");
    static_assert(Config::kClusterRows == 1, "neighbouring row tiles may have weights of two groups");
    const auto prepare = [&](const typename Gemm::Shared& shared) {
        build_group_table<typename Config::Groups, Walk::kTileM>(Walk::table_of(shared), shared.base, layout, groups, m,
                                                                 Walk::tiles_across(n));
    };
    Gemm::run(weights_map, tokens_map, d_map, scales_a, scales_b, d, d, m, n, k, row_scales, prepare);
}
