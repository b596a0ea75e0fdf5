"""Launches of the FP8 GEMM: golden files, properties of every choice, and that each kernel chosen compiles well."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from jax_deepgemm import nvrtc
from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import sm90, sm90_1d1d
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.launch import Kernel, Launch, Pointer, TensorMap
from jax_deepgemm.ops import fp8_gemm_plan
from jax_deepgemm.ops.gemm_plan import MAX_EXTENT
from jax_deepgemm.target import H100, Target
from tests import golden, golden_1d1d
from tests.cases import DENSE, EMPTY, Gemm
from tests.gpu import configurations
from tests.kernels import check_resources, compile_layouts

# M and N of one row of 16 bytes, K of one TMA box or less, a million rows, a matrix far larger than the L2 cache.
EXTREMES = (
    Gemm(1, 8, 16),
    Gemm(1, 4, 16, "float32"),
    Gemm(10**6, 8, 16),
    Gemm(8, 10**6, 128),
    Gemm(3, 262144, 128),
    Gemm(1, 8, 10**6),
    Gemm(10**6, 10**6, 16384),
    Gemm(MAX_EXTENT, 8, 16),
    Gemm(1, MAX_EXTENT // 8 * 8, 16),
)


CLUSTER = ("kSplitK", "kClusterRows", "kClusterColumns")


def random_cases(count: int) -> Iterator[Gemm]:
    """Sizes whose magnitudes are spread evenly."""
    draw = random.Random(0)
    for _ in range(count):
        m, n, k = (int(2 ** draw.uniform(0, high)) for high in (17, 18, 15))
        dtype, rows = draw.choice((("bfloat16", 8), ("float32", 4)))
        yield Gemm(m, -(-n // rows) * rows, -(-k // 16) * 16, dtype)


def check(case: Gemm, launch: Launch, num_sms: int) -> None:
    """What holds for every launch; `Launch` itself has checked what the hardware takes of any kernel."""
    template = dict(launch.kernel.template)
    assert 0 < launch.shared_memory <= H100.smem_bytes, case
    assert template["kStages"] >= 2, case
    assert launch.block[0] == (template["kMathGroups"] + 1) * 128, case
    assert launch.grid[0] <= max(num_sms, launch.cluster[0]) and launch.grid[1:] == (1, 1), case
    assert launch.cluster[0] == math.prod(template.get(key, 1) for key in CLUSTER), case
    used = [a.buffer for a in launch.arguments if isinstance(a, (Pointer, TensorMap))]
    assert set(used) == set(range(5 + template["kHasC"])), case


RECIPES = pytest.mark.parametrize("recipe", [golden, golden_1d1d], ids=["blocks", "rows"])


@RECIPES
def test_golden_launches(recipe: Any) -> None:
    assert recipe.FILE.read_text() == recipe.text(), "if the change is meant: python -m tests.golden"


@RECIPES
def test_golden_file_has_every_case(recipe: Any) -> None:
    assert list(json.loads(recipe.FILE.read_text())) == [str(case) for case in recipe.CASES]


@RECIPES
@pytest.mark.parametrize("has_c", [False, True])
def test_launches_of_the_suite(has_c: bool, recipe: Any) -> None:
    for case in recipe.CASES:
        launch = recipe.launch(case, has_c=has_c)
        assert launch is not None
        check(case, launch, H100.num_sms)


@RECIPES
@pytest.mark.parametrize("num_sms", [1, 2, 7, 66, 131, 132])
def test_every_problem_has_a_launch(num_sms: int, recipe: Any) -> None:
    for case in (*EXTREMES, *random_cases(60)):
        launch = recipe.launch(case, config=Config(num_sms=num_sms))
        assert launch is not None, case
        check(case, launch, num_sms)


def excess(num_sms: range) -> list[tuple[Gemm, int]]:
    """Problems whose grid is larger than the SMs that it may take."""
    launches = ((c, n, golden.launch(c, config=Config(num_sms=n))) for n in num_sms for c in (*DENSE, *EXTREMES))
    return [(case, n) for case, n, launch in launches if launch is None or launch.grid[0] > n]


def test_num_sms_bounds_the_grid() -> None:
    assert not excess(range(8, 133, 12))


def test_num_sms_under_the_largest_cluster_bounds_the_grid() -> None:
    assert not excess(range(1, 8))


def test_a_small_gpu_bounds_the_grid() -> None:
    small = Target("sm_90a", 78, H100.smem_bytes)
    for config in (Config(), Config(num_sms=100)):
        launch = golden.launch(Gemm(4096, 4096, 7168), target=small, config=config)
        assert launch is not None and 70 <= launch.grid[0] <= 78


def test_pdl_is_the_settings() -> None:
    for pdl in (False, True):
        launch = golden.launch(DENSE[0], config=Config(pdl=pdl))
        assert launch is not None and launch.pdl is pdl


@pytest.mark.parametrize("case", [*EMPTY, Gemm(2**31, 8, 16), Gemm(8, 2**31, 16), Gemm(8, 8, 2**31)], ids=str)
def test_empty_and_endless_problems_have_no_launch(case: Gemm) -> None:
    assert golden.launch(case) is None


@pytest.mark.parametrize("case", [Gemm(16, 12, 128), Gemm(16, 10, 128, "float32"), Gemm(16, 64, 136)], ids=str)
def test_shards_whose_rows_are_no_multiples_of_16_bytes_have_no_launch(case: Gemm) -> None:
    assert golden.launch(case) is None


def test_a_configuration_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must have room for two stages in 65536 bytes of shared memory, got 1"):
        fp8_gemm_plan.launch(GemmConfig(128, 128), 4096, 4096, 7168, 2, 132, 65536)


def test_other_gpus_have_no_launch() -> None:
    assert golden.launch(DENSE[0], target=Target("sm_100a", 148, H100.smem_bytes)) is None


def test_each_recipe_has_its_kernel() -> None:
    for recipe, stem in ((golden, "sm90_fp8_gemm_1d2d"), (golden_1d1d, "sm90_fp8_gemm_1d1d")):
        launch = recipe.launch(DENSE[0])
        assert launch is not None and launch.kernel.stem == stem


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rows": 96}, "`rows` must be 64, 128, 192 or 256, got 96"),
        ({"ahead": 1}, "`ahead` must be 0 or 2 to 8"),
        ({"ahead": 9}, "`ahead` must be 0 or 2 to 8"),
        ({"ahead": 2, "rows": 192}, "`ahead` must be 0 with"),
        ({"ahead": 2, "swap": True}, "`ahead` must be 0 with"),
        ({"ahead": 2, "stage_blocks": 2, "columns": 64}, "`ahead` must be 0 with"),
        ({"ahead": 2, "columns": 160}, "more than there are registers"),
        ({"columns": 24}, "`columns` must be a multiple of 16 up to 192, got 24"),
        ({"columns": 208}, "`columns` must be"),
        ({"columns": 0}, "`columns` must be"),
        ({"rows": 256, "columns": 144}, "up to 128, got 144"),
        ({"columns": 12, "swap": True}, "a multiple of 8"),
        ({"split_k": 2, "cluster_rows": 2}, "either splits K or shares one operand"),
        ({"cluster_rows": 2, "cluster_columns": 2}, "shares one operand"),
        ({"split_k": 9}, "at most 8 CTAs, got 9"),
        ({"columns": 192, "stage_blocks": 4}, "more than there are registers"),
        ({"columns": 16, "cluster_rows": 4}, "parts of 8 rows"),
        ({"split_k": 0}, "`split_k` must be positive, got 0"),
        ({"cluster_rows": 0}, "`cluster_rows` must be positive"),
        ({"cluster_columns": -1}, "`cluster_columns` must be positive"),
        ({"group": 0}, "`group` must be positive"),
        ({"stage_blocks": 0}, "`stage_blocks` must be positive"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GemmConfig(**{"rows": 128, "columns": 128} | fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"swap": True}, "`swap` must be False"),
        ({"ahead": 2, "split_k": 2}, "`ahead` must be 0"),
        ({"rows": 256, "ahead": 2}, "`ahead` must be 0"),
        ({"columns": 144, "ahead": 2}, "more than there are registers"),
        ({"columns": 176, "ahead": 1}, "`columns` must be at most 160 where `ahead` is 1"),
        ({"rows": 192, "columns": 112, "ahead": 1}, "up to 96, got 112"),
    ],
)
def test_impossible_configurations_with_scales_by_rows_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GemmConfig1d1d(**{"rows": 128, "columns": 128} | fields)


# --- against the kernel's source -----------------------------------------------------------------------------------


def test_kernels_use_no_local_memory_and_all_their_registers() -> None:
    check_resources(golden.kernels() + golden_1d1d.kernels(), threads_and_pool)


def test_what_only_users_choose_compiles() -> None:
    """Each kind of configuration that the tests on a GPU run."""
    case = Gemm(configurations.M, configurations.N, configurations.K, "float32")
    launches = [golden.launch(case, has_c=True, tile=tile) for tile in configurations.ALL]
    launches += [golden_1d1d.launch(case, has_c=True, tile=tile) for tile in configurations.BY_ROWS]
    kernels = list({x.kernel: None for x in launches if x is not None})
    assert len(kernels) > 40
    check_resources(kernels, threads_and_pool)


def threads_and_pool(kernel: Kernel) -> tuple[int, int]:
    groups = dict(kernel.template)["kMathGroups"]
    if groups == 3 and kernel.stem == "sm90_fp8_gemm_1d1d":
        return 512, 152 * 384 + 40 * 128
    return (384, 232 * 256 + 40 * 128) if groups == 2 else (256, 0)


def layouts() -> dict[Kernel, int]:
    """Kernels of configurations of all kinds, and their shared memory as Python counts it."""
    found: dict[Kernel, int] = {}
    draw = random.Random(1)
    for case in (*EXTREMES[:5], *random_cases(40)):
        blocks, rows = (list(h.candidates(case.m, case.n, case.k, H100.num_sms)) for h in (sm90, sm90_1d1d))
        for config in (*draw.sample(blocks, min(8, len(blocks))), *draw.sample(rows, min(4, len(rows)))):
            out_bytes, has_c = draw.choice((2, 4)), draw.random() < 0.5
            if config.stages(out_bytes, H100.smem_bytes) >= 2:
                sizes = case.m, -(-case.n // 8) * 8, case.k, out_bytes, H100.num_sms, H100.smem_bytes
                launch = fp8_gemm_plan.launch(config, *sizes, has_c=has_c)
                found[launch.kernel] = launch.shared_memory
    return found


def end_of_layout(kernel: Kernel, config: str) -> str:
    operands = "Fp8ByRows" if kernel.stem == "sm90_fp8_gemm_1d1d" else "ScaledFp8"
    return f"SharedLayout<{config}, {operands}<{config}>>::kBarriersEnd"


def test_shared_memory_is_what_the_kernel_lays_out() -> None:
    expected = layouts()
    assert len(expected) > 200
    compile_layouts(expected, end_of_layout)
    # The assertion is made, and for each: one byte off is seen.
    wrong = dict(list(expected.items())[:3])
    last = list(wrong)[-1]
    with pytest.raises(nvrtc.NvrtcError, match=r"(?s)Config2.*1 error detected"):
        compile_layouts(wrong | {last: wrong[last] + 1}, end_of_layout)


@pytest.mark.parametrize(
    ("config", "m", "n", "blocks", "at_once"),
    [
        (GemmConfig(128, 128), 128, 10**6, 1000, True),  # by one row tile
        (GemmConfig(64, 64), 128, 4096, 56, True),  # by two, in one round of the grid
        (GemmConfig(64, 64), 128, 4224, 128, True),
        (GemmConfig(64, 64), 128, 4225, 56, False),  # in two
        (GemmConfig(64, 64), 128, 4096, 129, False),  # over too much of K
        (GemmConfig(64, 64, split_k=2), 128, 2048, 56, False),
        (GemmConfig(64, 64, cluster_columns=2), 128, 2048, 56, False),
        (GemmConfig(64, 128), 256, 4096, 112, True),
        (GemmConfig(64, 128), 257, 1024, 112, False),  # by five
        (GemmConfig(64, 128, swap=True), 256, 4096, 112, True),  # tokens are columns
    ],
)
def test_weights_that_are_read_at_once(config: GemmConfig, m: int, n: int, blocks: int, at_once: bool) -> None:
    assert sm90.read_at_once(config, m, n, blocks, H100.num_sms) == at_once


@pytest.mark.parametrize(("case", "once"), [(Gemm(128, 4096, 7168), True), (Gemm(1024, 576, 7168), False)], ids=str)
def test_kernels_are_told_of_it(case: Gemm, once: bool) -> None:
    launch = golden.launch(case)
    assert launch is not None
    assert dict(launch.kernel.template)["kBLeavesFirst"] == once
