"""Golden launches with a scale for each row of both operands: what `tests/golden.py` is to the other recipe.

`python -m tests.golden` writes both.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from jax_deepgemm.heuristics import sm90_1d1d
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops.fp8_gemm_plan import ROW_RECIPE
from jax_deepgemm.target import H100
from tests import golden
from tests.cases import ODD, WGRAD, Gemm

FILE = pathlib.Path(__file__).parent / "golden" / "fp8_gemm_nt_1d1d.json"
CASES = tuple(dict.fromkeys((*WGRAD, *(dataclasses.replace(case, out_dtype="bfloat16") for case in WGRAD), *ODD)))


def launch(case: Gemm, **options: Any) -> Launch | None:
    return golden.launch(case, recipe=ROW_RECIPE, **options)


def chosen(case: Gemm) -> GemmConfig1d1d:
    itemsize = np.dtype(case.out_dtype).itemsize
    return sm90_1d1d.fp8_gemm(case.m, case.n, case.k, itemsize, H100.num_sms, H100.smem_bytes)


def kernels() -> list[Kernel]:
    """Every kernel that the heuristics choose: for the benchmark, of both result dtypes, with and without c; for odd
    sizes the plainest and the one with most to keep."""
    all_kinds = tuple(itertools.product(("bfloat16", "float32"), (False, True)))
    found: dict[Kernel, None] = {}
    for case in (*WGRAD, *ODD):
        for dtype, has_c in all_kinds if case in WGRAD else (all_kinds[0], all_kinds[-1]):
            planned = launch(dataclasses.replace(case, out_dtype=dtype), has_c=has_c)
            assert planned is not None
            found[planned.kernel] = None
    return list(found)


def text() -> str:
    """The file's content: a case a line."""
    lines = (f"  {json.dumps(str(case))}: {json.dumps(golden.said(chosen(case), launch(case)))}" for case in CASES)
    return "{\n" + ",\n".join(lines) + "\n}\n"
