"""bf16_gemm_{nt,nn,tn,tt} by reference: against float64, errors, derivatives."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import bf16_gemm_nn, bf16_gemm_nt, bf16_gemm_tn, bf16_gemm_tt
from tests.bf16 import GEMMS, as_jax, matrices, oracle, turned
from tests.helpers import BOUNDS, assert_close, relative_error

F32 = jnp.float32
EVERY = pytest.mark.parametrize("layout", GEMMS)
OUT_DTYPES = pytest.mark.parametrize("out_dtype", [jnp.bfloat16, F32])
SIZES = [(8, 24, 16), (40, 128, 72), (136, 576, 128), (1000, 64, 1040)]


@EVERY
@OUT_DTYPES
@pytest.mark.parametrize("m, n, k", SIZES)
def test_against_float64(m, n, k, out_dtype, layout):
    a, b = matrices(layout, m, n, k)
    d = GEMMS[layout](a, b, out_dtype=out_dtype)
    assert d.dtype == out_dtype
    assert_close(d, oracle(layout, a, b))


@EVERY
@OUT_DTYPES
def test_c_is_added(out_dtype, layout):
    a, b = matrices(layout, 40, 128, 272)
    c = (20 * jax.random.normal(jax.random.key(5), (40, 128))).astype(out_dtype)
    assert_close(GEMMS[layout](a, b, c=c, out_dtype=out_dtype), oracle(layout, a, b, c))


@pytest.mark.parametrize("m, k, n", [(1, 8, 8), (77, 16, 24)])
def test_free_sizes(m, k, n):
    """M where A's rows run along K, K where no row does, N of four for float32."""
    for layout, *sizes in (("nt", m, n, k), ("tn", 8, 16, m), ("nt", m, 12, k)):
        a, b = matrices(layout, *sizes)
        assert_close(GEMMS[layout](a, b, out_dtype=F32), oracle(layout, a, b))


def test_numpy_and_jit_give_the_same_bits():
    a, b = matrices("nt", 40, 128, 256)
    wanted = np.asarray(bf16_gemm_nt(a, b))
    for got in (bf16_gemm_nt(np.asarray(a), np.asarray(b)), jax.jit(bf16_gemm_nt)(a, b)):
        np.testing.assert_array_equal(np.asarray(got), wanted)


@EVERY
@pytest.mark.parametrize("m, n, k", [(0, 64, 128), (16, 0, 128), (0, 0, 0)])
def test_empty(m, n, k, layout):
    assert GEMMS[layout](*matrices(layout, m, n, k)).shape == (m, n)


@EVERY
def test_empty_k_gives_zeros_or_c(layout):
    a, b = matrices(layout, 16, 64, 0)
    c = jnp.ones((16, 64), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(GEMMS[layout](a, b)), np.zeros((16, 64)))
    np.testing.assert_array_equal(np.asarray(GEMMS[layout](a, b, c=c)), np.asarray(c))


@OUT_DTYPES
def test_the_bound_catches_wrong_results(out_dtype):
    a, b = matrices("nt", 128, 256, 512)
    wanted = oracle("nt", a, b)
    one_tile_zero = wanted.copy()
    one_tile_zero[-1:, -8:] = 0
    wrong = {
        "zero": np.zeros_like(wanted),
        "shifted": np.roll(wanted, 1, axis=1),
        "twice": 2 * wanted,
        "one of K left out": oracle("nt", a[:, 1:], b[:, 1:]),
        "one tile zero": one_tile_zero,
    }
    errors = {name: relative_error(d, wanted) for name, d in wrong.items()}
    assert min(errors.values()) > BOUNDS[jnp.dtype(out_dtype)], errors


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_rows_and_columns(bad, layout):
    a, b = (np.array(x) for x in matrices("nt", 24, 40, 64))
    a[3, 5] = bad
    b[7, 11] = bad
    d = np.asarray(GEMMS[layout](*turned(layout, as_jax(a), as_jax(b)))).astype(np.float32)
    finite = np.isfinite(d)
    assert not finite[3].any() and not finite[:, 7].any()
    assert np.delete(np.delete(finite, 3, 0), 7, 1).all()


# --- errors --------------------------------------------------------------------------------------------------------

A, B = jnp.zeros((16, 64), jnp.bfloat16), jnp.zeros((24, 64), jnp.bfloat16)


@pytest.mark.parametrize(
    "function, kind, message",
    [
        (lambda: bf16_gemm_nt(A.astype(F32), B), TypeError, r"`a` must be bfloat16 of shape \(M, K\), got float32"),
        (lambda: bf16_gemm_nt(A, 3.0), TypeError, r"`b` must be bfloat16 of shape \(N, K\), got float"),
        (lambda: bf16_gemm_nt(A[0], B), ValueError, r"`a` must be bfloat16 of shape \(M, K\), got bfloat16\[64\]"),
        (lambda: bf16_gemm_nt(A, B[:, :8]), ValueError, r"`b` must be of shape \(N, 64\) with the K of `a`"),
        (lambda: bf16_gemm_nn(A, B), ValueError, r"`b` must be of shape \(64, N\) with the K of `a`"),
        (lambda: bf16_gemm_tt(A, B), ValueError, r"`b` must be of shape \(N, 16\) with the K of `a`"),
        (lambda: bf16_gemm_nt(A[:, :9], B[:, :9]), ValueError, r"`a` must be of shape \(M, K\) with K a multiple of 8"),
        (lambda: bf16_gemm_tn(A[:, :9], A), ValueError, r"`a` must be of shape \(K, M\) with M a multiple of 8"),
        (lambda: bf16_gemm_tn(A, A[:, :9]), ValueError, r"`b` must be of shape \(K, N\) with N a multiple of 8"),
        (lambda: bf16_gemm_nt(A, B[:12]), ValueError, r"`b` must be .* with N a multiple of 8 for bfloat16 out"),
        (
            lambda: bf16_gemm_nt(A, B[:11], out_dtype=F32),
            ValueError,
            r"`b` must be .* with N a multiple of 4 for float32 out",
        ),
        (lambda: bf16_gemm_nt(A, B, out_dtype=jnp.float16), TypeError, "`out_dtype` must be bfloat16 or float32"),
        (lambda: bf16_gemm_nt(A, B, c=jnp.zeros((16, 24))), TypeError, r"`c` must be bfloat16 of shape \(16, 24\)"),
        (
            lambda: bf16_gemm_nt(A, B, c=jnp.zeros((16, 16), jnp.bfloat16)),
            ValueError,
            r"`c` must be bfloat16 of shape \(16, 24\), got bfloat16\[16,16\]",
        ),
    ],
)
def test_errors(function, kind, message):
    with pytest.raises(kind, match=message):
        function()


# --- derivatives ---------------------------------------------------------------------------------------------------


def plain(layout, a, b, c):
    """The same of jax.numpy, all in float32."""
    a, b = turned(layout, a.astype(F32), b.astype(F32))
    return jnp.dot(a, b.T, precision="highest") + c.astype(F32)


def given(layout, out_dtype=F32, m=16, n=24, k=40):
    """Operands, and a tangent or cotangent of D that bfloat16 holds."""
    a, b = matrices(layout, m, n, k)
    c, d = (jax.random.normal(jax.random.key(s), (m, n)).astype(jnp.bfloat16).astype(out_dtype) for s in (3, 4))
    return a, b, c, d


def close(got, wanted):
    """To the rounding of a bfloat16 result of bfloat16 operands."""
    assert relative_error(got, np.asarray(wanted).astype(np.float64)) < 4e-3


@EVERY
@OUT_DTYPES
def test_gradients(layout, out_dtype):
    a, b, c, cotangent = given(layout, out_dtype)
    d, pull = jax.vjp(lambda a, b, c: GEMMS[layout](a, b, c=c, out_dtype=out_dtype), a, b, c)
    _, plain_pull = jax.vjp(lambda a, b, c: plain(layout, a, b, c), *(x.astype(F32) for x in (a, b, c)))
    assert_close(d, oracle(layout, a, b, c))
    for x, got, wanted in zip((a, b, c), pull(cotangent), plain_pull(cotangent.astype(F32)), strict=True):
        assert (got.shape, got.dtype) == (x.shape, x.dtype)
        close(got, wanted)


@EVERY
def test_gradients_are_gemms_of_their_own(layout):
    """No transpose anywhere, three GEMMs in all."""
    a, b, _, cotangent = given(layout, jnp.bfloat16)
    jaxpr = jax.make_jaxpr(lambda a, b, d: jax.vjp(GEMMS[layout], a, b)[1](d))(a, b, cotangent)
    assert [e.primitive.name for e in jaxpr.eqns] == ["jax_deepgemm_bf16_gemm"] * 3


@EVERY
@pytest.mark.parametrize("moving", [s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)])
def test_tangents(layout, moving):
    """Of any of the operands."""
    a, b, c, _ = given(layout)
    values, tangents = zip(*(((a, b, c)[i], jnp.roll((a, b, c)[i], 1, 0)) for i in moving), strict=True)

    def with_moving(function):
        def call(*xs):
            rest = dict(zip(moving, xs, strict=True))
            return function(*(rest.get(i, x) for i, x in enumerate((a, b, c))))

        return call

    ours = with_moving(lambda a, b, c: GEMMS[layout](a, b, c=c, out_dtype=F32))
    wanted = with_moving(lambda a, b, c: plain(layout, a, b, c))
    got = jax.jvp(ours, values, tangents)
    for g, w in zip(got, jax.jvp(wanted, values, tangents), strict=True):
        assert g.dtype == F32
        assert_close(g, np.asarray(w).astype(np.float64))


def test_second_derivatives_and_control_flow():
    a, b, c, _ = given("nt")

    def loss(gemm, a, b):
        total, _ = jax.lax.scan(lambda s, x: (s + jnp.sum(jax.checkpoint(gemm)(a, x) ** 2), None), 0.0, b)
        return total

    def penalty(gemm, a, b):
        return jnp.sum(jax.grad(loss, 1)(gemm, a, b).astype(F32) ** 2)

    bs = jnp.stack([b, b[::-1]])
    ours = jax.jit(jax.grad(lambda a: penalty(lambda a, b: bf16_gemm_nt(a, b, out_dtype=F32), a, bs)))(a)
    wanted = jax.grad(lambda a: penalty(lambda a, b: plain("nt", a, b, 0 * c), a, bs.astype(F32)))(a.astype(F32))
    assert relative_error(ours, np.asarray(wanted).astype(np.float64)) < 1e-2


def test_gradient_of_float32_out_with_n_of_four():
    """The cotangent's rows are no multiples of 16 bytes in bfloat16."""
    a, b, c, cotangent = given("nt", n=12)
    _, pull = jax.vjp(lambda a, b: bf16_gemm_nt(a, b, out_dtype=F32), a, b)
    _, plain_pull = jax.vjp(lambda a, b: plain("nt", a, b, c), a.astype(F32), b.astype(F32))
    for got, wanted in zip(pull(cotangent), plain_pull(cotangent), strict=True):
        close(got, wanted)
