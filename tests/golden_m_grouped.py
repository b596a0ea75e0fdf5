"""Golden launches of the m-grouped GEMMs: what `tests/golden.py` is to the FP8 GEMM, and written with it."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import numpy as np

from jax_deepgemm.config import Config
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops import m_grouped_bf16_gemm_plan, m_grouped_fp8_gemm_plan
from jax_deepgemm.target import H100, Target
from tests.cases import BF16_CONTIGUOUS, BF16_MASKED, CONTIGUOUS, MASKED, MGrouped
from tests.golden import Aval

FILE = pathlib.Path(__file__).parent / "golden" / "m_grouped.json"
ODD = tuple(
    MGrouped(f"m_grouped_{kind}_gemm_nt_{form}", groups, rows, n, k)
    for kind, form in itertools.product(("fp8", "bf16"), ("contiguous", "masked"))
    for groups, rows, n, k in ((1, 1, 8, 16), (3, 77, 136, 272), (1000, 3, 576, 512), (7, 300, 2112, 144))
)
CASES = (*CONTIGUOUS, *MASKED, *BF16_CONTIGUOUS, *BF16_MASKED, *ODD)


def launch(
    case: MGrouped,
    *,
    psum: bool = True,
    out_dtype: str = "bfloat16",
    layout: str = "nt",
    target: Target = H100,
    config: Config | None = None,
) -> Launch | None:
    """The plan of a case. `psum` is for contiguous ones, `layout` for those in BF16."""
    groups, n, k = case.groups, case.n, case.k
    lead = (groups, case.most) if case.masked else (groups * case.rows,)
    weights = (groups, n, k) if layout == "nt" else (groups, k, n)
    blocks = -(-k // 128)
    ends = Aval((groups,) if case.masked or psum else lead, np.dtype("int32"))
    out = Aval((*lead, n), np.dtype(out_dtype))
    params: dict[str, Any] = {"expected_m": case.rows} if case.masked else {"use_psum_layout": psum}
    if "bf16" in case.op:
        operands = [Aval((*lead, k), np.dtype("uint16")), Aval(weights, np.dtype("uint16")), ends]
        planned = m_grouped_bf16_gemm_plan.plan
        params["layout"] = layout
    else:
        shapes = (*lead, k), (*lead, blocks), weights, (groups, -(-n // 128), blocks)
        dtypes = ("uint8", "float32") * 2
        operands = [Aval(shape, np.dtype(dtype)) for shape, dtype in zip(shapes, dtypes, strict=True)] + [ends]
        planned = m_grouped_fp8_gemm_plan.plan
    return planned(operands, [out], params, target, config or Config())


def row(case: MGrouped) -> dict[str, Any]:
    planned = launch(case)
    assert planned is not None
    told = ("kRows", "kColumns", "kSwap", "kSplitK", "kStageBlocks", "kAhead", "kRings", "kStages")
    template = dict(planned.kernel.template)
    said = {name[1:].lower(): template[name] for name in told if template.get(name, 0) not in (0, False)}
    return said | {"grid": planned.grid[0], "shared_memory": planned.shared_memory}


def kernels() -> list[Kernel]:
    """Every kernel that the heuristics choose for the cases, of both result dtypes and all kinds of layouts."""
    found: dict[Kernel, None] = {}
    for case, dtype, psum, layout in itertools.product(CASES, ("bfloat16", "float32"), (False, True), ("nt", "nn")):
        if layout == "nn" and ("fp8" in case.op or case.masked):
            continue
        if case in ODD and psum != (dtype == "float32"):  # each once
            continue
        planned = launch(case, out_dtype=dtype, psum=psum, layout=layout)
        assert planned is not None
        found[planned.kernel] = None
    return list(found)


def text() -> str:
    """The file's content: a case a line."""
    lines = (f"  {json.dumps(str(case))}: {json.dumps(row(case))}" for case in CASES)
    return "{\n" + ",\n".join(lines) + "\n}\n"
