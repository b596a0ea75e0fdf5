"""The launch of the m-grouped BF16 GEMMs: `cuda/kernels/sm90_m_grouped_bf16_gemm.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jax_deepgemm.heuristics import sm90, sm90_m_grouped
from jax_deepgemm.heuristics.bf16_config import BLOCK_K, SLAB, Bf16GemmConfig
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.gemm_plan import store_map, template
from jax_deepgemm.ops.m_grouped_plan import Problem, problem_of

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, b, layout or masked_m), or None where no kernel takes them."""
    problem = _problem(avals, out_avals, params, target, config)
    if problem is None:
        return None
    chosen = params.get("config") or sm90_m_grouped.bf16_gemm(_order(params), *problem.heuristics)
    return launch(chosen, problem, pdl=config.pdl) if problem.fits(chosen) else None


def ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Sequence[Bf16GemmConfig]:
    """The configurations that `plan` may take, by the heuristics' price; none where no kernel takes the problem."""
    problem = _problem(avals, out_avals, params, target, config)
    if problem is None:
        return []
    return [c for c in sm90_m_grouped.ranked_bf16(_order(params), *problem.heuristics) if problem.fits(c)]


def _order(params: Mapping[str, Any]) -> str:
    return params.get("layout", "nt")


def _problem(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Problem | None:
    order = _order(params)
    problem = problem_of(avals[0], avals[1], out_avals[0], params, target, config, 8, k_last=order == "nt")
    return None if problem is None or (order == "nn" and problem.n % 8) else problem


def launch(tile: Bf16GemmConfig, problem: Problem, *, pdl: bool = False) -> Launch:
    """The launch of one configuration, whatever chose it. Raises ValueError where it does not fit."""
    m, n, k, groups, out_bytes, smem_bytes = (
        getattr(problem, name) for name in ("m", "n", "k", "groups", "out_bytes", "smem_bytes")
    )
    stages = tile.stages(out_bytes, smem_bytes)
    if stages < 2 or tile.multicast > 1:
        raise ValueError(
            f"{tile} must share no operand and have room for two stages in {smem_bytes} bytes of shared memory, "
            f"got {stages}"
        )
    store = tile.store(out_bytes, smem_bytes)
    store_warp = sm90.store_warp(
        tile, store, problem.rows, n, problem.num_sms, groups=groups, least_rows=sm90_m_grouped.HANDED_OVER_ROWS["bf16"]
    )
    arguments: tuple[tuple[str, int | bool | str], ...] = (
        *template(tile, stages, store, problem.rows <= tile.tile_m, out_bytes, False, store_warp),
        ("kMnRows", tile.mn_rows),
        ("kMnColumns", tile.mn_columns),
        ("kRowsLoaded", tile.rows),
        ("kEager", tile.eager),
        ("Groups", problem.kind),
    )
    a, b, layout, d = range(4)

    def weights(box: int) -> TensorMap:
        if tile.layout == "nn":
            size, strides = (n, k, groups), (2 * n, 2 * n * k)
            return TensorMap(b, "bfloat16", size, strides, (SLAB, BLOCK_K, 1), swizzle=128)
        return TensorMap(b, "bfloat16", (k, groups * n), (2 * k,), (BLOCK_K, box), swizzle=128)

    def tokens(box: int) -> TensorMap:
        return TensorMap(a, "bfloat16", (k, m), (2 * k,), (BLOCK_K, box), swizzle=128)

    rows, columns = (weights, tokens) if tile.swap else (tokens, weights)
    return Launch(
        kernel=Kernel("sm90_m_grouped_bf16_gemm", arguments),
        grid=(problem.grid(tile), 1, 1),
        block=(tile.math_groups * 128 + 128, 1, 1),
        cluster=(tile.cluster, 1, 1),
        shared_memory=tile.shared_memory(out_bytes, smem_bytes) + problem.table_bytes,
        pdl=pdl,
        arguments=(
            rows(tile.rows),
            columns(tile.columns),
            store_map(d, m, n, out_bytes, store),
            Pointer(layout),
            Pointer(d),
            *(Scalar(value, "uint32") for value in (m, n, k, groups)),
        ),
    )
