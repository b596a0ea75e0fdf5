"""The launch of the m-grouped FP8 GEMMs: `cuda/kernels/sm90_m_grouped_fp8_gemm_1d2d.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jax_deepgemm.heuristics import sm90, sm90_m_grouped
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, SCALE_BLOCK, GemmConfig
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.gemm_plan import store_map, template
from jax_deepgemm.ops.m_grouped_plan import Problem, problem_of

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

TOKEN_BOX = 32  # rows of A that are loaded at once where they are wgmma's columns


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, a_scale, b, b_scale, layout or masked_m), or None where no kernel takes them."""
    problem = problem_of(avals[0], avals[2], out_avals[0], params, target, config, 16)
    if problem is None:
        return None
    chosen = params.get("config") or sm90_m_grouped.fp8_gemm(*problem.heuristics)
    return launch(chosen, problem, pdl=config.pdl) if problem.fits(chosen) else None


def ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Sequence[GemmConfig]:
    """The configurations that `plan` may take, by the heuristics' price; none where no kernel takes the problem."""
    problem = problem_of(avals[0], avals[2], out_avals[0], params, target, config, 16)
    if problem is None:
        return []
    return [c for c in sm90_m_grouped.ranked(*problem.heuristics) if problem.fits(c)]


def launch(tile: GemmConfig, problem: Problem, *, pdl: bool = False) -> Launch:
    """The launch of one configuration, whatever chose it. Raises ValueError where it does not fit."""
    m, n, k, groups, out_bytes, smem_bytes = (
        getattr(problem, name) for name in ("m", "n", "k", "groups", "out_bytes", "smem_bytes")
    )
    stages = tile.stages(out_bytes, smem_bytes)
    if stages < 2 or tile.cluster_rows > 1 or (tile.swap and tile.multicast > 1):
        raise ValueError(
            f"{tile} must not share B and have room for two stages in {smem_bytes} bytes of shared memory, got {stages}"
        )
    store = tile.store(out_bytes, smem_bytes)
    store_warp = sm90.store_warp(
        tile, store, problem.rows, n, problem.num_sms, groups=groups, least_rows=sm90_m_grouped.HANDED_OVER_ROWS["fp8"]
    )
    arguments: tuple[tuple[str, int | bool | str], ...] = (
        *template(tile, stages, store, problem.rows <= tile.tile_m, out_bytes, False, store_warp),
        ("kScaleN", SCALE_BLOCK),
        ("kAhead", tile.ahead),
        ("kRings", sm90.whole_rings(tile, problem.rows * groups)),
        *((("kColumnBox", TOKEN_BOX),) if column_box(tile) < tile.columns else ()),
        ("Groups", problem.kind),
    )
    a, a_scale, b, b_scale, layout, d = range(6)
    rows, columns = (b, a) if tile.swap else (a, b)
    extent = {a: m, b: groups * n}

    def operand(buffer: int, box: int) -> TensorMap:
        return TensorMap(buffer, "float8_e4m3fn", (k, extent[buffer]), (k,), (BLOCK_K, box), swizzle=128)

    return Launch(
        kernel=Kernel("sm90_m_grouped_fp8_gemm_1d2d", arguments),
        grid=(problem.grid(tile), 1, 1),
        block=(tile.math_groups * 128 + 128, 1, 1),
        cluster=(tile.cluster, 1, 1),
        shared_memory=tile.shared_memory(out_bytes, smem_bytes) + problem.table_bytes,
        pdl=pdl,
        arguments=(
            operand(rows, tile.rows // tile.cluster_columns),
            operand(columns, column_box(tile)),
            store_map(d, m, n, out_bytes, store),
            Pointer(a_scale),
            Pointer(b_scale),
            Pointer(layout),
            Pointer(d),
            *(Scalar(value, "uint32") for value in (m, n, k, groups)),
        ),
    )


def column_box(tile: GemmConfig) -> int:
    """Rows of B, or of A with swapped operands, of which no more are loaded than a group has, rounded up to this."""
    return TOKEN_BOX if tile.swap and tile.columns % TOKEN_BOX == 0 else tile.columns
