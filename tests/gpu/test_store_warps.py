"""Tiles stored by a warp of its own, wherever it can, whether or not it would pay: the same bits as without."""

from __future__ import annotations

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm as jd
from jax_deepgemm import fp8_gemm_nt, set_num_sms
from jax_deepgemm.heuristics import sm90
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from tests import helpers, m_grouped
from tests.bf16 import GEMMS
from tests.gpu import bf16_problems, configurations, skip_head_mid, test_m_grouped
from tests.gpu.configurations import name
from tests.gpu.native import hlo, native
from tests.gpu.problems import all_same, problem, same_bits

pytestmark = pytest.mark.gpu

F32 = jnp.float32
FP8 = tuple(c for c in configurations.ALL if c.stores_by_tma)
BF16 = tuple(c for c in bf16_problems.CONFIGURATIONS if c.stores_by_tma)
M_GROUPED = tuple(c for c in test_m_grouped.CONFIGS if c.stores_by_tma)


@contextlib.contextmanager
def no_store_warps():
    with mock.patch.object(sm90, "store_warp", lambda *_, **__: False):
        yield


def by_many_and_few(gemm, a, b, c):
    def both():
        return gemm(a, b), gemm(a, b, c=c, out_dtype=F32)

    with set_num_sms(3):
        few = both()
    return *both(), *few


def both_ways(function, *operands, **options):
    """The results with store warps, and without."""
    with helpers.store_warps():
        apart = native(function, *operands, **options)
    with no_store_warps():
        together = native(function, *operands, **options)
    assert hlo(apart.compiled) != hlo(together.compiled)
    return apart(*operands), together(*operands)


@pytest.mark.parametrize("config", FP8, ids=name)
def test_fp8(config):
    p = problem(configurations.M, configurations.N, configurations.K)
    c = p.c(F32)
    results = both_ways(functools.partial(by_many_and_few, fp8_gemm_nt), p.a, p.b, c, calls=4, config=config)
    p.check(results[0][0])
    p.check(results[0][1], c)
    assert all(same_bits(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("config", BF16, ids=name)
def test_bf16(config):
    layout = "nt"
    p = bf16_problems.problem(layout, 296, 616, 1040)
    c = p.c(F32)
    results = both_ways(functools.partial(by_many_and_few, GEMMS[layout]), p.a, p.b, c, calls=4, config=config)
    p.check(results[0][0])
    p.check(results[0][1], c)
    assert all(same_bits(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, F32])
@pytest.mark.parametrize("psum", [False, True], ids=["index", "psum"])
@pytest.mark.parametrize("config", M_GROUPED, ids=str)
def test_m_grouped_sizes(config, psum, dtype):
    """Groups that end anywhere in a tile, rows of none behind them, and index layouts of groups in several pieces."""
    random = np.random.default_rng(0)
    sizes, rest = (5, 0, 77, 1, 129, 300, 2, 256), 30
    kind, order = test_m_grouped.kind_and_order(config)
    index = m_grouped.index_of(sizes, rest)
    if not psum:
        index[100:300] = random.integers(-2, 10, 200)
    a, b, rows, weights = test_m_grouped.problem(kind, len(index), len(sizes), 584, 400)
    layout = jnp.asarray(m_grouped.psum_of(sizes) if psum else index, jnp.int32)
    function = functools.partial(
        test_m_grouped.contiguous, kind, order=order, use_psum_layout=psum, config=config, out_dtype=dtype
    )
    wanted = m_grouped.oracle(rows, weights, index)
    for num_sms in (132, 4):
        with set_num_sms(num_sms):
            apart, together = both_ways(function, a, b, layout)
        test_m_grouped.check(apart, wanted)
        assert same_bits(apart, together)


@pytest.mark.parametrize("kind", ["fp8", "bf16"])
@pytest.mark.parametrize("masked_m", [(0, 5, 400, 17), (-3, 1000, 400, 1), (2**31 - 1, -(2**31), 130, 256)], ids=str)
def test_masked(kind, masked_m):
    """What lies behind a group's rows is not written to, nonsense in the counts or not."""
    a, b, rows, weights = test_m_grouped.problem(kind, 1600, 4, 264, 400)
    stacked = jax.tree.map(lambda x: x.reshape(4, 400, -1), a)
    counts = jnp.asarray(masked_m, jnp.int32)

    def function(a, b, counts):
        return getattr(jd, f"m_grouped_{kind}_gemm_nt_masked")(a, b, counts, 400)

    apart, together = (np.asarray(d) for d in both_ways(function, stacked, b, counts))
    inside = np.arange(400) < np.asarray(masked_m)[:, None]
    wanted = m_grouped.masked_oracle(rows.reshape(4, 400, -1), weights, np.clip(masked_m, 0, 400))
    helpers.assert_close(apart[inside], wanted[inside])
    assert np.isnan(np.asarray(apart, np.float32)[~inside]).all()
    np.testing.assert_array_equal(apart[inside].view(np.uint16), together[inside].view(np.uint16))


def test_free_columns():
    with helpers.store_warps(), set_num_sms(2):
        skip_head_mid.run_and_check((64, 64, 64), GemmConfig(128, 64), m=300, heads=3, k=272)


@pytest.mark.parametrize("config", [GemmConfig(256, 128), GemmConfig(192, 128), Bf16GemmConfig(128, 256)], ids=name)
def test_repeats(config):
    """As many tiles as make every slot and every phase come round often."""
    if isinstance(config, Bf16GemmConfig):
        p, gemm = bf16_problems.problem("nt", 1000, 2112, 400), GEMMS["nt"]
    else:
        p, gemm = problem(1000, 2112, 400), fp8_gemm_nt
    with helpers.store_warps(), set_num_sms(7):
        run = native(lambda a, b: gemm(a, b), p.a, p.b, config=config)
    results = run.many(50, p.a, p.b)
    p.check(results[0])
    assert all_same(results)
