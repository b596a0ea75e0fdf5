"""The launch of the FP8 GEMM with A scaled per (1, 128), and B per (128, 128) or like A:
`cuda/kernels/sm90_fp8_gemm_1d2d.cuh` and `cuda/kernels/sm90_fp8_gemm_1d1d.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_deepgemm.heuristics import sm90, sm90_1d1d, sm90_resident
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, SCALE_BLOCK, GemmConfig, ceil_div
from jax_deepgemm.heuristics.resident_config import ResidentConfig
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops import fp8_resident_plan
from jax_deepgemm.ops.gemm_plan import MAX_EXTENT, grid_size, output_map, store_map, template
from jax_deepgemm.ops.head_splits import HeadSplits

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

RECIPE = ((1, 128), (128, 128))  # rows and columns of `a`, and of `b`, that share a scale
ROW_RECIPE = ((1, 128), (1, 128))
_HEURISTICS: dict[Any, Any] = {RECIPE: sm90_resident, ROW_RECIPE: sm90_1d1d}


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, a_scale, b, b_scale[, c]), or None where no kernel takes the problem."""
    problem = problem_of(avals, out_avals, target, config)
    if problem is None:
        return None
    chosen = params.get("config") or _HEURISTICS[params["recipe"]].fp8_gemm(*problem)
    has_c = len(avals) > 4
    if isinstance(chosen, ResidentConfig):
        return fp8_resident_plan.launch(chosen, *problem, has_c=has_c, pdl=config.pdl)
    return launch(chosen, *problem, has_c=has_c, pdl=config.pdl)


def ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Sequence[GemmConfig | ResidentConfig]:
    """The configurations that `plan` may take, by the heuristics' price; none where no kernel takes the problem."""
    problem = problem_of(avals, out_avals, target, config)
    return [] if problem is None else _HEURISTICS[params["recipe"]].ranked(*problem)


def problem_of(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], target: Target, config: Config
) -> tuple[int, int, int, int, int, int] | None:
    """m, n, k, bytes of a result, processors and shared memory: all that the heuristics ask for.

    None where no kernel takes them.
    """
    (m, k), (n, _) = avals[0].shape, avals[2].shape
    if target.arch != "sm_90a" or 0 in (m, n, k) or max(m, n, k) > MAX_EXTENT:
        return None
    out_bytes = np.dtype(out_avals[0].dtype).itemsize
    if k % 16 or n * out_bytes % 16:
        return None  # a shard may be so: TMA takes rows of 16 bytes
    return m, n, k, out_bytes, min(target.num_sms, config.num_sms or target.num_sms), target.smem_bytes


def launch(
    tile: GemmConfig,
    m: int,
    n: int,
    k: int,
    out_bytes: int,
    num_sms: int,
    smem_bytes: int,
    *,
    has_c: bool = False,
    pdl: bool = False,
    splits: HeadSplits | None = None,
) -> Launch:
    """The launch of one configuration, whatever chose it. Raises ValueError where its pipeline does not fit."""
    stages = tile.stages(out_bytes, smem_bytes)
    if stages < 2:
        raise ValueError(f"{tile} must have room for two stages in {smem_bytes} bytes of shared memory, got {stages}")
    store = tile.store(out_bytes, smem_bytes)
    by_row = isinstance(tile, GemmConfig1d1d)
    store_warp = not by_row and sm90.store_warp(tile, store, m, n, num_sms)
    b_leaves_first = m <= tile.tile_m if by_row else sm90.read_at_once(tile, m, n, ceil_div(k, BLOCK_K), num_sms)
    arguments: tuple[tuple[str, int | bool | str], ...] = (
        *template(tile, stages, store, b_leaves_first, out_bytes, has_c, store_warp),
        ("kScaleN", 1 if by_row else SCALE_BLOCK),
        ("kAhead", tile.ahead),
        ("kRings", not by_row and sm90.whole_rings(tile, m)),
    )
    if splits is not None:
        splits.check(tile, out_bytes, smem_bytes)
        arguments += (("Columns", splits.functor),)
    a, a_scale, b, b_scale, c = range(5)
    d = 5 if has_c or (splits and splits.keeps) else 4
    width = splits.width(n) if splits else n
    rows, columns = (b, a) if tile.swap else (a, b)
    extent = {a: m, b: n}

    def operand(buffer: int, box: int) -> TensorMap:
        return TensorMap(buffer, "float8_e4m3fn", (k, extent[buffer]), (k,), (BLOCK_K, box), swizzle=128)

    d_map = store_map(d, m, width, out_bytes, store)
    c_map = output_map(c, m, n, out_bytes, (128 // out_bytes, tile.rows), 128) if has_c else d_map
    return Launch(
        kernel=Kernel("sm90_fp8_gemm_1d1d" if by_row else "sm90_fp8_gemm_1d2d", arguments),
        grid=(grid_size(tile, m, n, num_sms), 1, 1),
        block=(tile.math_groups * 128 + 128, 1, 1),
        cluster=(tile.cluster, 1, 1),
        shared_memory=tile.shared_memory(out_bytes, smem_bytes),
        pdl=pdl,
        arguments=(
            operand(rows, tile.rows // tile.cluster_columns),
            operand(columns, tile.columns // tile.cluster_rows),
            *[c_map] * by_row,
            d_map,
            Pointer(a_scale),
            Pointer(b_scale),
            Pointer(c if has_c else d),
            Pointer(d),
            Scalar(m, "uint32"),
            Scalar(n, "uint32"),
            Scalar(k, "uint32"),
        ),
    )
