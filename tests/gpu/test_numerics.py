"""fp8_gemm_nt against float64, in the configurations that the heuristics choose. Results are written over NaN."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from jax_deepgemm import fp8_gemm_nt, set_num_sms
from tests.cases import ODD_K, ODD_M, ODD_N
from tests.gpu.native import native
from tests.gpu.problems import problem

pytestmark = pytest.mark.gpu

F32 = jnp.float32


@pytest.mark.parametrize("k", (*ODD_K, 400, 1040))
@pytest.mark.parametrize("n", ODD_N)
@pytest.mark.parametrize("m", ODD_M)
def test_odd_sizes(m, n, k):
    p = problem(m, n, k)
    run = native(lambda a, b: (fp8_gemm_nt(a, b), fp8_gemm_nt(a, b, out_dtype=F32)), p.a, p.b, calls=2)
    for d in run(p.a, p.b):
        p.check(d)


@pytest.mark.parametrize("m, n, k", [(1, 24, 16), (3, 576, 7168), (77, 576, 1040), (129, 24, 144), (1000, 2112, 400)])
def test_c_is_added(m, n, k):
    p = problem(m, n, k)
    c, wide = p.c(jnp.bfloat16), p.c(F32)

    def both(a, b, c, wide):
        return fp8_gemm_nt(a, b, c=c), fp8_gemm_nt(a, b, c=wide, out_dtype=F32)

    narrow_d, wide_d = native(both, p.a, p.b, c, wide, calls=2)(p.a, p.b, c, wide)
    p.check(narrow_d, c)
    p.check(wide_d, wide)


@pytest.mark.parametrize("m, n, k", [(3, 576, 144), (300, 616, 1040)])
def test_ue8m0_scales(m, n, k):
    p = problem(m, n, k, use_ue8m0=True)
    assert p.a.scale.dtype == p.b.scale.dtype == jnp.float8_e8m0fnu
    p.check(native(fp8_gemm_nt, p.a, p.b)(p.a, p.b))


@pytest.mark.parametrize("n", [4, 12, 132, 580])
def test_n_of_four_is_enough_for_float32(n):
    p = problem(77, n, 400)
    p.check(native(lambda a, b: fp8_gemm_nt(a, b, out_dtype=F32), p.a, p.b)(p.a, p.b))


@pytest.mark.parametrize("num_sms", [1, 7, 131])
def test_fewer_processors(num_sms):
    p = problem(300, 616, 1040)
    with set_num_sms(num_sms):
        p.check(native(fp8_gemm_nt, p.a, p.b)(p.a, p.b))


@pytest.mark.parametrize("m, n, k", [(0, 64, 128), (16, 0, 128), (16, 64, 0)])
def test_empty_problems_launch_nothing(m, n, k):
    p = problem(m, n, k)
    d = native(fp8_gemm_nt, p.a, p.b, calls=0)(p.a, p.b)
    assert d.shape == (m, n) and not jnp.any(d)
