"""The launch of the FP8 GEMM of short K: `cuda/kernels/sm90_fp8_gemm_1d2d_resident.cuh`."""

from __future__ import annotations

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, SCALE_BLOCK, ceil_div
from jax_deepgemm.heuristics.resident_config import TILE_ROWS, ResidentConfig, grid_size
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.gemm_plan import store_map


def launch(
    tile: ResidentConfig,
    m: int,
    n: int,
    k: int,
    out_bytes: int,
    num_sms: int,
    smem_bytes: int,
    *,
    has_c: bool = False,
    pdl: bool = False,
) -> Launch:
    """The launch of one configuration, whatever chose it. Raises ValueError where it does not fit."""
    if k > tile.MAX_K:
        raise ValueError(f"{tile} is for K up to {tile.MAX_K}, got {k}")
    blocks = ceil_div(k, BLOCK_K)
    stages, store = tile.stages(out_bytes, smem_bytes, blocks), tile.store(out_bytes, smem_bytes, blocks)
    if stages < blocks:
        raise ValueError(f"{tile} must have room for its tiles in {smem_bytes} bytes of shared memory")
    a, a_scale, b, b_scale, c = range(5)
    d = 5 if has_c else 4
    return Launch(
        kernel=Kernel(
            "sm90_fp8_gemm_1d2d_resident",
            (
                ("kColumns", SCALE_BLOCK),
                ("kMathGroups", tile.math_groups),
                ("kBlocks", blocks),
                ("kStages", stages),
                ("kWaves", 1),
                ("kSplitK", 1),
                ("kStoreAtomBytes", store.atom_bytes),
                ("kStoreBuffers", store.buffers),
                ("kHasC", has_c),
                ("Out", "bf16" if out_bytes == 2 else "float"),
            ),
        ),
        grid=(grid_size(tile, m, n, num_sms), 1, 1),
        block=(tile.math_groups * 128 + 128, 1, 1),
        cluster=(1, 1, 1),
        shared_memory=tile.shared_memory(out_bytes, smem_bytes, blocks),
        pdl=pdl,
        arguments=(
            TensorMap(a, "float8_e4m3fn", (k, m), (k,), (BLOCK_K, TILE_ROWS), swizzle=128),
            TensorMap(b, "float8_e4m3fn", (k, n), (k,), (BLOCK_K, SCALE_BLOCK), swizzle=128),
            store_map(d, m, n, out_bytes, store),
            Pointer(a_scale),
            Pointer(b_scale),
            Pointer(c if has_c else d),
            Scalar(m, "uint32"),
            Scalar(n, "uint32"),
        ),
    )
