"""Golden launches of the BF16 GEMM: what `tests/golden.py` is to the FP8 GEMM. `python -m tests.golden` writes both."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import sm90_bf16
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops.bf16_gemm_plan import plan
from jax_deepgemm.target import H100, Target
from tests.cases import BF16, BF16_ODD, Bf16Gemm
from tests.golden import Aval

FILE = pathlib.Path(__file__).parent / "golden" / "bf16_gemm.json"
CASES = tuple(dict.fromkeys((*BF16, *(dataclasses.replace(case, out_dtype="float32") for case in BF16), *BF16_ODD)))


def launch(
    case: Bf16Gemm, *, has_c: bool = False, target: Target = H100, config: Config | None = None
) -> Launch | None:
    """The plan of the GEMM of a case."""
    m, n, k = case.m, case.n, case.k
    a, b = (m, k) if case.layout[0] == "n" else (k, m), (n, k) if case.layout[1] == "t" else (k, n)
    d = Aval((m, n), np.dtype(case.out_dtype))
    operands = [Aval(shape, np.dtype("uint16")) for shape in (a, b)]
    return plan(operands + [d] * has_c, [d], {"layout": case.layout}, target, config or Config())


def chosen(case: Bf16Gemm) -> Bf16GemmConfig:
    itemsize = np.dtype(case.out_dtype).itemsize
    return sm90_bf16.bf16_gemm(case.layout, case.m, case.n, case.k, itemsize, H100.num_sms, H100.smem_bytes)


def row(case: Bf16Gemm) -> dict[str, Any]:
    """The fields of the configuration that are not their defaults, and what the launch makes of it."""
    config, planned = chosen(case), launch(case)
    assert planned is not None
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "layout"}
    said = {f.name: fields[f.name] for f in dataclasses.fields(config) if fields.get(f.name, f.default) != f.default}
    stages = dict(planned.kernel.template)["kStages"]
    return said | {"stages": stages, "grid": planned.grid[0], "shared_memory": planned.shared_memory}


def kernels() -> list[Kernel]:
    """Every kernel that the heuristics choose: for the benchmark in layout nt, of both result dtypes, with and without
    c; in the others, which differ in how they load, and for odd sizes, the plainest and the one with most to keep."""
    all_kinds = tuple(itertools.product(("bfloat16", "float32"), (False, True)))
    found: dict[Kernel, None] = {}
    for case in (*BF16, *BF16_ODD):
        every = case in BF16 and case.layout == "nt"
        for dtype, has_c in all_kinds if every else (all_kinds[0], all_kinds[-1]):
            planned = launch(dataclasses.replace(case, out_dtype=dtype), has_c=has_c)
            assert planned is not None
            found[planned.kernel] = None
    return list(found)


def text() -> str:
    """The file's content: a case a line."""
    lines = (f"  {json.dumps(str(case))}: {json.dumps(row(case))}" for case in CASES)
    return "{\n" + ",\n".join(lines) + "\n}\n"
