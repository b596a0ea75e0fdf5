"""Launches of the k-grouped GEMMs and of their cast: golden ones, what has none, and that each kernel compiles well."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import k_grouped_config, sm90_k_grouped
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.k_grouped_config import MOST_GROUPS, KGroupedBf16Config, table_bytes
from jax_deepgemm.launch import Kernel, Launch, Pointer, TensorMap
from jax_deepgemm.ops import k_grouped_casting, k_grouped_plan
from jax_deepgemm.target import H100, Target
from tests import golden_k_grouped as golden
from tests.cases import KGrouped
from tests.golden import Aval
from tests.kernels import check_resources, compile_layouts, threads_of_cast

KINDS = pytest.mark.parametrize("kind", ["fp8", "bf16"])


def test_golden_launches() -> None:
    assert golden.FILE.read_text() == golden.text(), "run `python -m tests.golden` and look at the diff"
    assert list(json.loads(golden.FILE.read_text())) == [str(case) for case in golden.CASES]


@KINDS
@pytest.mark.parametrize("num_sms", [1, 7, 132])
def test_every_problem_has_a_launch(kind: str, num_sms: int) -> None:
    draw = random.Random(0)
    for i in range(40):
        groups, m, n, k = (int(2 ** draw.uniform(0, high)) for high in (10, 14, 14, 17))
        case = KGrouped(kind, groups, -(-m // 8) * 8, -(-n // 8) * 8, k, draw.choice(("float32", "bfloat16")))
        launch = golden.launch(case, has_c=i % 2 > 0, config=Config(num_sms=num_sms))
        assert launch is not None, case
        template: dict[str, Any] = dict(launch.kernel.template)
        assert launch.shared_memory <= H100.smem_bytes and template["kStages"] >= 3, case
        assert launch.grid[0] <= num_sms and launch.cluster == (1, 1, 1), case
        used = {a.buffer for a in launch.arguments if isinstance(a, (Pointer, TensorMap))}
        assert used == set(range((6 if kind == "fp8" else 4) + template["kHasC"])), case


@KINDS
@pytest.mark.parametrize(
    "changed",
    [{"groups": 0}, {"m": 0}, {"n": 0}, {"k": 0}, {"groups": MOST_GROUPS + 1}, {"n": 12, "out_dtype": "bfloat16"}],
)
def test_problems_without_a_launch(kind: str, changed: dict[str, Any]) -> None:
    case = KGrouped(kind, 4, 64, 128, 256)
    assert golden.launch(case) is not None
    assert golden.launch(dataclasses.replace(case, **changed)) is None
    assert golden.launch(case, target=Target("sm_100a", 148, H100.smem_bytes)) is None


def test_results_of_many_groups_are_apart() -> None:
    """Rows of a box that are beyond one group's must not be the next one's."""
    launch = golden.launch(KGrouped("bf16", 3, 136, 264, 100), has_c=True)
    assert launch is not None
    d = launch.arguments[2]
    assert isinstance(d, TensorMap) and d.sizes == (264, 136, 3) and d.box[2] == 1


def test_configurations_that_share_something_are_refused() -> None:
    for fields in ({"split_k": 2}, {"cluster_rows": 2}, {"stage_blocks": 2}, {"swap": True}, {"layout": "nt"}):
        with pytest.raises(ValueError, match="must be"):
            KGroupedBf16Config(**{"rows": 128, "columns": 128} | fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clusters of one CTA"):
        k_grouped_config.check(GemmConfig1d1d(128, 128, cluster_rows=2))
    with pytest.raises(ValueError, match="must have room for two stages"):
        k_grouped_plan.bf16_launch(KGroupedBf16Config(128, 128), 4, 4096, 4096, 7168, 2, 132, 65536)


def cast(
    shape: tuple[int, int], groups: int, dtype: Any = ml_dtypes.bfloat16, use_ue8m0: bool = False
) -> Launch | None:
    avals: Any = [Aval(shape, np.dtype(dtype)), Aval((groups,), np.dtype("int32"))]
    params = {"use_ue8m0": use_ue8m0}
    results: Any = k_grouped_casting._abstract_eval(avals, **params)
    return k_grouped_casting._plan(avals, results, params, H100, Config())


def test_the_cast_has_a_cta_for_each_block_that_there_may_be() -> None:
    launch = cast((1000, 520), 3)
    assert launch is not None
    assert launch.grid == ((1000 + 3 * 127) // 128 * 5, 1, 1)
    assert cast((0, 520), 3) is None and cast((1000, 520), 0) is None


# --- against the kernels' source -----------------------------------------------------------------------------------


def test_kernels_use_no_local_memory_and_all_their_registers() -> None:
    def threads_and_pool(kernel: Kernel) -> tuple[int, int]:
        groups = int(dict(kernel.template)["kMathGroups"])
        return 128 * (groups + 1), {1: 0, 2: 232 * 256 + 40 * 128, 3: 160 * 384 + 32 * 128}[groups]

    check_resources(golden.kernels(), threads_and_pool)


def test_kernels_of_the_cast_use_no_local_memory() -> None:
    dtypes = (ml_dtypes.bfloat16, np.float16, np.float32)
    launches = [cast(s, 3, d, u) for s, d, u in itertools.product(((1000, 520), (77, 33)), dtypes, (False, True))]
    check_resources([x.kernel for x in launches if x is not None], threads_of_cast)


@KINDS
def test_shared_memory_is_what_the_kernel_lays_out(kind: str) -> None:
    """The table lies behind three barriers a stage and two more, whatever the kernel."""
    expected: dict[Kernel, int] = {}
    for groups, out_bytes, has_c in itertools.product((1, 5, 1024), (2, 4), (False, True)):
        smem_bytes = H100.smem_bytes - table_bytes(groups)
        problem = groups, 1000, 2112, 32768, out_bytes, H100.num_sms, smem_bytes
        choose: Any = sm90_k_grouped.bf16_gemm if kind == "bf16" else sm90_k_grouped.fp8_gemm
        make: Any = k_grouped_plan.bf16_launch if kind == "bf16" else k_grouped_plan.fp8_launch
        for config in choose(*problem)[:8]:
            launch = make(config, *problem, has_c=has_c)
            expected[launch.kernel] = launch.shared_memory - table_bytes(groups)
    operands = "PlainBf16" if kind == "bf16" else "Fp8ByRows"
    compile_layouts(
        expected,
        lambda _, config: f"SharedLayout<{config}, {operands}<{config}>>::kBarriersEnd",
    )
