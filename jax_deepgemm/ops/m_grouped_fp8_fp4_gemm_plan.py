"""The launch of the m-grouped GEMMs with FP4 weights: `cuda/kernels/sm90_m_grouped_fp8_fp4_gemm.cuh`, with few rows a
group `..._swapped.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jax_deepgemm.heuristics import sm90_m_grouped_fp4
from jax_deepgemm.heuristics.fp4_config import Scales
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar
from jax_deepgemm.ops.fp8_fp4_gemm_plan import TileConfig, parts_of, row_scales, scale_kind, tokens_of, weights_map
from jax_deepgemm.ops.gemm_plan import store_map
from jax_deepgemm.ops.m_grouped_plan import Problem, problem_of

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, a_scale, b packed, b_scale, layout or masked_m); None where no kernel takes them."""
    problem = problem_of(avals[0], avals[2], out_avals[0], params, target, config, 32)
    if problem is None:
        return None
    scales = scale_kind(avals[3].dtype, params["recipe"])
    chosen = params.get("config") or sm90_m_grouped_fp4.fp8_fp4_gemm(scales, *problem.heuristics)
    return launch(chosen, problem, scales, pdl=config.pdl) if problem.fits(chosen) else None


def ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Sequence[TileConfig]:
    """The configurations that `plan` may take, by the heuristics' price; none where no kernel takes the problem."""
    problem = problem_of(avals[0], avals[2], out_avals[0], params, target, config, 32)
    if problem is None:
        return []
    return sm90_m_grouped_fp4.ranked(scale_kind(avals[3].dtype, params["recipe"]), *problem.heuristics)


def launch(tile: TileConfig, problem: Problem, scales: Scales, *, pdl: bool = False) -> Launch:
    """The launch of one configuration, whatever chose it. Raises ValueError where its pipeline does not fit."""
    m, n, k, groups, out_bytes = (getattr(problem, name) for name in ("m", "n", "k", "groups", "out_bytes"))
    if tile.cluster > tile.split_k:
        raise ValueError(f"{tile} must not share weights, since neighbouring row tiles may be of two groups")
    parts = parts_of(tile, problem.rows, scales, out_bytes, problem.smem_bytes)
    a, a_scale, b, b_scale, layout, d = range(6)
    return Launch(
        kernel=Kernel(f"sm90_m_grouped_fp8_fp4_gemm{parts.form}", (*parts.template, ("Groups", problem.kind))),
        grid=(problem.grid(tile), 1, 1),
        block=(parts.threads, 1, 1),
        cluster=(tile.cluster, 1, 1),
        shared_memory=parts.shared_memory + problem.table_bytes,
        pdl=pdl,
        arguments=(
            weights_map(b, groups * n, k, parts.weight_rows),
            tokens_of(tile, a, m, k, scales),
            *(store_map(d, m, n, out_bytes, store) for store in parts.stores),
            Pointer(a_scale),
            Pointer(b_scale),
            Pointer(layout),
            Pointer(d),
            *(Scalar(value, "uint32") for value in (m, n, k)),
            row_scales(k, scales),
            Scalar(groups, "uint32"),
        ),
    )
