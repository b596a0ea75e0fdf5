"""Launches of the BF16 GEMM: golden file, properties of every choice, and that each kernel chosen compiles well."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import sm90_bf16
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.launch import Kernel, Launch, Pointer, TensorMap
from jax_deepgemm.ops import bf16_gemm_plan
from jax_deepgemm.ops.gemm_plan import MAX_EXTENT
from jax_deepgemm.target import H100, Target
from tests import golden_bf16 as golden
from tests.cases import BF16, LAYOUTS, Bf16Gemm
from tests.kernels import check_resources, compile_layouts

EXTREMES = (
    Bf16Gemm(1, 8, 8),
    Bf16Gemm(1, 4, 8, "float32"),
    Bf16Gemm(8, 8, 1, layout="tn"),
    Bf16Gemm(10**6, 8, 8),
    Bf16Gemm(8, 10**6, 128, layout="nn"),
    Bf16Gemm(8, 8, 10**6 + 1, layout="tn"),
    Bf16Gemm(10**6, 10**6, 16384, layout="tt"),
    Bf16Gemm(MAX_EXTENT, 8, 8),
    Bf16Gemm(1, MAX_EXTENT // 8 * 8, 8),
)


def random_cases(count: int) -> Iterator[Bf16Gemm]:
    """Sizes whose magnitudes are spread evenly."""
    draw = random.Random(0)
    for _ in range(count):
        m, n, k = (-(-int(2 ** draw.uniform(0, high)) // 8) * 8 for high in (17, 18, 15))
        yield Bf16Gemm(m, n, k, draw.choice(("bfloat16", "float32")), draw.choice(LAYOUTS))


def check(case: Bf16Gemm, launch: Launch, num_sms: int) -> None:
    """What holds for every launch; `Launch` itself has checked what the hardware takes of any kernel."""
    template = dict(launch.kernel.template)
    assert 0 < launch.shared_memory <= H100.smem_bytes, case
    assert template["kStages"] >= 2, case
    assert launch.block[0] == (template["kMathGroups"] + 1) * 128, case
    assert launch.grid[0] <= max(num_sms, launch.cluster[0]) and launch.grid[1:] == (1, 1), case
    assert launch.cluster[0] == template["kSplitK"] * template["kClusterRows"] * template["kClusterColumns"], case
    used = [a.buffer for a in launch.arguments if isinstance(a, (Pointer, TensorMap))]
    assert set(used) == set(range(3 + template["kHasC"])), case


def test_golden_launches() -> None:
    assert golden.FILE.read_text() == golden.text(), "if the change is meant: python -m tests.golden"


def test_golden_file_has_every_case() -> None:
    assert list(json.loads(golden.FILE.read_text())) == [str(case) for case in golden.CASES]


@pytest.mark.parametrize("num_sms", [1, 2, 7, 66, 131, 132])
def test_every_problem_has_a_launch(num_sms: int) -> None:
    cases = (*EXTREMES, *random_cases(40), *(BF16 if num_sms == 132 else ()))
    for i, case in enumerate(cases):
        launch = golden.launch(case, has_c=i % 2 > 0, config=Config(num_sms=num_sms))
        assert launch is not None, case
        check(case, launch, num_sms)


@pytest.mark.parametrize(
    "case",
    [
        Bf16Gemm(0, 64, 128),
        Bf16Gemm(16, 0, 128),
        Bf16Gemm(16, 64, 0),
        Bf16Gemm(2**31, 8, 16),
        # Rows that are no multiples of 16 bytes, as of a shard: of A, of B, of D.
        Bf16Gemm(16, 64, 12),
        Bf16Gemm(12, 64, 16, layout="tn"),
        Bf16Gemm(16, 12, 16, "float32", layout="nn"),
        Bf16Gemm(16, 12, 16),
    ],
    ids=str,
)
def test_problems_without_a_launch(case: Bf16Gemm) -> None:
    assert golden.launch(case) is None


def test_other_gpus_have_no_launch() -> None:
    assert golden.launch(BF16[0], target=Target("sm_100a", 148, H100.smem_bytes)) is None


def test_a_configuration_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must have room for two stages in 65536 bytes of shared memory, got 1"):
        bf16_gemm_plan.launch(Bf16GemmConfig(128, 128), 4096, 4096, 7168, 2, 132, 65536)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rows": 96}, "`rows` must be 64, 128, 192 or 256, got 96"),
        ({"columns": 272}, "`columns` must be a multiple of 16 up to 256, got 272"),
        ({"rows": 192, "columns": 208}, "up to 192, got 208"),
        ({"layout": "ab"}, "`layout` must be one of nt, nn, tn, tt, got 'ab'"),
        ({"rows_loaded": 12}, "`rows_loaded` must be a multiple of 8 up to `rows`"),
        ({"rows_loaded": 256}, "`rows_loaded` must be"),
        ({"rows_loaded": 8, "layout": "tn"}, "and K contiguous"),
        ({"rows_loaded": 8, "cluster_rows": 2}, "`rows_loaded` must be"),
        ({"rows_loaded": -8}, "`rows_loaded` must be"),
        ({"layout": "nn", "columns": 192, "cluster_rows": 3}, "must be 1, 2, 4 or 8"),
        ({"layout": "tn", "rows": 192, "cluster_columns": 6}, "must be 1, 2, 4 or 8"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bf16GemmConfig(**{"rows": 128, "columns": 128} | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config, m, n, loaded",
    [
        (Bf16GemmConfig(64, 64, rows_loaded=8), 8, 512, 8),
        (Bf16GemmConfig(64, 64, rows_loaded=8), 9, 512, 64),  # M of a batch, folded
        (Bf16GemmConfig(64, 64, rows_loaded=8), 512, 512, 64),
        (Bf16GemmConfig(64, 8, swap=True, rows_loaded=8), 8, 512, 64),
        (Bf16GemmConfig(64, 8, swap=True, rows_loaded=8), 512, 8, 8),
    ],
)
def test_rows_that_the_matrix_has_are_loaded(config: Bf16GemmConfig, m: int, n: int, loaded: int) -> None:
    launch = bf16_gemm_plan.launch(config, m, n, 256, 2, H100.num_sms, H100.smem_bytes)
    boxes = [x.box for x in launch.arguments if isinstance(x, TensorMap)]
    assert dict(launch.kernel.template)["kRowsLoaded"] == loaded
    assert boxes[0] == (64, loaded)


@pytest.mark.parametrize("sharing", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cluster_loads_whole_tiles(layout: str, sharing: int) -> None:
    """What the kernel waits for is what its boxes hold."""
    for name in ("cluster_rows", "cluster_columns"):
        config = Bf16GemmConfig(128, 128, layout=layout, **{name: sharing})  # type: ignore[arg-type]
        launch = bf16_gemm_plan.launch(config, 4096, 4096, 4096, 2, H100.num_sms, H100.smem_bytes)
        rows, columns, _ = (x.box for x in launch.arguments if isinstance(x, TensorMap))
        slabs = [2 if mn else 1 for mn in (config.mn_rows, config.mn_columns)]
        assert slabs[0] * config.cluster_columns * rows[0] * rows[1] == 128 * 64
        assert slabs[1] * config.cluster_rows * columns[0] * columns[1] == 128 * 64


# --- against the kernel's source -----------------------------------------------------------------------------------


POOLS = {1: 0, 2: 232 * 256 + 40 * 128, 3: 160 * 384 + 32 * 128}  # by math warpgroups


def test_kernels_use_no_local_memory_and_all_their_registers() -> None:
    check_resources(golden.kernels(), threads_and_pool)


def threads_and_pool(kernel: Kernel) -> tuple[int, int]:
    groups = int(dict(kernel.template)["kMathGroups"])
    return 128 * (groups + 1), POOLS[groups]


def layouts() -> dict[Kernel, int]:
    """Kernels of configurations of all kinds, and their shared memory as Python counts it."""
    found: dict[Kernel, int] = {}
    draw = random.Random(1)
    for case in (*EXTREMES[:6], *random_cases(40)):
        candidates = list(sm90_bf16.candidates(case.layout, case.m, case.n, case.k, H100.num_sms))
        for config in draw.sample(candidates, min(8, len(candidates))):
            out_bytes = draw.choice((2, 4))
            if config.stages(out_bytes, H100.smem_bytes) >= 2:
                sizes = case.m, -(-case.n // 8) * 8, -(-case.k // 8) * 8, out_bytes, H100.num_sms, H100.smem_bytes
                launch = bf16_gemm_plan.launch(config, *sizes, has_c=draw.random() < 0.5)
                found[launch.kernel] = launch.shared_memory
    return found


def test_shared_memory_is_what_the_kernel_lays_out() -> None:
    expected = layouts()
    assert len(expected) > 200
    compile_layouts(
        expected,
        lambda _, config: f"SharedLayout<{config}, PlainBf16<{config}>>::kBarriersEnd",
    )
