"""What the launches of all GEMM kernels share."""

from __future__ import annotations

from jax_deepgemm.heuristics.gemm_config import GemmConfig, Store
from jax_deepgemm.launch import TensorMap

MAX_EXTENT = 2**31 - 512  # the coordinates of a TMA box, also beyond the last tile, are signed 32-bit numbers


def template(
    tile: GemmConfig,
    stages: int,
    store: Store,
    b_leaves_first: bool,
    out_bytes: int,
    has_c: bool,
    store_warp: bool = False,
) -> tuple[tuple[str, int | bool | str], ...]:
    """The template arguments that every GEMM kernel has. `b_leaves_first`: the L2 cache."""
    return (
        ("kRows", tile.rows),
        ("kColumns", tile.columns),
        ("kMathGroups", tile.math_groups),
        ("kWaves", tile.waves),
        ("kStages", stages),
        ("kStageBlocks", tile.stage_blocks),
        ("kSwap", tile.swap),
        ("kSplitK", tile.split_k),
        ("kClusterRows", tile.cluster_rows),
        ("kClusterColumns", tile.cluster_columns),
        ("kGroup", tile.group),
        ("kStoreAtomBytes", store.atom_bytes),
        ("kStoreBuffers", store.buffers),
        ("kStoreWarp", store_warp),
        ("kBLeavesFirst", b_leaves_first),
        ("kHasC", has_c),
        ("Out", "bf16" if out_bytes == 2 else "float"),
    )


def output_map(buffer: int, m: int, n: int, out_bytes: int, box: tuple[int, int], swizzle: int) -> TensorMap:
    """Of a result, or of `c`: [m, n], BF16 or FP32."""
    dtype = "bfloat16" if out_bytes == 2 else "float32"
    return TensorMap(buffer, dtype, (n, m), (n * out_bytes,), box, swizzle=swizzle)


def store_map(buffer: int, m: int, n: int, out_bytes: int, store: Store) -> TensorMap:
    """Of a result, in the boxes that a warp stores."""
    return output_map(buffer, m, n, out_bytes, (store.atom_bytes // out_bytes, 16), store.atom_bytes)


def grid_size(tile: GemmConfig, m: int, n: int, num_sms: int) -> int:
    """Blocks of the persistent grid: whole clusters, no more than there are tiles or processors for."""
    rows = -(-(n if tile.swap else m) // tile.rows)
    columns = -(-(m if tile.swap else n) // tile.columns)
    clusters = -(-rows // tile.cluster_rows) * -(-columns // tile.cluster_columns)
    return min(clusters, max(1, num_sms // tile.cluster)) * tile.cluster
