"""fp8_gemm_nt_skip_head_mid against float64, by every kind of kernel. Results are written over NaN."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from jax_deepgemm import fp8_gemm_nt_skip_head_mid, set_num_sms
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.launch import MAX_SHARED_MEMORY
from jax_deepgemm.ops.head_splits import HeadSplits
from tests.gpu.configurations import ALL, name
from tests.gpu.native import native
from tests.gpu.problems import all_same
from tests.gpu.skip_head_mid import SPLITS, both, check, problem, run_and_check
from tests.helpers import assert_close

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("m", [1, 77, 1000])
@pytest.mark.parametrize("splits", SPLITS)
def test_chosen_configurations(splits, m):
    run_and_check(splits, m=m)


def fitting(config: GemmConfig) -> tuple[int, int, int] | None:
    """Splits that the configuration can store, with heads that tiles cut."""
    return next((s for s in SPLITS if all(HeadSplits(*s).fits(config, b, MAX_SHARED_MEMORY) for b in (2, 4))), None)


@pytest.mark.parametrize("config", [c for c in ALL if fitting(c)], ids=name)
def test_every_kind_of_kernel(config):
    splits = fitting(config)
    assert splits is not None
    run_and_check(splits, config)
    with set_num_sms(3):
        run_and_check(splits, config)


def test_the_sizes_of_deepseek():
    splits = (128, 64, 128)
    a, b, d, with_d, with_zeros = problem(splits, 128, 32, 512)
    run = native(functools.partial(both, splits=splits), a, b, d, calls=4)
    results = run.many(10, a, b, d)
    check(results[0][0], None, with_zeros, splits)
    check(results[0][1], d, with_d, splits)
    assert all(all_same(same) for same in zip(*results, strict=True))


def test_donated_d_is_written_in_place():
    splits = (128, 64, 128)
    a, b, d, with_d, _ = problem(splits)
    d = jnp.copy(d)
    where = d.unsafe_buffer_pointer()
    jitted = jax.jit(lambda a, b, d: fp8_gemm_nt_skip_head_mid(a, b, splits, d=d), donate_argnums=2)
    got = jitted(a, b, d)
    assert got.unsafe_buffer_pointer() == where and d.is_deleted()
    assert_close(got, with_d)
