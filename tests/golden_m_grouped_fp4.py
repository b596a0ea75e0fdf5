"""Golden launches of the m-grouped GEMM with FP4 weights; see tests/golden.py."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import numpy as np

from jax_deepgemm.config import Config
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops.fp8_fp4_gemm_plan import TileConfig, scale_kind, scale_row_bytes
from jax_deepgemm.ops.m_grouped_fp8_fp4_gemm_plan import plan
from jax_deepgemm.target import H100
from tests.cases import FP4_CONTIGUOUS, FP4_MASKED, MGrouped
from tests.fp4 import BY_32, KINDS
from tests.golden import Aval

FILE = pathlib.Path(__file__).parent / "golden" / "m_grouped_fp8_fp4.json"
ODD = tuple(
    MGrouped(f"m_grouped_fp8_fp4_gemm_nt_{form}", groups, rows, n, k)
    for form, groups, rows, n, k in (
        ("contiguous", 1, 1, 8, 32),
        ("masked", 3, 77, 136, 288),
        ("contiguous", 1000, 3, 576, 512),
        ("masked", 7, 300, 2112, 160),
    )
)
CASES = (
    *(case for case in FP4_CONTIGUOUS if case.drawn),
    *(case for case in FP4_MASKED if case.rows == 20 or case.k == 2048),
    *ODD,
)


def problem(
    case: MGrouped,
    *,
    psum: bool = True,
    out_dtype: str = "bfloat16",
    use_ue8m0: bool = True,
    recipe: Any = BY_32,
    tile: TileConfig | None = None,
) -> tuple[list[Aval], list[Aval], dict[str, Any]]:
    """Operands, results and parameters of a case. `psum` is for contiguous ones."""
    groups, n, k = case.groups, case.n, case.k
    lead = (groups, case.most) if case.masked else (groups * case.rows,)
    dtype = np.dtype("uint8" if use_ue8m0 else "float32")
    operands = [
        Aval((*lead, k), np.dtype("uint8")),
        Aval((*lead, -(-k // 128)), np.dtype("float32")),
        Aval((groups, n, k // 2), np.dtype("uint8")),
        Aval((groups, n, scale_row_bytes(k, scale_kind(dtype, recipe)) // dtype.itemsize), dtype),
        Aval((groups,) if case.masked or psum else lead, np.dtype("int32")),
    ]
    params: dict[str, Any] = {"expected_m": case.rows} if case.masked else {"use_psum_layout": psum}
    return operands, [Aval((*lead, n), np.dtype(out_dtype))], params | {"recipe": recipe, "config": tile}


def launch(case: MGrouped, *, config: Config | None = None, **options: Any) -> Launch | None:
    """The plan of a case."""
    return plan(*problem(case, **options), H100, config or Config())


def row(case: MGrouped) -> dict[str, Any]:
    planned = launch(case)
    assert planned is not None
    told = ("kRows", "kColumns", "kKGroups", "kScaleWarps", "kSplitK", "kStageBlocks", "kStages", "kPackedStages")
    template = dict(planned.kernel.template)
    said = {"kernel": planned.kernel.stem} | {name[1:].lower(): template[name] for name in told if name in template}
    return said | {"grid": planned.grid[0], "shared_memory": planned.shared_memory}


def kernels() -> list[Kernel]:
    """Every kernel that the heuristics choose for the cases; result dtypes, scales and kinds of layouts in turns."""
    found: dict[Kernel, None] = {}
    turns = itertools.product(("bfloat16", "float32"), (False, True), KINDS.values())
    for case, (dtype, psum, (use_ue8m0, recipe)) in zip(CASES, itertools.cycle(turns), strict=False):
        planned = launch(case, out_dtype=dtype, psum=psum, use_ue8m0=use_ue8m0, recipe=recipe)
        assert planned is not None
        found[planned.kernel] = None
    return list(found)


def text() -> str:
    """The file's content: a case a line."""
    lines = (f"  {json.dumps(str(case))}: {json.dumps(row(case))}" for case in CASES)
    return "{\n" + ",\n".join(lines) + "\n}\n"
