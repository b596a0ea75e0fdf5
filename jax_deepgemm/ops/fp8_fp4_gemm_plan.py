"""The launch of the GEMM with FP4 weights: `cuda/kernels/sm90_fp8_fp4_gemm.cuh`."""

from __future__ import annotations

from jax_deepgemm.heuristics.fp4_config import SCALE_BOX_BYTES, Fp4GemmConfig, Scales
from jax_deepgemm.heuristics.gemm_config import BLOCK_K
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.fp8_gemm_plan import grid_size


def scale_row_bytes(k: int, scales: Scales) -> int:
    """Bytes of a row of weight scales in memory, whole boxes of TMA."""
    return -(-k // BLOCK_K * scales.row_bytes // SCALE_BOX_BYTES) * SCALE_BOX_BYTES


def launch(
    tile: Fp4GemmConfig,
    m: int,
    n: int,
    k: int,
    scales: Scales,
    out_bytes: int,
    num_sms: int,
    smem_bytes: int,
    *,
    has_c: bool = False,
    pdl: bool = False,
) -> Launch:
    """The launch of one configuration, whatever chose it. Raises ValueError where its pipeline does not fit."""
    packed_stages, store, shared_memory = tile.fp4_layout(out_bytes, smem_bytes, scales)
    if packed_stages < 2:
        raise ValueError(
            f"{tile} must have room for two packed stages in {smem_bytes} bytes of shared memory, got {packed_stages}"
        )
    template: tuple[tuple[str, int | bool | str], ...] = (
        ("kRows", tile.rows),
        ("kColumns", tile.columns),
        ("kMathGroups", tile.math_groups),
        ("kFeedGroups", tile.feed_groups),
        ("kWaves", tile.waves),
        ("kStages", tile.decoded_stages),
        ("kPackedStages", packed_stages),
        ("kStageBlocks", tile.stage_blocks),
        ("kSwap", tile.swap),
        ("kSplitK", tile.split_k),
        ("kClusterRows", 1),
        ("kClusterColumns", 1),
        ("kGroup", tile.group),
        ("kScaleN", 1),
        ("kStoreAtomBytes", store.atom_bytes),
        ("kStoreBuffers", store.buffers),
        ("kHasC", has_c),
        ("Scales", scales.name),
        ("Out", "bf16" if out_bytes == 2 else "float"),
    )
    a, a_scale, b, b_scale, c = range(5)
    scale_bytes = scale_row_bytes(k, scales)
    d = 5 if has_c else 4
    d_map = TensorMap(
        d,
        "bfloat16" if out_bytes == 2 else "float32",
        (n, m),
        (n * out_bytes,),
        (store.atom_bytes // out_bytes, 16),
        swizzle=store.atom_bytes,
    )
    return Launch(
        kernel=Kernel("sm90_fp8_fp4_gemm", template),
        grid=(grid_size(tile, m, n, num_sms), 1, 1),
        block=((tile.math_groups + tile.feed_groups) * 128, 1, 1),
        cluster=(tile.cluster, 1, 1),
        shared_memory=shared_memory,
        pdl=pdl,
        arguments=(
            TensorMap(b, "uint8", (k // 2, n), (k // 2,), (BLOCK_K // 2, tile.task_rows), swizzle=64),
            TensorMap(a, "float8_e4m3fn", (k, m), (k,), (BLOCK_K, tile.tile_m), swizzle=128),
            TensorMap(b_scale, "uint8", (scale_bytes, n), (scale_bytes,), (SCALE_BOX_BYTES, tile.task_rows)),
            d_map,
            Pointer(a_scale),
            Pointer(c if has_c else d),
            Pointer(d),
            Scalar(m, "uint32"),
            Scalar(n, "uint32"),
            Scalar(k, "uint32"),
        ),
    )
