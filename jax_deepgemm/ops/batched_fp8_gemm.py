"""A batch of FP8 GEMMs as one launch."""

from __future__ import annotations

import jax

from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.op import Avals, Layouts, Params
from jax_deepgemm.ops import k_grouped_plan, m_grouped_fp8_gemm_plan
from jax_deepgemm.ops.batched_gemm import Grouped, batched, sizes
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE
from jax_deepgemm.ops.k_groups import BLOCK


def _grouped(avals: Avals, params: Params) -> Grouped | None:
    """Groups of A's rows; or of K, in whole blocks of it, where both operands are scaled by row."""
    a, a_scale, b, b_scale, *c = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals)
    size, rows, k = a.shape
    said = {"config": params["config"]}
    if params["recipe"] == RECIPE:
        if c:
            return None
        masked_m = sizes(size, rows)
        plan, ranked = m_grouped_fp8_gemm_plan.plan, m_grouped_fp8_gemm_plan.ranked
        return Grouped(plan, ranked, masked_m, (a, a_scale, b, b_scale, masked_m), said | {"expected_m": rows})
    if k % BLOCK:
        return None
    ks = sizes(size, k)
    plan, ranked = k_grouped_plan.fp8_plan, k_grouped_plan.fp8_ranked
    beside = map(_side_by_side, (a, a_scale, b, b_scale))
    return Grouped(plan, ranked, ks, (*beside, ks, *c), said)


def _side_by_side(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((x.shape[1], x.shape[0] * x.shape[2]), x.dtype)


def _operand_layouts(avals: Avals, params: Params) -> Layouts:
    """As the grouped GEMMs have them. Where groups are of K, the batch lies between the rows and K."""
    if params["recipe"] == RECIPE:
        return [None, (1, 0, 2), None, None, None][: len(avals)]
    data, scale = (2, 0, 1), (1, 2, 0)
    return [data, scale, data, scale, None][: len(avals)]


BATCHED = batched(_grouped, 4, configs=(GemmConfig, GemmConfig1d1d), operand_layouts=_operand_layouts)
