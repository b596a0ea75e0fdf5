"""The launches of the k-grouped GEMMs: `cuda/kernels/sm90_k_grouped_{bf16_gemm,fp8_gemm_1d1d}.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_deepgemm.heuristics import bf16_config, sm90_k_grouped
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, ceil_div
from jax_deepgemm.heuristics.k_grouped_config import MOST_GROUPS, KGroupedBf16Config, table_bytes
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.gemm_plan import MAX_EXTENT, template

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

Problem = tuple[int, int, int, int, int, int, int]


def bf16_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, b, ks[, c]), or None where no kernel takes the problem."""
    problem = bf16_problem(avals, out_avals, target, config)
    if problem is None:
        return None
    chosen = params.get("config") or sm90_k_grouped.bf16_gemm(*problem)[0]
    return bf16_launch(chosen, *problem, has_c=len(avals) > 3, pdl=config.pdl)


def bf16_ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> list[KGroupedBf16Config]:
    """The configurations that the plan may take, by the heuristics' price; none where no kernel takes the problem."""
    problem = bf16_problem(avals, out_avals, target, config)
    return [] if problem is None else list(sm90_k_grouped.bf16_gemm(*problem))


def bf16_problem(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], target: Target, config: Config
) -> Problem | None:
    (k, m), n = avals[0].shape, avals[1].shape[1]
    if m % 8 or n % 8:
        return None  # a shard may be so: TMA takes rows of 16 bytes
    return problem_of(m, n, k, out_avals[0], target, config)


def problem_of(m: int, n: int, k: int, d: Shaped, target: Target, config: Config) -> Problem | None:
    """Groups, m, n, k, bytes of a result, processors and shared memory beside the groups' table; None if none fits."""
    groups, out_bytes = d.shape[0], np.dtype(d.dtype).itemsize
    if target.arch != "sm_90a" or 0 in (groups, m, n, k) or max(m, n, k) > MAX_EXTENT or groups > MOST_GROUPS:
        return None
    if groups * ceil_div(m, 64) * ceil_div(n, 16) > 2**31 or n * out_bytes % 16 or m * n * out_bytes >= 2**40:
        return None
    num_sms = min(target.num_sms, config.num_sms or target.num_sms)
    return groups, m, n, k, out_bytes, num_sms, target.smem_bytes - table_bytes(groups)


def bf16_launch(
    tile: KGroupedBf16Config,
    groups: int,
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
    stages, store = stages_of(tile, out_bytes, smem_bytes), tile.store(out_bytes, smem_bytes)
    arguments = (
        *template(tile, stages, store, False, out_bytes, has_c),
        ("kKGrouped", True),
        ("kMnRows", True),
        ("kMnColumns", True),
        ("kRowsLoaded", tile.rows),
        ("kEager", tile.eager),
    )
    a, b, ks, c = range(4)
    d = 4 if has_c else 3

    def operand(buffer: int, size: int) -> TensorMap:
        return TensorMap(
            buffer, "bfloat16", (size, k), (2 * size,), (bf16_config.SLAB, bf16_config.BLOCK_K), swizzle=128
        )

    return Launch(
        kernel=Kernel("sm90_k_grouped_bf16_gemm", arguments),
        grid=(grid_size(tile, groups, m, n, num_sms), 1, 1),
        block=(tile.math_groups * 128 + 128, 1, 1),
        shared_memory=tile.shared_memory(out_bytes, smem_bytes) + table_bytes(groups),
        pdl=pdl,
        arguments=(
            operand(a, m),
            operand(b, n),
            results_map(d, groups, m, n, out_bytes, (store.atom_bytes // out_bytes, 16), store.atom_bytes),
            Pointer(ks),
            Pointer(c if has_c else d),
            Pointer(d),
            *(Scalar(size, "uint32") for size in (groups, m, n, k)),
        ),
    )


def fp8_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, a_scale, b, b_scale, ks[, c]), or None where no kernel takes the problem."""
    problem = fp8_problem(avals, out_avals, target, config)
    if problem is None:
        return None
    chosen = params.get("config") or sm90_k_grouped.fp8_gemm(*problem)[0]
    return fp8_launch(chosen, *problem, has_c=len(avals) > 5, pdl=config.pdl)


def fp8_ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> list[GemmConfig1d1d]:
    """As `bf16_ranked`."""
    problem = fp8_problem(avals, out_avals, target, config)
    return [] if problem is None else list(sm90_k_grouped.fp8_gemm(*problem))


def fp8_problem(avals: Sequence[Shaped], out_avals: Sequence[Shaped], target: Target, config: Config) -> Problem | None:
    (m, k), n = avals[0].shape, avals[2].shape[0]
    return problem_of(m, n, k, out_avals[0], target, config)


def fp8_launch(
    tile: GemmConfig1d1d,
    groups: int,
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
    """As `bf16_launch`."""
    stages, store = stages_of(tile, out_bytes, smem_bytes), tile.store(out_bytes, smem_bytes)
    arguments = (
        *template(tile, stages, store, False, out_bytes, has_c),
        ("kKGrouped", True),
        ("kScaleN", 1),
        ("kAhead", tile.ahead),
        ("kRings", False),
    )
    a, a_scale, b, b_scale, ks, c = range(6)
    d = 6 if has_c else 5

    def operand(buffer: int, size: int, box: int) -> TensorMap:
        return TensorMap(buffer, "float8_e4m3fn", (k, size), (k,), (BLOCK_K, box), swizzle=128)

    d_map = results_map(d, groups, m, n, out_bytes, (store.atom_bytes // out_bytes, 16), store.atom_bytes)
    c_map = results_map(c, groups, m, n, out_bytes, (128 // out_bytes, tile.rows), 128) if has_c else d_map
    return Launch(
        kernel=Kernel("sm90_k_grouped_fp8_gemm_1d1d", arguments),
        grid=(grid_size(tile, groups, m, n, num_sms), 1, 1),
        block=(tile.math_groups * 128 + 128, 1, 1),
        shared_memory=tile.shared_memory(out_bytes, smem_bytes) + table_bytes(groups),
        pdl=pdl,
        arguments=(
            operand(a, m, tile.rows),
            operand(b, n, tile.columns),
            c_map,
            d_map,
            Pointer(a_scale),
            Pointer(b_scale),
            Pointer(ks),
            Pointer(c if has_c else d),
            Pointer(d),
            *(Scalar(size, "uint32") for size in (groups, m, n, k)),
        ),
    )


def stages_of(tile: GemmConfig, out_bytes: int, smem_bytes: int) -> int:
    stages = tile.stages(out_bytes, smem_bytes)
    if stages < 2:
        raise ValueError(f"{tile} must have room for two stages in {smem_bytes} bytes of shared memory, got {stages}")
    return stages


def results_map(
    buffer: int, groups: int, m: int, n: int, out_bytes: int, box: tuple[int, int], swizzle: int
) -> TensorMap:
    """Of [groups, m, n]: what is beyond the rows of one group is not the next."""
    dtype = "bfloat16" if out_bytes == 2 else "float32"
    strides = (n * out_bytes, m * n * out_bytes)
    return TensorMap(buffer, dtype, (n, m, groups), strides, (*box, 1), swizzle=swizzle)


def grid_size(tile: GemmConfig, groups: int, m: int, n: int, num_sms: int) -> int:
    """Blocks of the persistent grid: no more than there are tiles or processors for."""
    return min(groups * ceil_div(m, tile.rows) * ceil_div(n, tile.columns), num_sms)
