"""The FP8 GEMM of short K that keeps a panel of B: each configuration, forced upon sizes that end inside its tiles."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from jax_deepgemm import ResidentConfig, fp8_gemm_nt, set_num_sms, set_pdl
from tests.gpu.native import native
from tests.gpu.problems import all_same, problem, same_bits

pytestmark = pytest.mark.gpu

CONFIGS = ResidentConfig(256), ResidentConfig(128)
SIZES = ((1, 8, 16), (300, 616, 512), (1000, 2112, 400), (64, 264, 128), (77, 1048, 272))


def name(config: ResidentConfig) -> str:
    return str(config.columns)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("m, n, k", SIZES)
def test_sizes(m, n, k, config):
    """With a CTA for every few tiles, and with so few that each walks many panels."""
    p = problem(m, n, k)
    c = p.c(jnp.float32)

    def both(a, b, c):
        return fp8_gemm_nt(a, b), fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32)

    narrow, wide = native(both, p.a, p.b, c, calls=2, config=config)(p.a, p.b, c)
    p.check(narrow)
    p.check(wide, c)
    with set_num_sms(2):
        few = native(both, p.a, p.b, c, calls=2, config=config)(p.a, p.b, c)
    assert same_bits(narrow, few[0]) and same_bits(wide, few[1])


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_repeats(config):
    p = problem(1000, 2112, 512)
    c = p.c(jnp.bfloat16)
    run = native(lambda a, b, c: fp8_gemm_nt(a, b, c=c), p.a, p.b, c, config=config)
    results = run.many(50, p.a, p.b, c)
    p.check(results[0], c)
    assert all_same(results)


@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("pdl", [False, True])
def test_each_result_is_the_next_ones_c(config, pdl):
    p = problem(300, 616, 400)
    c = p.c(jnp.float32)

    def chain(a, b, c):
        for _ in range(20):
            c = fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32)
        return c

    with set_pdl(pdl):
        d = native(chain, p.a, p.b, c, calls=20, config=config)(p.a, p.b, c)
    p.check(d, c, copies=20)
