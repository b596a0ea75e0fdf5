"""Launches of the GEMM with FP4 weights: golden file, properties of every choice, kernels that compile well."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics import sm90_fp4
from jax_deepgemm.heuristics.fp4_config import FLOAT_BY_32, FLOAT_BY_128, UE8M0_BY_32, Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import align
from jax_deepgemm.launch import Kernel, Launch, Pointer, TensorMap
from jax_deepgemm.ops import fp8_fp4_gemm_plan
from jax_deepgemm.target import H100, Target
from tests import golden_fp4 as golden
from tests.cases import EMPTY, FP8_FP4, Gemm
from tests.fp4 import KINDS
from tests.kernels import check_resources, compile_layouts

SWAPPED = "sm90_fp8_fp4_gemm_swapped"

EXTREMES = (
    Gemm(1, 8, 32),
    Gemm(1, 4, 32, "float32"),
    Gemm(10**6, 8, 32),
    Gemm(8, 10**6, 128),
    Gemm(1, 8, 10**6),
    Gemm(10**6, 10**6, 16384),
    Gemm(2**31 - 512, 8, 32),
    Gemm(1, 2**31 - 512, 32),
)


def random_cases(count: int) -> Iterator[Gemm]:
    """Sizes whose magnitudes are spread evenly."""
    draw = random.Random(0)
    for _ in range(count):
        m, n, k = (int(2 ** draw.uniform(0, high)) for high in (17, 18, 15))
        yield Gemm(m, -(-n // 8) * 8, -(-k // 32) * 32, draw.choice(("bfloat16", "float32")))


def check(case: Gemm, launch: Launch, num_sms: int) -> None:
    """What holds for every launch; `Launch` itself has checked what the hardware takes of any kernel."""
    template = dict(launch.kernel.template)
    assert 0 < launch.shared_memory <= H100.smem_bytes, case
    if launch.kernel.stem == SWAPPED:
        assert template["kStages"] >= max(2, template["kKGroups"]), case
    else:
        assert template["kStages"] >= 2 and template["kPackedStages"] >= 2, case
    assert launch.block[0] == threads(launch.kernel), case
    assert launch.grid[0] <= max(num_sms, launch.cluster[0]) and launch.grid[1:] == (1, 1), case
    assert launch.cluster[0] == template["kSplitK"] * template["kClusterRows"], case
    assert launch.grid[0] % launch.cluster[0] == 0, case
    used = [a.buffer for a in launch.arguments if isinstance(a, (Pointer, TensorMap))]
    assert set(used) == set(range(5 + template["kHasC"])), case


def test_golden_launches() -> None:
    assert golden.FILE.read_text() == golden.text(), "if the change is meant: python -m tests.golden"


def test_golden_file_has_every_case() -> None:
    assert list(json.loads(golden.FILE.read_text())) == [str(case) for case in golden.CASES]


@pytest.mark.parametrize("num_sms", [1, 2, 7, 66, 131, 132])
def test_every_problem_has_a_launch(num_sms: int) -> None:
    kinds = list(KINDS.values())
    for i, case in enumerate((*EXTREMES, *random_cases(60), *FP8_FP4)):
        use_ue8m0, recipe = kinds[i % 3]
        config = Config(num_sms=num_sms)
        launch = golden.launch(case, has_c=i % 2 > 0, config=config, use_ue8m0=use_ue8m0, recipe=recipe)
        assert launch is not None, case
        check(case, launch, num_sms)


@pytest.mark.parametrize(
    "case",
    [
        *EMPTY,
        Gemm(8, 8, 16),
        Gemm(8, 8, 144),
        Gemm(16, 12, 128),  # a shard whose rows are no multiples of 16 bytes
        Gemm(2**31, 8, 32),
        Gemm(8, 2**31, 32),
    ],
    ids=str,
)
def test_problems_without_a_launch(case: Gemm) -> None:
    assert golden.launch(case) is None


def test_a_given_configuration_is_taken() -> None:
    for config in (Fp4GemmConfig(128, 64, stage_blocks=2), Fp4SwappedConfig(128, 24, 2)):
        launch = golden.launch(FP8_FP4[1], tile=config)
        assert launch is not None and dict(launch.kernel.template)["kRows"] == 128 and launch.cluster == (1, 1, 1)


def test_decoding_is_shared_by_clusters_where_scales_wait_for_the_tiles_end() -> None:
    tile = Fp4GemmConfig(256, 128, tile_scales=True, cluster_rows=2)
    for m, pairs in ((512, 9), (513, 18), (10_000, 66)):
        launch = golden.launch(Gemm(m, 1104, 416), tile=tile)
        assert launch is not None and (launch.grid[0], launch.cluster[0]) == (2 * pairs, 2), m
        other = golden.launch(Gemm(m, 1104, 416), tile=tile, use_ue8m0=False)
        assert other is not None and other.cluster[0] == 1, m


def test_other_gpus_have_no_launch() -> None:
    assert golden.launch(FP8_FP4[0], target=Target("sm_100a", 148, H100.smem_bytes)) is None


def test_a_configuration_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must have room for two packed stages in 65536 bytes of shared memory, got"):
        fp8_fp4_gemm_plan.launch(Fp4GemmConfig(128, 128), 4096, 4096, 7168, UE8M0_BY_32, 2, 132, 65536)
    with pytest.raises(ValueError, match="must have room for 4 stages in 65536 bytes of shared memory, got 0"):
        fp8_fp4_gemm_plan.launch(Fp4SwappedConfig(64, 48, 4), 48, 4096, 7168, UE8M0_BY_32, 2, 132, 65536)


LARGE = {"rows": 256, "columns": 128, "tile_scales": True}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"columns": 96}, "every feeding warp must have as many rows by 256 of K to decode at once"),
        ({"stage_blocks": 3}, "every feeding warp must have"),
        ({"swap": True}, "`swap` must be False: `Fp4SwappedConfig` is for few tokens"),
        ({"cluster_rows": 2}, "only two CTAs share decoding, by `cluster_rows` = 2, of tiles of 256 x 128"),
        ({"cluster_columns": 2} | LARGE, "only two CTAs share decoding, by `cluster_rows` = 2"),
        ({"cluster_rows": 4} | LARGE, "only two CTAs share decoding, by `cluster_rows` = 2"),
        ({"decoded_stages": 1}, "`decoded_stages` must be at least 2, got 1"),
        ({"feed_groups": 3}, "`feed_groups` must be 1 or 2, got 3"),
        ({"split_k": 2, "tile_scales": True}, "`tile_scales` must be False where a cluster splits K"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fp4GemmConfig(**{"rows": 64, "columns": 64} | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rows": 96}, "`rows` must be a multiple of 64, and 64 of them by `k_groups` at most 4"),
        ({"rows": 128, "k_groups": 3}, "`rows` must be a multiple of 64"),
        ({"k_groups": 0}, "`k_groups` must be positive, got 0"),
        ({"columns": 12}, "`columns` must be a multiple of 8 up to 128"),
        ({"columns": 72, "k_groups": 4}, "`columns` must be a multiple of 8 up to 64"),
        ({"columns": 56, "rows": 256}, "`columns` must be a multiple of 8 up to 48"),
        ({"scale_warps": 0}, "`scale_warps` must be positive, got 0"),
        ({"split_k": 9}, "`split_k` must be at most 8, got 9"),
    ],
)
def test_impossible_swapped_configurations_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fp4SwappedConfig(**{"rows": 64, "columns": 64} | fields)


# --- against the kernel's source -----------------------------------------------------------------------------------


def test_kernels_use_no_local_memory_and_all_their_registers() -> None:
    check_resources(golden.kernels(), threads_and_pool)


def threads(kernel: Kernel) -> int:
    template = dict(kernel.template)
    if kernel.stem.endswith("_swapped"):
        rows, groups, scale_warps = (
            int(template["kRows"]) // 64,
            int(template["kKGroups"]),
            int(template["kScaleWarps"]),
        )
        return rows * groups * 128 + 32 + rows * scale_warps * 32
    return 128 * (int(template["kMathGroups"]) + int(template["kFeedGroups"]))


def threads_and_pool(kernel: Kernel) -> tuple[int, int]:
    template = dict(kernel.template)
    if kernel.stem.endswith("_swapped"):
        return threads(kernel), 0
    math, feed = int(template["kMathGroups"]), int(template["kFeedGroups"])
    moves = (
        math == 2 and int(template["kColumns"]) // 2 * (int(template["kWaves"]) + int(template["kStageBlocks"])) > 64
    )
    pool = (216 * 256 + 72 * 128 if feed == 1 else 208 * 256 + 48 * 256) if moves else 0
    return threads(kernel), pool


def layouts() -> dict[Kernel, int]:
    """Kernels of configurations of all kinds, and their shared memory as Python counts it."""
    found: dict[Kernel, int] = {}
    draw = random.Random(1)
    for case in (*EXTREMES[:5], *random_cases(40)):
        scales = draw.choice((UE8M0_BY_32, FLOAT_BY_32, FLOAT_BY_128))
        candidates = list(sm90_fp4.candidates(case.m, case.n, case.k, scales, H100.num_sms))
        for config in draw.sample(candidates, min(8, len(candidates))):
            out_bytes = draw.choice((2, 4))
            sizes = case.m, -(-case.n // 8) * 8, case.k, scales, out_bytes, H100.num_sms, H100.smem_bytes
            try:
                launch = fp8_fp4_gemm_plan.launch(config, *sizes, has_c=draw.random() < 0.5)
            except ValueError:  # it has no room
                continue
            found[launch.kernel] = align(launch.shared_memory, 16)  # where a table of groups may begin
    return found


def test_shared_memory_is_what_the_kernel_lays_out() -> None:
    expected = layouts()
    assert len(expected) > 100
    compile_layouts(expected, end_of_layout)


def end_of_layout(kernel: Kernel, config: str) -> str:
    return f"Fp4{'Swapped' * (kernel.stem == SWAPPED)}Layout<{config}>::kEnd"
