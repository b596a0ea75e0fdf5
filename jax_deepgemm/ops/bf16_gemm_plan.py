"""The launch of the BF16 GEMM: `cuda/kernels/sm90_bf16_gemm.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_deepgemm.heuristics import sm90, sm90_bf16
from jax_deepgemm.heuristics.bf16_config import BLOCK_K, SLAB, Bf16GemmConfig
from jax_deepgemm.heuristics.gemm_config import ceil_div
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.gemm_plan import MAX_EXTENT, grid_size, store_map, template

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, b[, c]), or None where no kernel takes the problem."""
    problem = _problem(avals, out_avals, params, target, config)
    if problem is None:
        return None
    chosen = params.get("config") or sm90_bf16.bf16_gemm(*problem)
    return launch(chosen, *problem[1:], has_c=len(avals) > 2, pdl=config.pdl)


def ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> list[Bf16GemmConfig]:
    """The configurations that `plan` may take, by the heuristics' price; none where no kernel takes the problem."""
    problem = _problem(avals, out_avals, params, target, config)
    return [] if problem is None else sm90_bf16.ranked(*problem)


def _problem(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> tuple[str, int, int, int, int, int, int] | None:
    """Layout, m, n, k, bytes of a result, processors and shared memory: all that the heuristics ask for.

    None where no kernel takes them.
    """
    layout: str = params["layout"]
    m, k = avals[0].shape if layout[0] == "n" else avals[0].shape[::-1]
    n = avals[1].shape[0 if layout[1] == "t" else 1]
    if target.arch != "sm_90a" or 0 in (m, n, k) or max(m, n, k) > MAX_EXTENT:
        return None
    out_bytes = np.dtype(out_avals[0].dtype).itemsize
    if any(x.shape[1] % 8 for x in avals[:2]) or n * out_bytes % 16:
        return None  # a shard may be so: TMA takes rows of 16 bytes
    return layout, m, n, k, out_bytes, min(target.num_sms, config.num_sms or target.num_sms), target.smem_bytes


def launch(
    tile: Bf16GemmConfig,
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
    """The launch of one configuration, whatever chose it. Raises ValueError where its pipeline does not fit."""
    stages = tile.stages(out_bytes, smem_bytes)
    if stages < 2:
        raise ValueError(f"{tile} must have room for two stages in {smem_bytes} bytes of shared memory, got {stages}")
    store = tile.store(out_bytes, smem_bytes)
    # A configuration may come from a smaller matrix: vmap folds a batch into M.
    rows_loaded = tile.rows_loaded if tile.rows_loaded >= (n if tile.swap else m) else tile.rows
    b_leaves_first = sm90.read_at_once(tile, m, n, ceil_div(k, BLOCK_K), num_sms)
    arguments: tuple[tuple[str, int | bool | str], ...] = (
        *template(tile, stages, store, b_leaves_first, out_bytes, has_c, sm90.store_warp(tile, store, m, n, num_sms)),
        ("kMnRows", tile.mn_rows),
        ("kMnColumns", tile.mn_columns),
        ("kRowsLoaded", rows_loaded),
        ("kEager", tile.eager),
    )
    a, b, c = range(3)
    d = 3 if has_c else 2
    rows, columns = (b, a) if tile.swap else (a, b)
    extent = {a: m, b: n}

    def operand(buffer: int, mn: bool, extent_loaded: int, share: int) -> TensorMap:
        """Boxes of one CTA's share of a tile: of its rows, or of the K of its slabs."""
        size = extent[buffer]
        if mn:
            return TensorMap(buffer, "bfloat16", (size, k), (2 * size,), (SLAB, BLOCK_K // share), swizzle=128)
        return TensorMap(buffer, "bfloat16", (k, size), (2 * k,), (BLOCK_K, extent_loaded // share), swizzle=128)

    return Launch(
        kernel=Kernel("sm90_bf16_gemm", arguments),
        grid=(grid_size(tile, m, n, num_sms), 1, 1),
        block=(tile.math_groups * 128 + 128, 1, 1),
        cluster=(tile.cluster, 1, 1),
        shared_memory=tile.shared_memory(out_bytes, smem_bytes),
        pdl=pdl,
        arguments=(
            operand(rows, tile.mn_rows, rows_loaded, tile.cluster_columns),
            operand(columns, tile.mn_columns, tile.columns, tile.cluster_rows),
            store_map(d, m, n, out_bytes, store),
            Pointer(c if has_c else d),
            Pointer(d),
            Scalar(m, "uint32"),
            Scalar(n, "uint32"),
            Scalar(k, "uint32"),
        ),
    )
