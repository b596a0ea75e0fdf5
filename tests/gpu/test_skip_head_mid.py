"""fp8_gemm_nt_skip_head_mid against float64, by every kind of kernel. Results are written over NaN."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_gemm_nt_skip_head_mid, set_num_sms
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.launch import MAX_SHARED_MEMORY
from jax_deepgemm.ops.head_splits import HeadSplits
from tests.gpu.configurations import ALL, name
from tests.gpu.native import native
from tests.gpu.problems import all_same, same_bits
from tests.helpers import assert_close, operands
from tests.skip_head_mid import spread, wanted

pytestmark = pytest.mark.gpu

BF16, F32 = jnp.bfloat16, jnp.float32
HEADS, M, K = 7, 157, 400
SPLITS = ((128, 64, 128), (64, 8, 32), (16, 16, 48), (8, 24, 40), (192, 64, 64))


@functools.cache
def problem(splits, m=M, heads=HEADS, k=K):
    """Operands, what is in the middle, and the result with that or with zeros there."""
    a, b = operands(m, heads * (splits[0] + splits[2]), k, seed=3)
    d = jax.random.normal(jax.random.key(0), (m, heads * sum(splits))).astype(BF16)
    return a, b, d, wanted(a, b, splits, d), wanted(a, b, splits)


def check(got, d, result, splits):
    assert_close(got, result)
    middle = spread(np.asarray(got), splits)[1]
    kept = np.zeros_like(middle) if d is None else spread(np.asarray(d.astype(got.dtype)), splits)[1]
    assert same_bits(middle, kept)


def both(a, b, d, splits, config=None):
    """The four of BF16 and FP32, zeros and what was there."""
    gemm = functools.partial(fp8_gemm_nt_skip_head_mid, a, b, splits, config=config)
    wide = functools.partial(gemm, out_dtype=F32)
    return gemm(), gemm(d=d), wide(), wide(d=d.astype(F32))


def run_and_check(splits, config=None, m=M, heads=HEADS, k=K):
    a, b, d, with_d, with_zeros = problem(splits, m, heads, k)
    run = native(functools.partial(both, splits=splits, config=config), a, b, d, calls=4)
    for i, got in enumerate(run(a, b, d)):
        check(got, d if i % 2 else None, with_d if i % 2 else with_zeros, splits)


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
