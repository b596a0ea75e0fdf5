"""The FP8 GEMM of short K that keeps a panel of B: its configurations, launches, and that its kernels compile well."""

from __future__ import annotations

import itertools
import random

import pytest

from jax_deepgemm import ResidentConfig, fp8_gemm_nt
from jax_deepgemm.heuristics import sm90_resident
from jax_deepgemm.heuristics.gemm_config import GemmConfig, ceil_div
from jax_deepgemm.heuristics.resident_config import TILE_ROWS, grid_size
from jax_deepgemm.launch import Kernel, Launch
from jax_deepgemm.ops.fp8_resident_plan import launch
from jax_deepgemm.target import H100
from tests.helpers import operands
from tests.kernels import check_resources, compile_layouts

CONFIGS = ResidentConfig(256), ResidentConfig(128)


def planned(config: ResidentConfig, k: int, out_bytes: int, has_c: bool = False) -> Launch:
    return launch(config, 4096, 32768, k, out_bytes, H100.num_sms, H100.smem_bytes, has_c=has_c)


def launches() -> list[Launch]:
    """Of each configuration, by blocks of K, result and C."""
    kinds = itertools.product(CONFIGS, (100 // 16 * 16, 256, 384, 512), (2, 4), (False, True))
    return [planned(*kind) for kind in kinds if kind[0].stages(kind[2], H100.smem_bytes)]


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="`columns` must be 128 or 256, got 192"):
        ResidentConfig(192)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="must have room for its tiles in 65536 bytes"):
        launch(ResidentConfig(256), 4096, 4096, 512, 2, H100.num_sms, 65536)
    with pytest.raises(ValueError, match="is for K up to 512, got 528"):
        planned(ResidentConfig(256), 528, 2)
    a, b = operands(64, 256, 1024)
    with pytest.raises(ValueError, match="`config` must be a GemmConfig where K is more than 512, got Res"):
        fp8_gemm_nt(a, b, config=ResidentConfig(256))


def test_long_k_and_few_rows_have_other_candidates() -> None:
    for m, k, out_bytes in ((4096, 528, 2), (64, 512, 2), (4096, 512, 4)):
        ranked = sm90_resident.ranked(m, 32768, k, out_bytes, H100.num_sms, H100.smem_bytes)
        assert all(isinstance(c, GemmConfig) for c in ranked)


@pytest.mark.parametrize("m", [1024, 2048, 4096])
def test_where_it_was_measured_to_pay_it_is_chosen(m: int) -> None:
    assert sm90_resident.fp8_gemm(m, 32768, 512, 2, H100.num_sms, H100.smem_bytes) == ResidentConfig(256)


def test_shares_of_tiles() -> None:
    """No CTA is idle, none has much more than its share, and where it costs little a share ends with a panel."""
    draw = random.Random(0)
    for _ in range(300):
        m, n, num_sms = draw.randint(1, 9000), draw.randint(1, 40000), draw.randint(1, 132)
        rows = ceil_div(m, TILE_ROWS)
        tiles = rows * ceil_div(n, 256)
        grid = grid_size(ResidentConfig(256), m, n, num_sms)
        share, least = ceil_div(tiles, grid), ceil_div(tiles, num_sms)
        assert 1 <= grid <= num_sms and (grid - 1) * share < tiles <= grid * share
        assert least <= share <= least + max(1, least // 16)
    assert grid_size(ResidentConfig(256), 4096, 32768, 132) == 128  # 64 tiles, a panel each, instead of 63


# --- against the kernel's source -----------------------------------------------------------------------------------


def test_kernels_use_no_local_memory_and_all_their_registers() -> None:
    check_resources([x.kernel for x in launches()], threads_and_pool)


def threads_and_pool(kernel: Kernel) -> tuple[int, int]:
    groups = dict(kernel.template)["kMathGroups"]
    return (384, 232 * 256 + 40 * 128) if groups == 2 else (256, 0)


def test_shared_memory_is_what_the_kernel_lays_out() -> None:
    expected = {x.kernel: x.shared_memory for x in launches()}
    assert len(expected) == 32
    compile_layouts(expected, lambda _, config: f"ResidentLayout<{config}>::kEnd")
