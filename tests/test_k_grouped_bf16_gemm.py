"""k_grouped_bf16_gemm_tn_contiguous by reference: against float64, odd and wrong sizes, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import k_grouped_bf16_gemm_tn_contiguous as gemm
from tests.helpers import BOUNDS, assert_close, relative_error
from tests.k_grouped import SIZES, in_few_shapes, matrices, oracle, sizes

BF16, F32 = jnp.bfloat16, jnp.float32
OUT_DTYPES = pytest.mark.parametrize("out_dtype", [BF16, F32])
EVERY = pytest.mark.parametrize("ks, k", in_few_shapes(SIZES).values(), ids=SIZES)


def check(d, wanted):
    if wanted.any():
        assert_close(d, wanted)
    else:
        np.testing.assert_array_equal(np.asarray(d), wanted)


@EVERY
@OUT_DTYPES
def test_against_float64(ks, k, out_dtype):
    a, b = matrices(24, 40, k)
    d = gemm(a, b, sizes(ks), out_dtype=out_dtype)
    assert (d.shape, d.dtype) == ((len(ks), 24, 40), out_dtype)
    wanted = oracle(a, b, ks)
    for mine, right in zip(d, wanted, strict=True):
        check(mine, right)


@EVERY
@OUT_DTYPES
def test_c_is_added(ks, k, out_dtype):
    a, b = matrices(24, 40, k)
    c = (20 * jax.random.normal(jax.random.key(5), (len(ks), 24, 40))).astype(out_dtype)
    check(gemm(a, b, sizes(ks), c, out_dtype=out_dtype), oracle(a, b, ks, c))


def test_result_is_float32_unless_asked():
    assert gemm(*matrices(8, 8, 16), sizes([16])).dtype == F32


@pytest.mark.parametrize("m, n", [(0, 16), (16, 0), (0, 0)])
def test_empty(m, n):
    assert gemm(*matrices(m, n, 32), sizes([10, 22])).shape == (2, m, n)


def test_numpy_and_jit_give_the_same_bits():
    a, b = matrices(16, 24, 100)
    ks = sizes([30, 50])
    wanted = np.asarray(gemm(a, b, ks))
    for got in (gemm(np.asarray(a), np.asarray(b), np.asarray(ks)), jax.jit(gemm)(a, b, ks)):
        np.testing.assert_array_equal(np.asarray(got), wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_stay_in_their_group_row_and_column(bad):
    a, b = (np.array(x) for x in matrices(24, 40, 100))
    a[35, 3] = bad
    b[36, 7] = bad
    a[90], b[91] = bad, bad  # of no group
    finite = np.isfinite(np.asarray(gemm(jnp.asarray(a), jnp.asarray(b), sizes([35, 2, 43]))))
    assert finite[[0, 2]].all()
    assert not finite[1, 3].any() and not finite[1, :, 7].any()
    assert np.delete(np.delete(finite[1], 3, 0), 7, 1).all()


def test_the_bound_catches_wrong_results():
    a, b = matrices(128, 256, 512)
    ks = (200, 312)
    wanted = oracle(a, b, ks)
    wrong = {
        "a row too few": oracle(a, b, (199, 313)),
        "groups exchanged": wanted[::-1],
        "one of K left out": oracle(a[1:], b[1:], (199, 312)),
        "one tile zero": wanted * (np.arange(256) < 248),
    }
    errors = {name: relative_error(d, wanted) for name, d in wrong.items()}
    assert min(errors.values()) > BOUNDS[jnp.dtype(BF16)], errors


A, B, KS = jnp.zeros((64, 16), BF16), jnp.zeros((64, 24), BF16), sizes([30, 34])


@pytest.mark.parametrize(
    "function, kind, message",
    [
        (
            lambda: gemm(A.astype(F32), B, KS),
            TypeError,
            r"`a` must be bfloat16 of shape \(K, M\), got float32\[64,16\]",
        ),
        (lambda: gemm(A, 3.0, KS), TypeError, r"`b` must be bfloat16 of shape \(K, N\), got float"),
        (lambda: gemm(A[0], B, KS), ValueError, r"`a` must be bfloat16 of shape \(K, M\), got bfloat16\[16\]"),
        (lambda: gemm(A, B[:8], KS), ValueError, r"`b` must be of shape \(64, N\) with the K of `a`"),
        (lambda: gemm(A[:, :9], B, KS), ValueError, r"`a` must be of shape \(K, M\) with M a multiple of 8"),
        (lambda: gemm(A, B[:, :9], KS), ValueError, r"`b` must be of shape \(K, N\) with N a multiple of 8"),
        (lambda: gemm(A, B, [30, 34]), TypeError, r"`ks` must be integers of shape \(G\), got list"),
        (lambda: gemm(A, B, KS.astype(F32)), TypeError, r"`ks` must be integers of shape \(G\), got float32\[2\]"),
        (lambda: gemm(A, B, KS[None]), ValueError, r"`ks` must be integers of shape \(G\), got int32\[1,2\]"),
        (lambda: gemm(A, B, KS, out_dtype=jnp.float16), TypeError, "`out_dtype` must be float32 or bfloat16"),
        (
            lambda: gemm(A, B, KS, jnp.zeros((2, 16, 24), BF16)),
            TypeError,
            r"`c` must be float32 of shape \(2, 16, 24\)",
        ),
        (lambda: gemm(A, B, KS, jnp.zeros((16, 24))), ValueError, r"`c` must be float32 of shape \(2, 16, 24\), got"),
    ],
)
def test_errors(function, kind, message):
    with pytest.raises(kind, match=message):
        function()


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, None), (0, 0, 0)])
def test_vmap(axes):
    """Whatever is batched; of M or N alone, in one launch."""
    ab = [matrices(16, 24, 64, seed) for seed in range(2)]
    all_ks = [(20, 30, 9), (0, 40, 24)]
    stacked = [jnp.stack([x[0] for x in ab]), jnp.stack([x[1] for x in ab]), jnp.stack([sizes(s) for s in all_ks])]
    single = [*ab[0], sizes(all_ks[0])]
    args = [stacked[i] if axis == 0 else single[i] for i, axis in enumerate(axes)]
    d = jax.vmap(gemm, axes)(*args)
    for i in range(2):
        a, b = (ab[i if axes[j] == 0 else 0][j] for j in range(2))
        check(d[i], oracle(a, b, all_ks[i if axes[2] == 0 else 0]))
    loops = "scan[" in str(jax.make_jaxpr(jax.vmap(gemm, axes))(*args))
    assert loops == (sum(axis == 0 for axis in axes) > 1 or axes[2] == 0)
