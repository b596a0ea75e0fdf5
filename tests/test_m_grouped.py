"""The m-grouped GEMMs: their references against float64, layouts of every kind, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm as jd
from tests import m_grouped
from tests.helpers import assert_close

N, K = 144, 272
FORMS = pytest.mark.parametrize("psum", [False, True], ids=["index", "psum"])
OPS = pytest.mark.parametrize("kind", ["fp8", "bf16"])
# Rows of each group, and how many are of none: in three shapes, since XLA compiles each anew.
SIZES = {
    "odd": m_grouped.SIZES["odd"],
    "of one row": m_grouped.SIZES["of one row"],
    "one has all": ((0, 0, 448, 0, 0), 0),
    "all empty": ((0,) * 5, 448),
    "tiles": ((128, 256, 64, 0, 0), 0),
}


@functools.cache
def problem(kind, m, groups, n=N, k=K):
    """Operands, and their float64 values."""
    if kind == "fp8":
        a, b = m_grouped.operands(m, n, k, groups)
        return a, b, *m_grouped.dequantised(a, b)
    random = np.random.default_rng(0)
    a, b = (jnp.asarray(random.standard_normal(s, np.float32), jnp.bfloat16) for s in ((m, k), (groups, n, k)))
    return a, b, np.asarray(a, np.float64), np.asarray(b, np.float64)


def contiguous(kind, a, b, layout, order="nt", **keywords):
    if order == "nn":
        b = jax.tree.map(lambda x: x.swapaxes(1, 2), b)
    return getattr(jd, f"m_grouped_{kind}_gemm_{order}_contiguous")(a, b, jnp.asarray(layout), **keywords)


def masked(kind, *args, **keywords):
    return getattr(jd, f"m_grouped_{kind}_gemm_nt_masked")(*args, **keywords)


def stacked(x, groups):
    """[G, Mmax, K] of [G * Mmax, K]."""
    return jax.tree.map(lambda v: v.reshape(groups, -1, v.shape[-1]), x)


def check(got, wanted):
    if np.any(wanted):
        assert_close(got, wanted)
    assert not np.any(np.asarray(got)[~wanted.any(axis=-1)])  # exactly zero


@OPS
@FORMS
@pytest.mark.parametrize("order", ["nt", "nn"])
@pytest.mark.parametrize("case", SIZES)
def test_contiguous(kind, psum, order, case):
    sizes, rest = SIZES[case]
    index = m_grouped.index_of(sizes, rest)
    a, b, rows, weights = problem(kind, len(index), len(sizes))
    layout, dtype = (m_grouped.psum_of(sizes), jnp.float32) if psum else (index, jnp.bfloat16)
    got = contiguous(kind, a, b, layout, order, use_psum_layout=psum, out_dtype=dtype)
    assert got.dtype == dtype
    check(got, m_grouped.oracle(rows, weights, index))


@OPS
def test_index_of_any_order_and_of_no_group(kind):
    random = np.random.default_rng(1)
    index = random.integers(-2, 7, 150).astype(np.int32)  # five groups
    a, b, rows, weights = problem(kind, 150, 5)
    check(contiguous(kind, a, b, index), m_grouped.oracle(rows, weights, index))


@OPS
@pytest.mark.parametrize("ends", [(50, 30, 90), (-5, 20, 1000), (60, 60, 60), (2**31 - 1, -(2**31), 3)])
def test_ends_that_are_none(kind, ends):
    a, b, rows, weights = problem(kind, 100, 3)
    clamped = np.maximum.accumulate(np.clip(ends, 0, 100))
    sizes = np.diff(clamped, prepend=0)
    wanted = m_grouped.oracle(rows, weights, m_grouped.index_of(sizes, 100 - clamped[-1]))
    check(contiguous(kind, a, b, np.array(ends, np.int32), use_psum_layout=True), wanted)


@OPS
@pytest.mark.parametrize("masked_m", [(0, 5, 40, 17), (0, 0, 0, 0), (-3, 1000, 40, 1)])
def test_masked(kind, masked_m):
    a, b, rows, weights = problem(kind, 160, 4)
    got = masked(kind, stacked(a, 4), b, jnp.array(masked_m, jnp.int32), 16)
    check(got, m_grouped.masked_oracle(rows.reshape(4, 40, K), weights, masked_m))


@OPS
@pytest.mark.parametrize("m, groups, n", [(0, 3, 16), (5, 0, 16), (5, 3, 0)])
def test_nothing_to_do(kind, m, groups, n):
    a, b, *_ = problem(kind, m, 1, n or 16)
    b = jax.tree.map(lambda x: jnp.zeros((groups, 0 if n == 0 else x.shape[1], x.shape[2]), x.dtype), b)
    got = contiguous(kind, a, b, np.zeros(m, np.int32))
    assert got.shape == (m, n) and not np.any(np.asarray(got))
    got = masked(
        kind, jax.tree.map(lambda x: jnp.zeros((groups, *x.shape), x.dtype), a), b, jnp.zeros(groups, jnp.int32), 4
    )
    assert got.shape == (groups, m, n)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"layout": np.zeros(9, np.int32)},
            ValueError,
            r"`grouped_layout` must be integers of shape \(M\), got int32\[9\]",
        ),
        ({"layout": np.zeros(10, np.float32)}, TypeError, "`grouped_layout` must be integers"),
        ({"psum": True}, ValueError, r"`grouped_layout` must be integers of shape \(G\)"),
        ({"b": ((3, 16, 128), (3, 1, 1))}, ValueError, r"`b` must be of shape \(G, N, 256\) with the K of `a`"),
        ({"b": ((3, 4, 256), (3, 1, 2))}, ValueError, "`b` must be .* with N a multiple of 8 for bfloat16 out"),
        ({"b": ((3, 16, 256), (3, 1, 1))}, ValueError, r"`b.scale` must be .* of shape \(3, 1, 2\)"),
        ({"out": jnp.float16}, TypeError, "`out_dtype` must be bfloat16 or float32"),
    ],
)
def test_errors(change, error, message):
    def zeros(data, scale):
        return jd.Quantized(jnp.zeros(data, jnp.float8_e4m3fn), jnp.zeros(scale))

    a, b = zeros((10, 256), (10, 2)), zeros(*change.get("b", ((3, 16, 256), (3, 1, 2))))
    layout = change.get("layout", np.zeros(10, np.int32))
    with jax.enable_x64(True), pytest.raises(error, match=message):
        contiguous(
            "fp8", a, b, layout, use_psum_layout=change.get("psum", False), out_dtype=change.get("out", jnp.bfloat16)
        )


def test_errors_of_masked():
    a, b = jnp.zeros((2, 8, 16), jnp.bfloat16), jnp.zeros((3, 8, 16), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"`b` must be of shape \(2, N, 16\) with the G and K of `a`"):
        masked("bf16", a, b, jnp.zeros(2, jnp.int32), 4)
    with pytest.raises(ValueError, match="`masked_m` must be integers of shape"):
        masked("bf16", a, b[:2], jnp.zeros(3, jnp.int32), 4)
    with pytest.raises(TypeError, match="`expected_m` must be a number of rows known at tracing"):
        masked("bf16", a, b[:2], jnp.zeros(2, jnp.int32), 2.5)


def test_masked_promotes_no_ranks():
    a, b = jnp.zeros((2, 8, 16), jnp.bfloat16), jnp.zeros((2, 24, 16), jnp.bfloat16)
    with jax.numpy_rank_promotion("raise"):
        assert masked("bf16", a, b, jnp.zeros(2, jnp.int32), 4).shape == (2, 8, 24)


@OPS
def test_no_gradient(kind):
    a, b, *_ = problem(kind, 8, 2)
    if kind == "bf16":
        with pytest.raises(NotImplementedError, match="cannot be differentiated"):
            jax.grad(lambda x: contiguous(kind, x, b, np.zeros(8, np.int32)).sum().astype(jnp.float32))(a)
    else:
        with pytest.raises(NotImplementedError, match="cannot be differentiated"):
            jax.grad(lambda s: contiguous(kind, (a[0], s), b, np.zeros(8, np.int32)).sum().astype(jnp.float32))(a[1])


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.int64, np.uint64])
def test_layouts_of_any_integers(dtype):
    a, b = jnp.ones((5, 16), jnp.bfloat16), jnp.ones((3, 8, 16), jnp.bfloat16) * jnp.arange(1, 4)[:, None, None]
    largest = np.iinfo(dtype).max  # in int64 beyond int32: still no group
    layout = np.array([2, 0, largest, 1, 1], dtype)
    got = contiguous("bf16", a, b.astype(jnp.bfloat16), layout)
    np.testing.assert_array_equal(np.asarray(got[:, 0], np.float32), [48, 16, 0, 32, 32])
