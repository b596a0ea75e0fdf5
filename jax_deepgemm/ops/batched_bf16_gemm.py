"""A batch of BF16 GEMMs as one launch."""

from __future__ import annotations

import jax
import numpy as np

from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.k_grouped_config import KGroupedBf16Config
from jax_deepgemm.op import Avals, Layouts, Params
from jax_deepgemm.ops import k_grouped_plan as by_k
from jax_deepgemm.ops import m_grouped_bf16_gemm_plan as by_m
from jax_deepgemm.ops.batched_gemm import Grouped, batched, sizes


def _grouped(avals: Avals, params: Params) -> Grouped | None:
    """Groups of A's rows, or of K where it is contiguous in neither operand."""
    a, b, *c = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals)
    layout, said = params["layout"], {"config": params["config"]}
    if layout == "tn":
        ks = sizes(*a.shape[:2])
        return Grouped(by_k.bf16_plan, by_k.bf16_ranked, ks, (_flat(a), _flat(b), ks, *c), said)
    if c:
        return None
    if layout == "tt":
        a = jax.ShapeDtypeStruct((a.shape[0], a.shape[2], a.shape[1]), a.dtype)
    size, rows, _ = a.shape
    said["expected_m"] = rows
    if layout == "nn":
        ends = (np.arange(1, size + 1) * rows).astype(np.int32)
        said |= {"layout": "nn", "use_psum_layout": True}
        return Grouped(by_m.plan, by_m.ranked, ends, (_flat(a), b, ends), said)
    masked_m = sizes(size, rows)
    return Grouped(by_m.plan, by_m.ranked, masked_m, (a, b, masked_m), said)


def _flat(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The matrices of a stack, one below the other."""
    return jax.ShapeDtypeStruct((x.shape[0] * x.shape[1], x.shape[2]), x.dtype)


def _operand_layouts(avals: Avals, params: Params) -> Layouts:
    """No grouped GEMM takes an A with contiguous M beside a B with contiguous K: there A is turned."""
    return [(1, 2, 0) if params["layout"] == "tt" else None, None, None][: len(avals)]


BATCHED = batched(_grouped, 2, configs=(Bf16GemmConfig, KGroupedBf16Config), operand_layouts=_operand_layouts)
