"""What tests/gpu relies on: that its check finds small faults, and that its configurations make launches."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.fp4_config import FLOAT_BY_32, FLOAT_BY_128, UE8M0_BY_32
from jax_deepgemm.heuristics.resident_config import ResidentConfig
from jax_deepgemm.ops import fp8_resident_plan
from jax_deepgemm.ops.fp8_fp4_gemm_plan import parts_of
from jax_deepgemm.ops.fp8_gemm_plan import launch
from jax_deepgemm.ops.m_grouped_plan import table_bytes
from jax_deepgemm.target import H100
from tests.gpu import configurations, sanitized
from tests.gpu.configurations import K, M, N
from tests.gpu.problems import problem
from tests.gpu.small import SHORT_K

FAULTS = {
    "zeroed tile": lambda d: d.at[64:128, 8:16].set(0),
    "shifted tile": lambda d: d.at[64:128, 8:16].set(d[64:128, 9:17]),
    "NaN": lambda d: d.at[299, 615].set(jnp.nan),
    "unscaled row": lambda d: d.at[5].multiply(2),
    "wrong element": lambda d: d.at[7, 7].add(d[7, 7] + 30),
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_faults_are_found(dtype):
    p = problem(M, N, K)
    right = jnp.asarray(p.product, dtype)
    p.check(right)
    for fault in FAULTS.values():
        with pytest.raises(AssertionError):
            p.check(fault(right))


@pytest.mark.parametrize("out_bytes", [2, 4])
def test_configurations_make_launches(out_bytes):
    for config in configurations.ALL:
        assert config.stages(out_bytes, H100.smem_bytes) >= 2, config
        launch(config, M, N, K, out_bytes, H100.num_sms, H100.smem_bytes)
    for config, num_sms, _ in (*sanitized.CASES, *sanitized.STORE_WARP_CASES):
        if isinstance(config, ResidentConfig):
            fp8_resident_plan.launch(config, M, N, SHORT_K, out_bytes, num_sms, sanitized.TARGET.smem_bytes)
            continue
        assert config.stages(out_bytes, sanitized.TARGET.smem_bytes) >= 2, config
        if not isinstance(config, Bf16GemmConfig):
            launch(config, M, N, K, out_bytes, num_sms, sanitized.TARGET.smem_bytes)


@pytest.mark.parametrize("scales", [UE8M0_BY_32, FLOAT_BY_32, FLOAT_BY_128], ids=lambda scales: scales.name)
def test_sanitized_tiles_with_fp4_weights_fit(scales):
    small = (*sanitized.FP4_CASES, *sanitized.M_GROUPED_FP4_CASES), sanitized.TARGET
    large = (*sanitized.LARGE_FP4_CASES, *sanitized.LARGE_M_GROUPED_FP4_CASES), sanitized.FP4_TARGET
    for cases, target in (small, large) if scales == UE8M0_BY_32 else (small,):
        for config, _ in cases:
            parts_of(config, 77, scales, 2, target.smem_bytes - table_bytes(len(sanitized.ENDS)))


def test_configurations_are_told_apart():
    assert len({configurations.name(c) for c in configurations.ALL}) == len(configurations.ALL)
    assert {1, 2, 4} == {c.stage_blocks for c in configurations.ALL}
    assert np.ptp([c.split_k for c in configurations.FEW]) == 7
