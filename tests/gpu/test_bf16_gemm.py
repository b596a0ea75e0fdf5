"""The BF16 GEMMs against float64: sizes, configurations, memory, repeats, derivatives. Results are written over NaN."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import bf16_gemm_nt, set_num_sms, set_pdl
from tests.bf16 import GEMMS
from tests.cases import BF16_ODD
from tests.gpu.bf16_problems import CONFIGURATIONS, FEW, problem
from tests.gpu.configurations import name
from tests.gpu.native import hlo, launches, native
from tests.gpu.problems import all_same, same_bits

pytestmark = pytest.mark.gpu

F32 = jnp.float32
EVERY = pytest.mark.parametrize("layout", GEMMS)
# What the heuristics choose in every layout, and each kind in one.
SOME = pytest.mark.parametrize(
    "config, layout",
    [*((None, layout) for layout in GEMMS), *zip(FEW, itertools.cycle(GEMMS), strict=False)],
    ids=lambda x: x if isinstance(x, str) else name(x),
)
# Ends inside tiles, slabs and boxes everywhere; rows of 16 bytes in every layout.
M, N, K = 296, 616, 1040


@pytest.mark.parametrize("case", BF16_ODD, ids=str)
def test_odd_sizes(case):
    p = problem(case.layout, case.m, case.n, case.k)
    gemm = GEMMS[case.layout]
    for d in native(lambda a, b: (gemm(a, b), gemm(a, b, out_dtype=F32)), p.a, p.b, calls=2)(p.a, p.b):
        p.check(d)


@EVERY
@pytest.mark.parametrize("m, n, k", [(8, 24, 16), (72, 576, 1040), (1000, 2112, 400)])
def test_c_is_added(layout, m, n, k):
    p = problem(layout, m, n, k)
    c, wide = p.c(jnp.bfloat16), p.c(F32)
    gemm = GEMMS[layout]

    def both(a, b, c, wide):
        return gemm(a, b, c=c), gemm(a, b, c=wide, out_dtype=F32)

    narrow_d, wide_d = native(both, p.a, p.b, c, wide, calls=2)(p.a, p.b, c, wide)
    p.check(narrow_d, c)
    p.check(wide_d, wide)


@EVERY
@pytest.mark.parametrize("config", CONFIGURATIONS, ids=name)
def test_configuration(config, layout):
    """With an SM for every tile; and with so few that each CTA walks many, its barriers through many phases."""
    p = problem(layout, M, N, K)
    c = p.c(F32)
    gemm = GEMMS[layout]

    def four_ways(a, b, c):
        with set_num_sms(3):
            few = gemm(a, b), gemm(a, b, c=c, out_dtype=F32)
        return gemm(a, b), gemm(a, b, c=c, out_dtype=F32), *few

    run = native(four_ways, p.a, p.b, c, calls=4, config=config)
    narrow, wide, narrow_by_few, wide_by_few = run(p.a, p.b, c)
    p.check(narrow)
    p.check(wide, c)
    assert same_bits(narrow, narrow_by_few) and same_bits(wide, wide_by_few)


@pytest.mark.parametrize("config", FEW, ids=name)
@pytest.mark.parametrize("m, n, k", [(1, 8, 16), (65, 136, 128), (130, 1048, 400)])
def test_small_problem_in_a_large_tile(m, n, k, config):
    """Some CTAs of a cluster have no rows, no columns or no blocks of K."""
    p = problem("nt", m, n, k)
    p.check(native(bf16_gemm_nt, p.a, p.b, config=config)(p.a, p.b))


@EVERY
def test_empty_problems_launch_nothing(layout):
    for sizes in ((0, 64, 128), (16, 0, 128), (16, 64, 0)):
        p = problem(layout, *sizes)
        d = native(GEMMS[layout], p.a, p.b, calls=0)(p.a, p.b)
        assert d.shape == sizes[:2] and not jnp.any(d)


@SOME
def test_the_same_bits_every_time(config, layout):
    p = problem(layout, M, N, 4112)
    c = p.c(jnp.bfloat16)
    run = native(lambda a, b, c: GEMMS[layout](a, b, c=c), p.a, p.b, c, config=config)
    results = run.many(30, p.a, p.b, c)
    p.check(results[0], c)
    assert all_same(results)


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_each_result_is_the_next_ones_c(config):
    """One after the other, in place, with and without programmatic dependent launch."""
    p = problem("nt", M, N, K)
    c = p.c(F32)

    def chain(a, b, c):
        for _ in range(20):
            c = bf16_gemm_nt(a, b, c=c, out_dtype=F32)
        return c

    results = []
    for enabled in (True, False):
        with set_pdl(enabled):
            results += native(chain, p.a, p.b, c, calls=20, config=config).many(3, p.a, p.b, c)
    p.check(results[0], c, copies=20)
    assert all_same(results)


@SOME
def test_what_shared_memory_held_does_not_matter(config, layout):
    """A first run fills the pipeline of every SM with NaN. The second one's tiles end beyond its operands."""
    large, small = problem(layout, 1024, 2112, 1040), problem(layout, 72, 136, 400)
    gemm, fill = GEMMS[layout], jnp.full(large.a.shape, jnp.nan, jnp.bfloat16)

    def both(fill, b, x, y):
        return gemm(fill, b), gemm(x, y)

    args = fill, large.b, small.a, small.b
    dirty, d = native(both, *args, calls=2, config=config)(*args)
    assert jnp.isnan(dirty).all()
    small.check(d)


@pytest.mark.parametrize("m", [1, 5, 13, 77])
def test_nan_stays_in_its_rows(m):
    """Also where a tile is loaded only as far as there are rows."""
    p = problem("nt", m, 576, 400)
    a = p.a.at[m // 2, 3].set(jnp.nan)
    d = np.asarray(native(bf16_gemm_nt, a, p.b)(a, p.b)).astype(np.float32)
    assert np.isnan(d[m // 2]).all() and np.isfinite(np.delete(d, m // 2, 0)).all()


@EVERY
@pytest.mark.parametrize("dtype", [jnp.bfloat16, F32])
def test_a_donated_c_becomes_the_result(dtype, layout):
    p = problem(layout, M, N, K)
    c = p.c(dtype)
    copy, place = np.asarray(c).copy(), c.unsafe_buffer_pointer()
    run = (
        jax.jit(lambda a, b, c: GEMMS[layout](a, b, c=c, out_dtype=dtype), donate_argnums=2)
        .lower(p.a, p.b, c)
        .compile()
    )
    assert launches(run) == 1 and " copy(" not in hlo(run) and "transpose(" not in hlo(run)
    d = run(p.a, p.b, c)
    assert d.unsafe_buffer_pointer() == place and c.is_deleted()
    p.check(d, copy)


@EVERY
def test_gradients(layout):
    """Three launches, of which the gradients' match those that the reference computes on the host."""
    p = problem(layout, 304, 616, 520)
    cotangent = p.c(jnp.bfloat16)

    def both(a, b, d):
        return jax.vjp(GEMMS[layout], a, b)[1](d)

    got = native(both, p.a, p.b, cotangent, calls=2)(p.a, p.b, cotangent)
    wide = [np.asarray(x).astype(np.float64) for x in (p.a, p.b, cotangent)]
    a, b, d = wide[0] if layout[0] == "n" else wide[0].T, wide[1] if layout[1] == "t" else wide[1].T, wide[2]
    wanted = d @ b, d.T @ a
    for g, w, turned in zip(got, wanted, (layout[0] == "t", layout[1] == "n"), strict=True):
        w = w.T if turned else w
        assert np.linalg.norm(np.asarray(g).astype(np.float64) - w) < 2e-3 * np.linalg.norm(w)
