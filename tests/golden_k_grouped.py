"""Golden launches of the k-grouped GEMMs: what `tests/golden.py` is to the FP8 GEMM, which writes all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import sm90_k_grouped
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.heuristics.k_grouped_config import table_bytes
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops import k_groups
from jax_deepgemm.ops.k_grouped_plan import bf16_plan, fp8_plan
from jax_deepgemm.target import H100, Target
from tests import golden
from tests.cases import K_GROUPED, K_GROUPED_ODD, KGrouped
from tests.golden import Aval

FILE = pathlib.Path(__file__).parent / "golden" / "k_grouped.json"
CASES = (*K_GROUPED, *K_GROUPED_ODD)


def extent(case: KGrouped) -> int:
    """Of K, as the kernel has it."""
    return k_groups.padded_extent(case.k, case.groups) if case.kind == "fp8" else case.k


def launch(
    case: KGrouped, *, has_c: bool = False, target: Target = H100, config: Config | None = None
) -> Launch | None:
    """The plan of the GEMM of a case."""
    m, n, k = case.m, case.n, extent(case)
    d, ks = Aval((case.groups, m, n), np.dtype(case.out_dtype)), Aval((case.groups,), np.dtype("int32"))
    if case.kind == "bf16":
        operands = [Aval(shape, np.dtype("uint16")) for shape in ((k, m), (k, n))]
        plan: Any = bf16_plan
    else:
        shapes = ((m, k), (m, k // 128), (n, k), (n, k // 128))
        operands = [Aval(s, np.dtype(d)) for s, d in zip(shapes, ("uint8", "float32") * 2, strict=True)]
        plan = fp8_plan
    return plan([*operands, ks] + [d] * has_c, [d], {}, target, config or Config())


def ranked(case: KGrouped) -> tuple[GemmConfig, ...]:
    choose: Any = sm90_k_grouped.bf16_gemm if case.kind == "bf16" else sm90_k_grouped.fp8_gemm
    smem_bytes = H100.smem_bytes - table_bytes(case.groups)
    itemsize = np.dtype(case.out_dtype).itemsize
    return choose(case.groups, case.m, case.n, extent(case), itemsize, H100.num_sms, smem_bytes)


def kernels() -> list[Kernel]:
    """Every kernel that the heuristics choose for the cases, of both result dtypes, with and without c."""
    found: dict[Kernel, None] = {}
    for case, dtype, has_c in itertools.product(CASES, ("bfloat16", "float32"), (False, True)):
        planned = launch(dataclasses.replace(case, out_dtype=dtype), has_c=has_c)
        assert planned is not None
        found[planned.kernel] = None
    return list(found)


def text() -> str:
    """The file's content: a case a line."""
    lines = (f"  {json.dumps(str(case))}: {json.dumps(golden.said(ranked(case)[0], launch(case)))}" for case in CASES)
    return "{\n" + ",\n".join(lines) + "\n}\n"
