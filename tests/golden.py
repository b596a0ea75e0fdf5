"""Golden launches: what the heuristics choose for an H100, as a file whose diff shows what a change of them does.

Regenerate with `python -m tests.golden`, in the root of the repository.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import sm90_resident
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.heuristics.resident_config import ResidentConfig
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE, plan
from jax_deepgemm.target import H100, Target
from tests.cases import DENSE, ODD, Gemm

FILE = pathlib.Path(__file__).parent / "golden" / "fp8_gemm_nt.json"
# Without those that are in both tables.
CASES = tuple(dict.fromkeys((*DENSE, *(dataclasses.replace(case, out_dtype="float32") for case in DENSE), *ODD)))


@dataclasses.dataclass(frozen=True)
class Aval:
    """A shape and a dtype, all that a plan asks of an operand."""

    shape: tuple[int, ...]
    dtype: Any


def launch(
    case: Gemm,
    *,
    has_c: bool = False,
    target: Target = H100,
    config: Config | None = None,
    recipe: tuple[tuple[int, int], tuple[int, int]] = RECIPE,
    tile: GemmConfig | None = None,
) -> Launch | None:
    """The plan of `fp8_gemm_nt` for a case; tile: instead of the heuristics' choice."""
    m, n, k = case.m, case.n, case.k
    blocks = -(-k // 128)
    d = Aval((m, n), np.dtype(case.out_dtype))
    shapes = ((m, k), (m, blocks), (n, k), (-(-n // recipe[1][0]), blocks))
    operands = [Aval(shape, np.dtype(dtype)) for shape, dtype in zip(shapes, ("uint8", "float32") * 2, strict=True)]
    return plan(operands + [d] * has_c, [d], {"recipe": recipe, "config": tile}, target, config or Config())


def chosen(case: Gemm) -> GemmConfig | ResidentConfig:
    itemsize = np.dtype(case.out_dtype).itemsize
    return sm90_resident.fp8_gemm(case.m, case.n, case.k, itemsize, H100.num_sms, H100.smem_bytes)


def said(config: Any, planned: Launch | None) -> dict[str, Any]:
    """The fields of the configuration that are not their defaults, and what the launch makes of it."""
    assert planned is not None
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changed = {f.name: fields[f.name] for f in dataclasses.fields(config) if fields[f.name] != f.default}
    stages = dict(planned.kernel.template)["kStages"]
    return changed | {"stages": stages, "grid": planned.grid[0], "shared_memory": planned.shared_memory}


def kernels() -> list[Kernel]:
    """Every kernel that the heuristics choose: for the benchmark, of both result dtypes, with and without c; for odd
    sizes the plainest and the one with most to keep."""
    all_kinds = tuple(itertools.product(("bfloat16", "float32"), (False, True)))
    found: dict[Kernel, None] = {}
    for case in (*DENSE, *ODD):
        for dtype, has_c in all_kinds if case in DENSE else (all_kinds[0], all_kinds[-1]):
            planned = launch(dataclasses.replace(case, out_dtype=dtype), has_c=has_c)
            assert planned is not None
            found[planned.kernel] = None
    return list(found)


def text() -> str:
    """The file's content: a case a line."""
    lines = (f"  {json.dumps(str(case))}: {json.dumps(said(chosen(case), launch(case)))}" for case in CASES)
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    from tests import golden_1d1d, golden_bf16, golden_fp4, golden_k_grouped, golden_m_grouped, golden_m_grouped_fp4

    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
    for module in (golden_1d1d, golden_bf16, golden_fp4, golden_k_grouped, golden_m_grouped, golden_m_grouped_fp4):
        module.FILE.write_text(module.text())
    print(f"wrote {FILE.parent}")
