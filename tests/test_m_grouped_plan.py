"""Launches of the m-grouped GEMMs: golden file, what no kernel takes, and that each kernel chosen compiles well."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jax_deepgemm import GemmConfig, m_grouped_fp8_gemm_nt_contiguous, set_target
from jax_deepgemm.config import Config
from jax_deepgemm.launch import Kernel, Pointer, TensorMap
from jax_deepgemm.ops.m_grouped_plan import MOST_GROUPS
from jax_deepgemm.target import H100
from tests import golden_m_grouped as golden
from tests import m_grouped
from tests.cases import BF16_CONTIGUOUS, CONTIGUOUS, MASKED, MGrouped
from tests.kernels import check_resources

SMALL = MGrouped("m_grouped_fp8_gemm_nt_contiguous", 4, 64, 256, 512)


def test_golden_launches() -> None:
    assert golden.FILE.read_text() == golden.text(), "if the change is meant: python -m tests.golden"


@pytest.mark.parametrize("num_sms", [1, 7, 132])
@pytest.mark.parametrize("psum", [False, True])
def test_every_case_has_a_launch(num_sms: int, psum: bool) -> None:
    for case in golden.CASES:
        for dtype in ("bfloat16", "float32"):
            launch = golden.launch(case, psum=psum, out_dtype=dtype, config=Config(num_sms=num_sms))
            assert launch is not None, case
            assert launch.shared_memory <= H100.smem_bytes, case
            assert launch.grid[0] <= num_sms, case
            assert dict(launch.kernel.template)["kClusterRows"] == 1, case
            used = {a.buffer for a in launch.arguments if isinstance(a, (Pointer, TensorMap))}
            assert used == set(range(4 if "bf16" in case.op else 6)), case


def test_kinds_of_layouts() -> None:
    def groups(case: MGrouped, psum: bool) -> object:
        launch = golden.launch(case, psum=psum)
        assert launch is not None
        return dict(launch.kernel.template)["Groups"]

    assert groups(CONTIGUOUS[0], True) == "PsumGroups"
    assert groups(BF16_CONTIGUOUS[0], False) == "IndexGroups"
    assert groups(MASKED[0], False) == "MaskedGroups"


@pytest.mark.parametrize(
    "changed",
    [
        {"groups": MOST_GROUPS + 1},
        {"groups": 0},
        {"rows": 0},
        {"n": 0},
        {"k": 0},
        {"k": 24},
        {"n": 4},
        {"groups": 1000, "n": 2**22},
    ],
)
def test_no_kernel(changed: dict[str, int]) -> None:
    assert golden.launch(SMALL) is not None
    assert golden.launch(dataclasses.replace(SMALL, **changed)) is None


def test_more_tiles_than_a_kernel_counts() -> None:
    """Rows in any order may make each group span them all."""
    many = MGrouped("m_grouped_fp8_gemm_nt_contiguous", 1024, 2**17, 8192, 512)
    assert golden.launch(many, psum=True) is not None
    assert golden.launch(many, psum=False) is None


@pytest.mark.parametrize("shared", [{"cluster_rows": 2}, {"cluster_columns": 2, "swap": True}])
def test_clusters_that_share_weights_are_refused(shared: dict[str, Any]) -> None:
    a, b = m_grouped.operands(40, 128, 256, 2)
    layout = jnp.asarray([20, 40], jnp.int32)
    config = GemmConfig(64, 64, **shared)
    call = functools.partial(m_grouped_fp8_gemm_nt_contiguous, use_psum_layout=True, config=config)
    with set_target(H100), pytest.raises(ValueError, match="must not share B and have room for two stages"):
        jax.jit(call).trace(a, b, layout).lower(lowering_platforms=("cuda",))


def test_kernels_compile_without_spills() -> None:
    def threads_and_pool(kernel: Kernel) -> tuple[int, int]:
        groups = int(dict(kernel.template)["kMathGroups"])
        pool = {1: 0, 2: 128 * (40 + 2 * 232), 3: 128 * (32 + 3 * 160)}[groups]
        return groups * 128 + 128, pool

    check_resources(golden.kernels(), threads_and_pool)
