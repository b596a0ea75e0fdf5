"""What the m-grouped GEMMs of FP8 activations share, whatever their weights are.

Operands of the primitives: a's data and scale, b's data and scale, and the layout or masked_m.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm.checks import Quantized
from jax_deepgemm.op import Avals, Layouts, Params
from jax_deepgemm.ops.casting import dequantise
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE
from jax_deepgemm.ops.m_grouped_reference import by_groups, groups_of_rows, zero_beyond

NO_GRADIENT = "quantised operands have no gradients; differentiate around it with jax.custom_vjp"
ACTIVATIONS = RECIPE[0]  # what of `a` shares a scale
Values = Callable[[jax.Array, jax.Array], jax.Array]  # data and scale of a group's weights -> float32 [N, K]


def abstract_eval(avals: Avals, *, out_dtype: jnp.dtype, **_: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((*avals[0].shape[:-1], avals[2].shape[1]), out_dtype)]


def operand_layouts(avals: Avals, params: Params) -> Layouts:
    """A's scales with the rows fastest, as for the dense GEMMs, and K slowest."""
    return [None, (0, 1) if avals[0].ndim == 2 else (1, 0, 2), None, None, None]


def contiguous(values: Values, operands: tuple[jax.Array, ...], use_psum_layout: bool) -> jax.Array:
    """The reference, float32 [M, N]."""
    a, a_scale, b, b_scale, layout = operands
    rows = dequantise(Quantized(a, a_scale), block=ACTIVATIONS)

    def product(at: jax.Array, g: jax.Array) -> jax.Array:
        return _dot(rows[at], values(b[g], b_scale[g]))

    group = groups_of_rows(layout, a.shape[0], b.shape[0], use_psum_layout=use_psum_layout)
    return by_groups(product, group, b.shape[0], b.shape[1])


def masked(values: Values, operands: tuple[jax.Array, ...]) -> jax.Array:
    """The reference, float32 [G, Mmax, N]; zeros where the result is undefined."""

    def product(group: tuple[jax.Array, ...]) -> jax.Array:
        a, a_scale, b, b_scale = group
        return _dot(dequantise(Quantized(a, a_scale), block=ACTIVATIONS), values(b, b_scale))

    return zero_beyond(jax.lax.map(product, operands[:4]), operands[4])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b.T`"""
    dims = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision="highest", preferred_element_type=jnp.float32)
