"""SwiGLU, and SwiGLU quantised to FP8 by one kernel: what stands between the two GEMMs of a gated layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm import checks
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops import casting
from jax_deepgemm.ops.casting_plan import swiglu_plan
from jax_deepgemm.primitive import make


def swiglu(x: jax.Array) -> jax.Array:
    """`silu(gate) * up` of x = [gate, up] [M, 2 I], in float32, rounded to the dtype of `x`: [M, I]."""
    gate, up = jnp.split(x.astype(jnp.float32), 2, axis=1)
    return (jax.nn.silu(gate) * up).astype(x.dtype)


def swiglu_to_fp8(x: jax.Array) -> checks.Quantized:
    """`per_token_cast_to_fp8(swiglu(x))`, but for the last bit of an exponential, by one kernel. No derivative."""
    return checks.Quantized(*_call(x, smallest_amax=casting.SMALLEST_AMAX))


def _abstract_eval(avals: Avals, *, smallest_amax: float) -> list[jax.ShapeDtypeStruct]:
    rows, columns = avals[0].shape
    shape = rows, columns // 2
    scales = checks.scale_shape(shape, (1, casting.TILE))
    return [jax.ShapeDtypeStruct(shape, jnp.float8_e4m3fn), jax.ShapeDtypeStruct(scales, jnp.float32)]


def _reference(x: jax.Array, *, smallest_amax: float) -> list[jax.Array]:
    return casting.reference(swiglu(x), straight=(1, casting.TILE), smallest_amax=smallest_amax)


def _layouts(avals: Avals, params: Params) -> Layouts:
    return [None, (0, 1)]


_call: Any = make(
    Op(
        name="swiglu_to_fp8",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=swiglu_plan,
        result_layouts=_layouts,
        factors=lambda avals, params: Factors("m d -> m i, m b", whole=("d", "i", "b")),
    )
)
