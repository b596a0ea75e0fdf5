"""Grouped GEMMs with operands and results of more than 2^31 elements, and groups that begin beyond that.

Rows repeat a few, in an order that no power of two repeats, so that a CPU can compute what is sampled.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm as jd
from tests.helpers import assert_close, dequantised, operands, relative_error

pytestmark = pytest.mark.gpu

KINDS = pytest.mark.parametrize("kind", ["fp8", "bf16"])
WIDE = 4096
BORDER = 2**31 // WIDE  # the row of element 2^31
HEIGHT = 1024  # of a group that begins there
MANY = BORDER + HEIGHT
FEW = 509  # rows that differ


def pair(kind, m, n, k):
    """[M, K] and [N, K] as the GEMMs take them, and their float64 values."""
    quantised = operands(m, n, k)
    wide = [dequantised(x, block) for x, block in zip(quantised, ((1, 128), (128, 128)), strict=True)]
    if kind == "fp8":
        return quantised, wide
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in wide]
    return rounded, [np.asarray(x, np.float64) for x in rounded]


def order(rows):
    """Which of the few each of these rows is; on the host or on the device."""
    return rows % FEW * 7 % FEW


@KINDS
@pytest.mark.parametrize("form", ["ends", "index", "masked"])
@pytest.mark.parametrize("n, k", [(64, WIDE), (WIDE, 64)], ids=["operand", "result"])
def test_rows(kind, form, n, k):
    ends = np.array([300, MANY // 2, MANY - 300, MANY])
    if form == "masked":
        ends = np.arange(HEIGHT, MANY + 1, HEIGHT)
    groups, distinct = len(ends), 4
    (few, b), (few_wide, b_wide) = pair(kind, FEW, distinct * max(n, 128), k)
    weights = b_wide.reshape(distinct, -1, k)[:, :n]
    of_groups = np.arange(groups) % distinct
    b = jax.tree.map(lambda x: x.reshape(distinct, -1, x.shape[1])[of_groups], b)
    b = (b[0][:, :n], b[1]) if kind == "fp8" else b[:, :n]

    def sampled(few, b, rows):
        a = jax.tree.map(lambda x: x[order(jnp.arange(MANY))], few)
        if form == "masked":
            a = jax.tree.map(lambda x: x.reshape(groups, HEIGHT, -1), a)
            gemm = getattr(jd, f"m_grouped_{kind}_gemm_nt_masked")
            return gemm(a, b, jnp.full(groups, HEIGHT, jnp.int32), HEIGHT).reshape(MANY, n)[rows]
        gemm = getattr(jd, f"m_grouped_{kind}_gemm_nt_contiguous")
        if form == "ends":
            return gemm(a, b, jnp.asarray(ends, jnp.int32), use_psum_layout=True)[rows]
        index = jnp.searchsorted(jnp.asarray(ends), jnp.arange(MANY), side="right")
        return gemm(a, b, index.astype(jnp.int32))[rows]

    around = [0, 127, BORDER - 1, BORDER, BORDER + 1, BORDER + 130, MANY - 1]
    rows = np.unique(np.concatenate([around, ends[[0, 1, -2]], ends[[0, 1, -2]] - 1]))
    mine = weights[of_groups[np.searchsorted(ends, rows, side="right")]]
    got = jax.jit(sampled)(few, b, jnp.asarray(rows))
    assert_close(got, np.einsum("mk,mnk->mn", few_wide[order(rows)], mine))


@pytest.mark.parametrize("kind, layout", [("fp8", "nt"), ("bf16", "nt"), ("bf16", "nn")])
def test_weights(kind, layout):
    """The last two groups begin beyond element 2^31."""
    n, groups, each = 2048, BORDER // 2048 + 2, 3
    (a, few), (rows, few_wide) = pair(kind, groups * each, 512, WIDE)
    blocks = n // 128

    def product(a, few):
        """Blocks of 128 rows of the weights repeat; the scale of each goes with it."""
        at = order(jnp.arange(groups * blocks)) % 4
        data = few if kind == "bf16" else few[0]
        data = data.reshape(4, 128, WIDE)[at].reshape(groups, n, WIDE)
        b = data if kind == "bf16" else (data, few[1][at].reshape(groups, blocks, -1))
        ends = jnp.arange(1, groups + 1, dtype=jnp.int32) * each
        if layout == "nn":
            b = b.swapaxes(1, 2)
        gemm = getattr(jd, f"m_grouped_{kind}_gemm_{layout}_contiguous")
        return gemm(a, b, ends, use_psum_layout=True)

    got = np.asarray(jax.jit(product)(a, few))
    at = order(np.arange(groups * blocks)).reshape(groups, blocks) % 4
    for g in (0, 1, groups // 2, groups - 3, groups - 2, groups - 1):
        weights = few_wide.reshape(4, 128, WIDE)[at[g]].reshape(n, WIDE)
        mine = slice(g * each, (g + 1) * each)
        assert_close(got[mine], rows[mine] @ weights.T)


@KINDS
def test_groups_of_k(kind):
    """The last group begins beyond element 2^31 of A."""
    ks = np.array([BORDER - 5000, 5000 + 77, MANY - BORDER - 77])
    random = np.random.default_rng(0)
    x, y = (jnp.asarray(random.standard_normal((FEW, size)), jnp.bfloat16) for size in (WIDE, 64))

    def product(x, y, ks):
        a, b = (v[order(jnp.arange(MANY))] for v in (x, y))
        if kind == "bf16":
            return jd.k_grouped_bf16_gemm_tn_contiguous(a, b, ks)
        return jd.k_grouped_fp8_gemm_tn_contiguous(*(jd.k_grouped_cast_to_fp8(v, ks) for v in (a, b)), ks)

    d = np.asarray(jax.jit(product)(x, y, jnp.asarray(ks, jnp.int32)))
    x, y = (np.asarray(v, np.float64) for v in (x, y))
    for mine, end, size in zip(d, np.cumsum(ks), ks, strict=True):
        counts = np.bincount(order(np.arange(end - size, end)), minlength=FEW)
        # Tensor cores cut off what they add to long sums, so half a million rows cost BF16 some of its precision.
        assert relative_error(mine, x.T @ (counts[:, None] * y)) < (5e-3 if kind == "bf16" else 0.05)
