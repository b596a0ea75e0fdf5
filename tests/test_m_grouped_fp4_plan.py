"""Launches of the m-grouped GEMM with FP4 weights: golden file, what no kernel takes, and that each kernel chosen
compiles well."""

from __future__ import annotations

import dataclasses

import pytest

from jax_deepgemm.config import Config
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.launch import Pointer, TensorMap
from jax_deepgemm.ops import m_grouped_fp8_fp4_gemm_plan
from jax_deepgemm.ops.m_grouped_plan import MOST_GROUPS
from jax_deepgemm.target import H100
from tests import golden_m_grouped_fp4 as golden
from tests.cases import FP4_CONTIGUOUS, FP4_MASKED, MGrouped
from tests.fp4 import KINDS
from tests.kernels import check_resources
from tests.test_fp4_plan import threads, threads_and_pool

SMALL = MGrouped("m_grouped_fp8_fp4_gemm_nt_contiguous", 4, 64, 256, 512)


def test_golden_launches() -> None:
    assert golden.FILE.read_text() == golden.text(), "if the change is meant: python -m tests.golden"


@pytest.mark.parametrize("num_sms", [1, 7, 132])
def test_every_case_has_a_launch(num_sms: int) -> None:
    kinds = list(KINDS.values())
    for i, case in enumerate((*golden.CASES, *FP4_CONTIGUOUS, *FP4_MASKED)):
        use_ue8m0, recipe = kinds[i % 3]
        options = {"psum": i % 2 > 0, "out_dtype": ("bfloat16", "float32")[i // 2 % 2]}
        launch = golden.launch(case, config=Config(num_sms=num_sms), use_ue8m0=use_ue8m0, recipe=recipe, **options)
        assert launch is not None and 0 < launch.shared_memory <= H100.smem_bytes, case
        assert launch.grid[0] <= max(num_sms, launch.cluster[0]) and launch.block[0] == threads(launch.kernel), case
        used = {a.buffer for a in launch.arguments if isinstance(a, (Pointer, TensorMap))}
        assert used == set(range(6)), case


def test_kinds_of_layouts_and_of_kernels() -> None:
    def of(case: MGrouped, psum: bool = True) -> tuple[str, object]:
        launch = golden.launch(case, psum=psum)
        assert launch is not None
        return launch.kernel.stem.removeprefix("sm90_m_grouped_fp8_fp4_gemm"), dict(launch.kernel.template)["Groups"]

    assert of(FP4_CONTIGUOUS[0]) == ("", "PsumGroups") and of(FP4_CONTIGUOUS[0], False) == ("", "IndexGroups")
    assert {of(case) for case in FP4_MASKED if case.rows == 20} == {("_swapped", "MaskedGroups")}


@pytest.mark.parametrize(
    "changed",
    [
        {"groups": MOST_GROUPS + 1},
        {"groups": 0},
        {"rows": 0},
        {"n": 0},
        {"k": 0},
        {"k": 48},
        {"n": 4},
        {"groups": 1000, "n": 2**22},
    ],
)
def test_no_kernel(changed: dict[str, int]) -> None:
    assert golden.launch(SMALL) is not None
    assert golden.launch(dataclasses.replace(SMALL, **changed)) is None


def test_more_tiles_than_a_kernel_counts() -> None:
    """Rows in any order may make each group span them all."""
    many = MGrouped("m_grouped_fp8_fp4_gemm_nt_contiguous", 1024, 2**17, 8192, 512)
    assert golden.launch(many, psum=True) is not None
    assert golden.launch(many, psum=False) is None


def test_a_given_configuration_is_taken() -> None:
    for tile in (Fp4GemmConfig(128, 64, stage_blocks=2), Fp4SwappedConfig(128, 24, 2, split_k=2)):
        launch = golden.launch(SMALL, tile=tile)
        assert launch is not None and dict(launch.kernel.template)["kRows"] == 128
        assert launch.cluster == (tile.split_k, 1, 1) and launch.grid[0] % tile.split_k == 0


def test_a_configuration_without_room_beside_the_table_is_refused() -> None:
    tile = Fp4GemmConfig(128, 128, decoded_stages=5)
    assert golden.launch(SMALL, tile=tile) is not None
    with pytest.raises(
        ValueError, match="must have room for two packed stages in 216384 bytes of shared memory, got 1"
    ):
        golden.launch(dataclasses.replace(SMALL, groups=1000), tile=tile)


def test_groups_share_no_decoding() -> None:
    tile = Fp4GemmConfig(256, 128, tile_scales=True, cluster_rows=2)
    with pytest.raises(ValueError, match="must not share weights, since neighbouring row tiles may be of two groups"):
        golden.launch(SMALL, tile=tile)


def test_every_ranked_configuration_has_a_launch() -> None:
    for case in (SMALL, *golden.ODD):
        ranked = m_grouped_fp8_fp4_gemm_plan.ranked(*golden.problem(case), H100, Config())
        assert all(golden.launch(case, tile=tile) is not None for tile in ranked), case
        assert golden.launch(case) == golden.launch(case, tile=ranked[0]), case


def test_kernels_compile_without_spills() -> None:
    check_resources(golden.kernels(), threads_and_pool)
