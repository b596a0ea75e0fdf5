"""The launch of `cuda/kernels/sm90_m_grouped_fp8_gemm_swiglu.cuh`, whose shared memory is counted here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, align
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.m_grouped_plan import Problem, problem_of

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

TILE = 128  # rows, and columns, of the result
_WALK = GemmConfig(TILE, TILE, group=16)  # with twice the columns of B under each, tiles of 16 rows are about square
_MOST_STAGES = 4


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, a_scale, b [G, 2 N, K], b_scale, ends), or None where no kernel takes them."""
    data = out_avals[0]
    wide = problem_of(avals[0], avals[2], data, {"use_psum_layout": True}, target, config, 16)
    if wide is None or data.shape[1] % TILE:
        return None
    problem = wide._replace(n=data.shape[1])
    stages = next((s for s in range(_MOST_STAGES, 1, -1) if shared_memory(s) <= problem.smem_bytes), 0)
    return _launch(problem, stages, params["smallest_amax"], config.pdl) if stages and problem.fits(_WALK) else None


def shared_memory(stages: int) -> int:
    """Beside the table of groups."""
    block = 3 * TILE * BLOCK_K + align(4 * (TILE + 2), 16)
    return align(stages * (block + 3 * 8) + 8 * 16 * (TILE + 16), 16)


def _launch(problem: Problem, stages: int, smallest: float, pdl: bool) -> Launch:
    m, n, k, groups = problem.m, problem.n, problem.k, problem.groups
    a, a_scale, b, b_scale, ends, data, scale = range(7)
    template: tuple[tuple[str, int | bool | str], ...] = (
        ("kRows", TILE),
        ("kColumns", TILE),
        ("kStages", stages),
        ("kGroup", _WALK.group),
        ("kSwap", False),
        ("kSplitK", 1),
        ("kClusterRows", 1),
        ("kClusterColumns", 1),
        ("Groups", problem.kind),
    )

    def operand(buffer: int, rows: int) -> TensorMap:
        return TensorMap(buffer, "float8_e4m3fn", (k, rows), (k,), (BLOCK_K, TILE), swizzle=128)

    return Launch(
        kernel=Kernel("sm90_m_grouped_fp8_gemm_swiglu", template),
        grid=(problem.grid(_WALK), 1, 1),
        block=(384, 1, 1),
        cluster=(1, 1, 1),
        shared_memory=shared_memory(stages) + problem.table_bytes,
        pdl=pdl,
        arguments=(
            operand(a, m),
            operand(b, groups * 2 * n),
            *map(Pointer, (a_scale, b_scale, ends, data, scale)),
            *(Scalar(value, "uint32") for value in (m, n, k, groups)),
            Scalar(smallest, "float32"),
        ),
    )
