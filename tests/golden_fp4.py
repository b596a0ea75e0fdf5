"""Golden launches of the GEMM with FP4 weights; see tests/golden.py."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import sm90_fp4
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops.fp8_fp4_gemm_plan import TileConfig, plan, scale_kind, scale_row_bytes
from jax_deepgemm.target import H100, Target
from tests.cases import FP8_FP4, ODD_M, ODD_N, Gemm
from tests.fp4 import BY_32, KINDS
from tests.golden import Aval

FILE = pathlib.Path(__file__).parent / "golden" / "fp8_fp4_gemm_nt.json"
CASES = (*FP8_FP4, *(Gemm(m, n, k) for m in ODD_M for n in ODD_N for k in (32, 416, 7168)))
STAGES = {"stages": "kStages", "packed_stages": "kPackedStages"}


def launch(
    case: Gemm,
    *,
    has_c: bool = False,
    target: Target = H100,
    config: Config | None = None,
    use_ue8m0: bool = True,
    recipe: Any = BY_32,
    tile: TileConfig | None = None,
) -> Launch | None:
    """The plan of `fp8_fp4_gemm_nt` for a case."""
    m, n, k = case.m, case.n, case.k
    dtype = np.dtype("uint8" if use_ue8m0 else "float32")
    d = Aval((m, n), np.dtype(case.out_dtype))
    operands = [
        Aval((m, k), np.dtype("uint8")),
        Aval((m, -(-k // 128)), np.dtype("float32")),
        Aval((n, k // 2), np.dtype("uint8")),
        Aval((n, scale_row_bytes(k, scale_kind(dtype, recipe)) // dtype.itemsize), dtype),
    ]
    params = {"recipe": recipe, "config": tile}
    return plan(operands + [d] * has_c, [d], params, target, config or Config())


def row(case: Gemm) -> dict[str, Any]:
    """The fields of the configuration that are not their defaults, and what the launch makes of it."""
    kind = scale_kind(np.uint8, BY_32)
    itemsize = np.dtype(case.out_dtype).itemsize
    config = sm90_fp4.fp8_fp4_gemm(case.m, case.n, case.k, kind, itemsize, H100.num_sms, H100.smem_bytes)
    planned = launch(case)
    assert planned is not None
    said = {f.name: v for f in dataclasses.fields(config) if (v := getattr(config, f.name)) != f.default}
    template = dict(planned.kernel.template)
    said |= {name: template[key] for name, key in STAGES.items() if key in template}
    return {"kernel": planned.kernel.stem} | said | {"grid": planned.grid[0], "shared_memory": planned.shared_memory}


def kernels() -> list[Kernel]:
    """Every kernel that the heuristics choose for the cases, result dtypes and scales in turns, with and without c."""
    found: dict[Kernel, None] = {}
    for i, (case, (use_ue8m0, recipe)) in enumerate(itertools.product(CASES, KINDS.values())):
        case = dataclasses.replace(case, out_dtype=("bfloat16", "float32")[i // 2 % 2])
        planned = launch(case, has_c=i % 2 > 0, use_ue8m0=use_ue8m0, recipe=recipe)
        assert planned is not None
        found[planned.kernel] = None
    return list(found)


def text() -> str:
    """The file's content: a case a line."""
    lines = (f"  {json.dumps(str(case))}: {json.dumps(row(case))}" for case in CASES)
    return "{\n" + ",\n".join(lines) + "\n}\n"
