"""NaN and Inf in data and scales stay in the rows and columns that they belong to."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_gemm_nt
from tests.gpu.configurations import FEW, K, M, N, name
from tests.gpu.native import native
from tests.gpu.problems import E4M3, problem, same_bits

pytestmark = pytest.mark.gpu

# Which array (a, a_scale, b, b_scale), where, what; and the rows and columns of the result that it belongs to.
SPOILED = {
    "NaN in a": (0, (257, 1039), np.nan, np.s_[257, :]),
    "NaN in a's last row": (0, (M - 1, 0), np.nan, np.s_[M - 1, :]),
    "NaN in b": (2, (130, 127), np.nan, np.s_[:, 130]),
    "NaN in b's last row": (2, (N - 1, 1039), np.nan, np.s_[:, N - 1]),
    "Inf in a's scales": (1, (64, 8), np.inf, np.s_[64, :]),
    "NaN in a's scales": (1, (0, 0), np.nan, np.s_[0, :]),
    "Inf in b's scales": (3, (1, 3), np.inf, np.s_[:, 128:256]),
    "NaN in b's last scale": (3, (4, 8), np.nan, np.s_[:, 512:]),
}


@pytest.fixture(scope="module")
def operands():
    p = problem(M, N, K)
    return p, [np.asarray(x) for x in (*p.a, *p.b)]


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_they_stay_where_they_belong(config, operands):
    p, clean = operands
    run = native(lambda a, sa, b, sb: fp8_gemm_nt((a, sa), (b, sb)), *clean, config=config)
    wanted = np.asarray(run(*map(jax.device_put, clean)))
    p.check(jnp.asarray(wanted))
    for what, (which, place, value, where) in SPOILED.items():
        spoiled = [x.copy() for x in clean]
        spoiled[which][place] = np.asarray(value).astype(spoiled[which].dtype)
        got = np.array(run(*map(jax.device_put, spoiled)))
        assert not np.isfinite(got[where].astype(np.float32)).any(), what
        got[where] = wanted[where]
        assert same_bits(got, wanted), f"{what} reached other rows or columns"


@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_a_scale_of_inf_times_large_values_is_inf(config, operands):
    """Products of one sign, so that nothing cancels to NaN."""
    _, clean = operands
    a, a_scale, b, b_scale = (x.copy() for x in clean)
    a[5], b[:] = np.ones(K, E4M3), np.ones((N, K), E4M3)
    a_scale[5, 2] = np.inf
    run = native(lambda a, sa, b, sb: fp8_gemm_nt((a, sa), (b, sb)), a, a_scale, b, b_scale, config=config)
    d = np.asarray(run(*map(jax.device_put, (a, a_scale, b, b_scale)))).astype(np.float32)
    assert np.isposinf(d[5]).all() and np.isfinite(np.delete(d, 5, 0)).all()
