"""A small block of experts, and device data that is nonsense, by all kernels around grouped GEMMs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_deepgemm import cast_back_from_fp8, moe_permute, moe_unpermute
from jax_deepgemm.ops.m_grouped_fp8_gemm_swiglu import m_grouped_fp8_gemm_swiglu
from jax_deepgemm.ops.moe_rows import permute_rows, permute_rows_to_fp8, row_dots, unpermute_rows
from jax_deepgemm.ops.stacked_casting import quantise_stack
from jax_deepgemm.ops.swiglu import swiglu_to_fp8
from tests import m_grouped, moe
from tests.gpu.native import native
from tests.helpers import relative_error


def check() -> None:
    idx, weights = moe.routed(0, 33, 3, 5)
    x, dy = (jnp.asarray(moe.normal(i, 33, 136), jnp.bfloat16) for i in range(2))

    def step(x: jax.Array, weights: jax.Array, idx: jax.Array, dy: jax.Array) -> Any:
        def block(x: jax.Array, weights: jax.Array) -> jax.Array:
            y, permutation = moe_permute(x, idx, 5)
            return moe_unpermute(y, permutation, weights)

        return moe.step_of(block, x, weights, dy)

    got = native(step, x, weights, idx, dy, calls=6)(x, weights, idx, dy)
    known = (np.asarray(idx) >= 0) & (np.asarray(idx) < 5)
    share = np.where(known, np.asarray(weights, np.float64), 0).sum(1, keepdims=True)
    x64, dy64 = (np.asarray(v).astype(np.float64) for v in (x, dy))
    dots = np.where(known, (x64 * dy64).sum(1, keepdims=True), 0)
    for g, wanted in zip(got, (share * x64, share * dy64, dots), strict=True):
        assert relative_error(g, wanted) < 5e-3

    rows = jnp.asarray(np.random.default_rng(0).integers(-(2**31), 2**31 - 1, (33, 3)), jnp.int32)
    y, h, w = (
        jnp.ones((99, 136), jnp.bfloat16),
        jnp.ones((33, 272), jnp.bfloat16),
        jnp.ones((2, 130, 140), jnp.bfloat16),
    )

    def rest(x: jax.Array, y: jax.Array, rows: jax.Array, h: jax.Array, w: jax.Array) -> Any:
        moved = permute_rows(x, rows), unpermute_rows(y, rows), row_dots(x, y, rows)
        x16 = jnp.pad(x, ((0, 0), (0, 8)))
        return moved, permute_rows_to_fp8(x16, rows), swiglu_to_fp8(h), quantise_stack(w, straight=True, turned=True)

    (_, total, dots), *_ = native(rest, x, y, rows, h, w, calls=6)(x, y, rows, h, w)
    assert not np.asarray(total).astype(np.float32).any() and not np.asarray(dots).any()

    # More tiles than CTAs; groups that end inside of tiles, and ends that are nonsense.
    ends = jnp.asarray([70, -5, 2**31 - 1, 60], jnp.int32)
    a, b = m_grouped.operands(520, 512, 400, 4)
    got = native(lambda *v: m_grouped_fp8_gemm_swiglu(*v, jnp.dtype(jnp.bfloat16)), a, b, ends)(a, b, ends)
    gated = moe.swiglu(m_grouped.oracle(*m_grouped.dequantised(a, b), np.repeat([0, 2], [70, 450])))
    assert relative_error(cast_back_from_fp8(got), gated) < 0.05
