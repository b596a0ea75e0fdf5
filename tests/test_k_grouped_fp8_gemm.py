"""k_grouped_fp8_gemm_tn_contiguous and its cast by reference: against float64, odd and wrong sizes, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import GemmConfig1d1d, fp8_gemm_nt
from jax_deepgemm import k_grouped_cast_to_fp8 as cast
from jax_deepgemm import k_grouped_fp8_gemm_tn_contiguous as gemm
from tests.helpers import ROWS, assert_close
from tests.helpers import quantised as by_numpy
from tests.k_grouped import SIZES, bounds, in_few_shapes, matrices, quantised_oracle, sizes

BF16, F32, E4M3 = jnp.bfloat16, jnp.float32, jnp.float8_e4m3fn
OUT_DTYPES = pytest.mark.parametrize("out_dtype", [BF16, F32])
EVERY = pytest.mark.parametrize("ks, k", in_few_shapes(SIZES).values(), ids=SIZES)


@functools.cache
def quantised(m, n, ks, k, seed=0):
    return [cast(x, sizes(ks)) for x in matrices(m, n, k, seed)]


def check(d, wanted):
    if wanted.any():
        assert_close(d, wanted)
    else:
        np.testing.assert_array_equal(np.asarray(d), wanted)


# --- the cast ------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_each_group_is_cast_by_channel(ks, k, use_ue8m0):
    (x, _) = matrices(24, 8, k)
    data, scale = (np.asarray(v) for v in cast(x, sizes(ks), use_ue8m0=use_ue8m0))
    extent = (k + 127 * min(len(ks), k)) // 128 * 128 if ks else 0
    assert (data.shape, scale.shape) == ((24, extent), (24, extent // 128))
    at = 0
    for start, end in bounds(ks, k):
        wanted = by_numpy(np.asarray(x)[start:end].T, (1, 128), use_ue8m0)
        blocks = wanted.scale.shape[1]
        np.testing.assert_array_equal(data[:, at : at + end - start], wanted.data)
        np.testing.assert_array_equal(scale[:, at // 128 : at // 128 + blocks], wanted.scale)
        assert not data[:, at + end - start : at + blocks * 128].astype(np.float32).any()
        at += blocks * 128
    assert not data[:, at:].astype(np.float32).any()
    assert np.isfinite(scale[:, at // 128 :].astype(np.float32)).all()


def test_one_group_of_whole_blocks_needs_no_more_room():
    x, _ = matrices(16, 8, 256)
    assert cast(x, sizes([256])).data.shape == (16, 256)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_of_the_cast(axes):
    xs, all_ks = [matrices(16, 8, 64, s)[0] for s in range(2)], [(20, 30), (0, 64)]
    args = [
        jnp.stack(xs) if axes[0] == 0 else xs[0],
        jnp.stack(list(map(sizes, all_ks)))[0 if axes[1] is None else ...],
    ]
    got = jax.vmap(cast, axes)(*args)
    for i in range(2):
        wanted = cast(xs[i if axes[0] == 0 else 0], sizes(all_ks[i if axes[1] == 0 else 0]))
        jax.tree.map(lambda g, w, i=i: np.testing.assert_array_equal(g[i], w), got, wanted)


# --- the GEMM ------------------------------------------------------------------------------------------------------


@EVERY
@OUT_DTYPES
def test_against_float64(ks, k, out_dtype):
    a, b = quantised(24, 40, ks, k)
    d = gemm(a, b, sizes(ks), out_dtype=out_dtype)
    assert (d.shape, d.dtype) == ((len(ks), 24, 40), out_dtype)
    for mine, right in zip(d, quantised_oracle(a, b, ks, k), strict=True):
        check(mine, right)


@EVERY
@OUT_DTYPES
def test_c_is_added(ks, k, out_dtype):
    a, b = quantised(24, 40, ks, k)
    c = (20 * jax.random.normal(jax.random.key(5), (len(ks), 24, 40))).astype(out_dtype)
    check(gemm(a, b, sizes(ks), c, out_dtype=out_dtype), quantised_oracle(a, b, ks, k) + np.asarray(c, np.float64))


def test_one_group_is_the_dense_gemm():
    a, b = quantised(24, 40, (300,), 300)
    d = fp8_gemm_nt(a, b, recipe=ROWS, out_dtype=F32)
    assert_close(gemm(a, b, sizes([300]))[0], np.asarray(d).astype(np.float64))


@pytest.mark.parametrize("m, n", [(0, 16), (16, 0), (0, 0), (3, 12)])
def test_free_sizes(m, n):
    a, b = quantised(m, n, (10, 22), 32)
    assert gemm(a, b, sizes([10, 22])).shape == (2, m, n)


def test_nan_stays_in_its_group_row_and_column():
    ks, k = (35, 2, 43), 100
    a, b = (np.array(x) for x in matrices(24, 40, k))
    a[35, 3] = b[36, 7] = np.nan
    a[90], b[91] = np.nan, np.nan  # of no group
    finite = np.isfinite(np.asarray(gemm(*(cast(jnp.asarray(x), sizes(ks)) for x in (a, b)), sizes(ks))))
    assert finite[[0, 2]].all()
    assert not finite[1, 3].any() and not finite[1, :, 7].any()
    assert np.delete(np.delete(finite[1], 3, 0), 7, 1).all()


A, B = quantised(16, 24, (30, 34), 64)
KS = sizes([30, 34])
RAW = jnp.zeros((16, 100), E4M3), jnp.zeros((16, 1))


@pytest.mark.parametrize(
    "function, kind, message",
    [
        (lambda: gemm(A.data, B, KS), TypeError, r"`a` must be a \(data, scale\) pair"),
        (
            lambda: gemm((A.data.astype(BF16), A.scale), B, KS),
            TypeError,
            r"`a` must be float8_e4m3fn of shape \(M, P\)",
        ),
        (lambda: gemm(A, (B.data, B.scale[:, :1]), KS), ValueError, r"`b.scale` must be .* of shape \(24, 2\)"),
        (lambda: gemm(RAW, RAW, KS), ValueError, r"`a` must be of shape \(M, P\) with P a multiple of 128"),
        (
            lambda: gemm(A, quantised(8, 8, (99,) * 3, 300)[0], KS),
            ValueError,
            r"`b` must be of shape \(N, 256\) with the P",
        ),
        (lambda: gemm(A, (B.data[:22], B.scale[:22]), KS), ValueError, "N a multiple of 4 for float32 out"),
        (lambda: gemm(A, B, [30, 34]), TypeError, r"`ks` must be integers of shape \(G\), got list"),
        (
            lambda: gemm(A, B, KS, jnp.zeros((2, 16, 16))),
            ValueError,
            r"`c` must be float32 of shape \(2, 16, 24\), got",
        ),
        (lambda: gemm(A, B, KS, config=GemmConfig1d1d(64, 64, split_k=2)), ValueError, "clusters of one CTA"),
        (lambda: cast(A.data, KS), TypeError, r"`x` must be bfloat16 or float16 or float32 of shape \(K, M\)"),
        (lambda: cast(jnp.zeros((4, 4)), KS[0]), ValueError, r"`ks` must be integers of shape \(G\), got int32\[\]"),
        (
            lambda: jax.grad(lambda s: gemm((A.data, s), B, KS).sum())(A.scale),
            NotImplementedError,
            "k_grouped_fp8_gemm_tn_contiguous cannot be differentiated: quantised operands",
        ),
    ],
)
def test_errors(function, kind, message):
    with pytest.raises(kind, match=message):
        function()


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(axes):
    ks = (20, 30, 9)
    pairs = [quantised(16, 24, ks, 64, seed) for seed in range(2)]
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *(p[i] for p in pairs)) for i in range(2)]
    args = [stacked[i] if axis == 0 else pairs[0][i] for i, axis in enumerate(axes)]
    function = jax.vmap(lambda a, b: gemm(a, b, sizes(ks)), axes)
    for i in range(2):
        a, b = (pairs[i if axes[j] == 0 else 0][j] for j in range(2))
        check(function(*args)[i], quantised_oracle(a, b, ks, 64))
    assert ("scan[" in str(jax.make_jaxpr(function)(*args))) == (axes == (0, 0))
