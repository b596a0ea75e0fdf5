// D[i, N] = A[i, K] B[g, N, K]^T for each row i of group g, in FP8 (e4m3), scaled as for sm90_fp8_gemm_1d2d. Hopper.
//
// `layout` tells which rows each group has; Config::Groups says how.
#pragma once
#include "common/fp8_gemm.cuh"
#include "common/fp8_runs.cuh"
#include "common/group_walk.cuh"
#include "common/scales_1d2d.cuh"

template <class Config>
__global__ void __launch_bounds__(Config::kMathGroups * 128 + 128, 1)
    sm90_m_grouped_fp8_gemm_1d2d(const __grid_constant__ TensorMap rows_map,
                                 const __grid_constant__ TensorMap columns_map, const __grid_constant__ TensorMap d_map,
                                 const float* scales_a, const float* scales_b, const int* layout,
                                 typename Config::Out* d, u32 m, u32 n, u32 k, u32 groups) {
    using Gemm = Fp8Gemm<Config, Scales1d2d<Config>>;
    using Walk = typename Gemm::Walk;
    const auto prepare = [&](const typename Gemm::Shared& shared) {
        build_group_table<typename Config::Groups, Walk::kTileM>(Walk::table_of(shared), shared.base, layout, groups, m,
                                                                 Walk::tiles_across(n));
        if constexpr (Gemm::kCluster > 1) cluster_sync();  // tables are made where others of the cluster load tiles
    };
    Gemm::run(rows_map, columns_map, d_map, d_map, scales_a, scales_b, d, d, m, n, k, prepare);
}
