"""fp8_gemm_nt with a scale for each row of both operands: numerics, memory, repeats, in every kind of configuration."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import Quantized, fp8_gemm_nt, set_num_sms
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from tests.cases import ODD_K, ODD_M, ODD_N
from tests.gpu.configurations import BY_ROWS, K, M, N, name
from tests.gpu.native import hlo, launches, native, poison
from tests.gpu.problems import all_same, problem, same_bits
from tests.helpers import ROWS

pytestmark = pytest.mark.gpu

F32 = jnp.float32
gemm = functools.partial(fp8_gemm_nt, recipe=ROWS)
by_rows = functools.partial(problem, recipe=ROWS)

FEW = (
    GemmConfig1d1d(64, 192),
    GemmConfig1d1d(128, 128, ahead=4),
    GemmConfig1d1d(128, 128, ahead=1),
    GemmConfig1d1d(256, 128, ahead=1),
    GemmConfig1d1d(192, 96, ahead=1),
    GemmConfig1d1d(128, 144, split_k=3),
    GemmConfig1d1d(128, 128, ahead=2, cluster_rows=2),
)


def in_all_ways(a, b, c, wide):
    return gemm(a, b), gemm(a, b, c=c), gemm(a, b, out_dtype=F32), gemm(a, b, c=wide, out_dtype=F32)


@pytest.mark.parametrize("config", BY_ROWS, ids=name)
def test_configuration(config):
    """With an SM for every tile; and with so few that each CTA walks many tiles, its barriers through many phases."""
    p = by_rows(M, N, K)
    args = p.a, p.b, p.c(jnp.bfloat16), p.c(F32)

    def twice(*xs):
        with set_num_sms(3):
            few = in_all_ways(*xs)
        return in_all_ways(*xs), few

    found, by_few = native(twice, *args, calls=8, config=config)(*args)
    for d, c in zip(found, (None, args[2], None, args[3]), strict=True):
        p.check(d, c)
    assert all(same_bits(x, y) for x, y in zip(found, by_few, strict=True))


@pytest.mark.parametrize("k", (*ODD_K, 400, 1040))
@pytest.mark.parametrize("n", ODD_N)
@pytest.mark.parametrize("m", ODD_M)
def test_odd_sizes(m, n, k):
    p = by_rows(m, n, k)
    args = p.a, p.b, p.c(jnp.bfloat16), p.c(F32)
    found = native(in_all_ways, *args, calls=4)(*args)
    for d, c in zip(found, (None, args[2], None, args[3]), strict=True):
        p.check(d, c)


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
@pytest.mark.parametrize("m, n, k", [(1, 8, 16), (65, 136, 128), (130, 1048, 7168)])
def test_small_problem_in_a_large_tile(m, n, k, config):
    p = by_rows(m, n, k)
    p.check(native(gemm, p.a, p.b, config=config)(p.a, p.b))


@pytest.mark.parametrize("n", [4, 12, 132, 580])
def test_n_of_four_is_enough_for_float32(n):
    p = by_rows(77, n, 400)
    c = p.c(F32)
    p.check(native(lambda a, b, c: gemm(a, b, c=c, out_dtype=F32), p.a, p.b, c)(p.a, p.b, c), c)


def test_ue8m0_scales():
    p = by_rows(300, 616, 1040, use_ue8m0=True)
    p.check(native(gemm, p.a, p.b)(p.a, p.b))


@pytest.mark.parametrize("m, n, k", [(0, 64, 128), (16, 0, 128), (16, 64, 0)])
def test_empty_problems_launch_nothing(m, n, k):
    p = by_rows(m, n, k)
    d = native(gemm, p.a, p.b, calls=0)(p.a, p.b)
    assert d.shape == (m, n) and not jnp.any(d)


# Which array (a, a_scale, b, b_scale), where, what; and the rows and columns of the result that it belongs to.
SPOILED = {
    "NaN in a": (0, (257, 1039), np.nan, np.s_[257, :]),
    "NaN in b's last row": (2, (N - 1, 1039), np.nan, np.s_[:, N - 1]),
    "Inf in a's scales": (1, (64, 8), np.inf, np.s_[64, :]),
    "NaN in b's scales": (3, (130, 3), np.nan, np.s_[:, 130]),
    "Inf in b's last scale": (3, (N - 1, 8), np.inf, np.s_[:, N - 1]),
}


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_nonfinite_values_stay_where_they_belong(config):
    clean = [np.asarray(x) for x in (*by_rows(M, N, K).a, *by_rows(M, N, K).b)]
    run = native(lambda a, sa, b, sb: gemm((a, sa), (b, sb)), *clean, config=config)
    wanted = np.asarray(run(*map(jax.device_put, clean)))
    for what, (which, place, value, where) in SPOILED.items():
        spoiled = [x.copy() for x in clean]
        spoiled[which][place] = np.asarray(value).astype(spoiled[which].dtype)
        got = np.array(run(*map(jax.device_put, spoiled)))
        assert not np.isfinite(got[where].astype(np.float32)).any(), what
        got[where] = wanted[where]
        assert same_bits(got, wanted), f"{what} reached other rows or columns"


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_what_shared_memory_held_does_not_matter(config):
    """A first run fills the pipeline of every SM with NaN. The second one's tiles end beyond its operands."""
    large, small = by_rows(1024, 2112, 1040), by_rows(77, 136, 400)
    fill = Quantized(*(jnp.full(v.shape, jnp.nan, v.dtype) for v in large.a)), large.b
    both = native(lambda x, y: (gemm(*x), gemm(*y)), fill, (small.a, small.b), calls=2, config=config)
    dirty, d = both(fill, (small.a, small.b))
    assert jnp.isnan(dirty).all()
    small.check(d)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, F32])
@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_a_donated_c_becomes_the_result(config, dtype):
    p = by_rows(M, N, K)
    c = p.c(dtype)
    copy, place = np.asarray(c).copy(), c.unsafe_buffer_pointer()

    def add(a, a_scale_transposed, b, b_scale_transposed, c):
        return gemm((a, a_scale_transposed.T), (b, b_scale_transposed.T), c=c, out_dtype=dtype)

    scales = [jnp.asarray(np.ascontiguousarray(np.asarray(x.scale).T)) for x in (p.a, p.b)]
    args = p.a.data, scales[0], p.b.data, scales[1], c
    run = jax.jit(add, donate_argnums=4).lower(*args).compile()
    assert launches(run) == 1 and " copy(" not in hlo(run) and "transpose(" not in hlo(run)
    d = run(*args)
    assert d.unsafe_buffer_pointer() == place and c.is_deleted()
    p.check(d, copy)


def test_a_c_that_is_not_donated_keeps_its_value():
    p = by_rows(M, N, K)
    c = p.c(F32)
    copy = np.asarray(c).copy()
    p.check(native(lambda a, b, c: gemm(a, b, c=c, out_dtype=F32), p.a, p.b, c)(p.a, p.b, c), c)
    assert same_bits(c, copy)


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_repeats_are_bitwise_the_same(config):
    p = by_rows(1000, 2112, 1040)
    c = p.c(F32)
    run = native(lambda a, b, c: gemm(a, b, c=c, out_dtype=F32), p.a, p.b, c, config=config)
    results = run.many(20, p.a, p.b, c)
    p.check(results[0], c)
    assert all_same(results)


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_each_result_is_the_next_ones_c(config):
    """In place, one launch beginning before the other has ended: each reads what its predecessor wrote."""
    p = by_rows(300, 616, 1040)
    c = p.c(F32)

    def chain(a, b, c):
        for _ in range(20):
            c = gemm(a, b, c=c, out_dtype=F32)
        return c

    run = native(chain, p.a, p.b, c, calls=20, config=config)
    p.check(run(p.a, p.b, c), c, copies=20)


def test_poison_is_seen():
    """What the other tests rely on: a result that nobody writes stays NaN."""
    assert jnp.isnan(poison(jax.ShapeDtypeStruct((3, 8), F32))).all()
