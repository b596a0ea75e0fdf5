"""Every kind of tile configuration, forced upon one awkward problem."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from jax_deepgemm import fp8_gemm_nt, set_num_sms
from tests.gpu.configurations import ALL, FEW, K, M, N, name
from tests.gpu.native import native
from tests.gpu.problems import problem, same_bits

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def awkward():
    p = problem(M, N, K)
    return p, p.c(jnp.float32)


def four_ways(a, b, c):
    """With an SM for every tile; and with so few that each CTA walks many tiles, its barriers through many phases."""

    def both():
        return fp8_gemm_nt(a, b), fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32)

    with set_num_sms(3):
        few = both()
    return *both(), *few


@pytest.mark.parametrize("config", ALL, ids=name)
def test_configuration(config, awkward):
    p, c = awkward
    run = native(four_ways, p.a, p.b, c, calls=4, config=config)
    narrow, wide, narrow_by_few, wide_by_few = run(p.a, p.b, c)
    p.check(narrow)
    p.check(wide, c)
    assert same_bits(narrow, narrow_by_few) and same_bits(wide, wide_by_few)


@pytest.mark.parametrize("config", FEW, ids=name)
@pytest.mark.parametrize("m, n, k", [(1, 8, 16), (65, 136, 128), (130, 1048, 400)])
def test_small_problem_in_a_large_tile(m, n, k, config):
    """Some CTAs of a cluster have no rows, no columns or no blocks of K."""
    p = problem(m, n, k)
    p.check(native(fp8_gemm_nt, p.a, p.b, config=config)(p.a, p.b))


@pytest.mark.parametrize("config", FEW, ids=name)
def test_long_k(config):
    p = problem(200, 264, 7168)
    run = native(lambda a, b: fp8_gemm_nt(a, b, out_dtype=jnp.float32), p.a, p.b, config=config)
    p.check(run(p.a, p.b))
