"""Configurations given by the caller, and measured by `tune`."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from jax_deepgemm import fp8_gemm_nt, set_cache_folder, tune
from tests.gpu.configurations import FEW, K, M, N, name
from tests.gpu.native import hlo, native
from tests.gpu.problems import problem, same_bits

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("config", FEW, ids=name)
def test_config_of_the_caller(config):
    p = problem(M, N, K)
    run = native(lambda a, b: fp8_gemm_nt(a, b, config=config), p.a, p.b)
    assert f"kRows={config.rows}, kColumns={config.columns}," in hlo(run.compiled)
    p.check(run(p.a, p.b))


@pytest.mark.parametrize("m, n, k", [(1, 576, 7168), (64, 2112, 1040), (1000, 616, 400)])
@pytest.mark.parametrize("has_c", [False, True])
def test_tune(m, n, k, has_c, tmp_path):
    p = problem(m, n, k)
    args = (p.a, p.b, p.c(jnp.float32)) if has_c else (p.a, p.b)

    def gemm(a, b, c=None):
        return fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32)

    with set_cache_folder(tmp_path):
        (found,) = tune(gemm, *args, candidates=6)
        (stored,) = tune(gemm, *args)
        run = native(gemm, *args)
    assert found.measured and not stored.measured and stored.config == found.config
    assert 1 < found.us <= found.heuristic_us < 1000
    assert f"kRows={found.config.rows}, kColumns={found.config.columns}," in hlo(run.compiled)
    d = run(*args)
    p.check(d, *args[2:])
    given = native(lambda a, b, c=None: fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32, config=found.config), *args)
    assert same_bits(d, given(*args))
