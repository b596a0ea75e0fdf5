"""Quantisation to FP4 (e2m1) with one scale for each row and 32 or 128 columns, and back.

`float4_e2m1fn` holds 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. Packed, two are a uint8, the lower half first.
The scale of a block is its largest magnitude over 6; magnitudes under 1e-4 count as 1e-4. To divide by 6, and by the
scale, is to multiply with the float32 nearest to its reciprocal. With scales that are powers of two for each 32 this is
MXFP4 of the OCP Microscaling Formats specification 1.0, but for the scale, which is rounded up so that no value is cut
off.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.ops.casting import NO_GRADIENT, _amax, _ceil_to_ue8m0, _spread
from jax_deepgemm.ops.fp4_casting_plan import SMALLEST_AMAX, plan
from jax_deepgemm.partition import with_explicit_axes
from jax_deepgemm.primitive import make

E2M1_MAX = 6.0
GRANULARITIES = (32, 128)
_WIDE = (jnp.bfloat16, jnp.float16, jnp.float32)


def per_token_cast_to_fp4(x: jax.Array, *, use_ue8m0: bool = False, gran_k: int = 32) -> Quantized:
    """Quantises weights, or activations: one scale for each row and each `gran_k` columns.

    x: bfloat16, float16 or float32 [M, K], of any size.
    use_ue8m0: round scales up to powers of two, kept as float8_e8m0fnu.
    gran_k: 32 or 128, as `fp8_fp4_gemm_nt` takes them.

    Returns data float4_e2m1fn [M, K], rounded to nearest even, and scale float32 (or float8_e8m0fnu)
    [M, ceil(K / gran_k)]. A NaN or Inf in `x` makes the block it is in NaN: its scale is NaN or Inf, its data zeros.

    Raises TypeError or ValueError, naming the argument, where `x` or `gran_k` is none of these, NotImplementedError for
    derivatives, which says how to have rounding count as the identity.

    >>> data, scale = per_token_cast_to_fp4(jnp.ones((4, 64)), use_ue8m0=True)
    >>> data.dtype, scale.shape
    (dtype(float4_e2m1fn), (4, 2))
    """
    x = checks.array("x", x, _WIDE, "M, K")
    gran_k, use_ue8m0 = _checked_granularity(gran_k), checks.flag("use_ue8m0", use_ue8m0)
    return Quantized(*_call(x, gran_k=gran_k, use_ue8m0=use_ue8m0))


def cast_back_from_fp4(
    x: Quantized | tuple[jax.Array, jax.Array], *, gran_k: int | None = None, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Dequantises: `data * scale`, multiplied in float32.

    x: data float4_e2m1fn [M, K], or uint8 [M, K / 2], and scale float32 or float8_e8m0fnu [M, ceil(K / gran_k)].
    gran_k: 32 or 128. By default whichever fits the shapes.

    Returns `dtype` [M, K].

    Raises TypeError or ValueError, naming the argument, for other dtypes or a scale that does not fit.

    >>> cast_back_from_fp4(per_token_cast_to_fp4(jnp.ones((4, 64)))).shape
    (4, 64)
    """
    dtype = checks.numeric_dtype("dtype", dtype)
    data, scale = checks.pair("x", x)
    data = unpacked(checks.array("x", data, [jnp.float4_e2m1fn, jnp.uint8], "M, K"))
    if gran_k is None:
        shape = getattr(scale, "shape", None)
        fitting = (g for g in GRANULARITIES if checks.scale_shape(data.shape, (1, g)) == shape)
        gran_k = next(fitting, GRANULARITIES[0])  # where both fit, they mean the same
    gran_k = _checked_granularity(gran_k)
    shape = checks.scale_shape(data.shape, (1, gran_k))
    scale = checks.array("x.scale", scale, [jnp.float32, jnp.float8_e8m0fnu], ", ".join(map(str, shape)), shape)
    return dequantise_fp4(data, scale, gran_k=gran_k).astype(dtype)


def _checked_granularity(gran_k: int) -> int:
    return checks.one_of("gran_k", gran_k, GRANULARITIES, "32 or 128")


def _abstract_eval(avals: Avals, *, gran_k: int, use_ue8m0: bool) -> list[jax.ShapeDtypeStruct]:
    shape = avals[0].shape
    scale_dtype = jnp.float8_e8m0fnu if use_ue8m0 else jnp.float32
    return [
        jax.ShapeDtypeStruct(shape, jnp.float4_e2m1fn),
        jax.ShapeDtypeStruct(checks.scale_shape(shape, (1, gran_k)), scale_dtype),
    ]


@functools.partial(jax.jit, static_argnames=("gran_k", "use_ue8m0"))
def reference(x: jax.Array, gran_k: int, use_ue8m0: bool) -> list[jax.Array]:
    """What the kernel computes, in plain JAX: the same bits."""
    block = (1, gran_k)
    scale = stored = jnp.maximum(_amax(x, block), SMALLEST_AMAX) * np.float32(1 / E2M1_MAX)
    if use_ue8m0:
        stored = _ceil_to_ue8m0(scale)
        scale = stored.astype(jnp.float32)
    by = _spread(1 / scale, block, x.shape)
    # FP4 has no NaN: zeros stand under a scale that is NaN or Inf.
    scaled = jnp.where(by > 0, x.astype(jnp.float32) * by, 0)
    return [jnp.clip(scaled, -E2M1_MAX, E2M1_MAX).astype(jnp.float4_e2m1fn), stored]


def _factors(avals: Avals, params: Params) -> Factors:
    """Columns in blocks where they divide; where not, they are whole."""
    columns, gran_k = avals[0].shape[1], params["gran_k"]
    if columns % gran_k:
        return Factors("r c -> r c, r cb", whole=("c", "cb"))
    return Factors("r (cb ci) -> r (cb ci), r cb", (("cb", columns // gran_k), ("ci", gran_k)), whole=("ci",))


_call: Any = make(
    Op(
        name="per_token_cast_to_fp4",
        abstract_eval=_abstract_eval,
        reference=reference,
        plan=plan,
        factors=_factors,
        gradient=NO_GRADIENT,
    )
)


@functools.partial(jax.jit, static_argnames="gran_k")
def dequantise_fp4(data: jax.Array, scale: jax.Array, gran_k: int) -> jax.Array:
    """float32 values of float4_e2m1fn data and its scales."""
    # Without the barrier, XLA for GPUs takes a cast and its inverse in the same jit for nothing, and rounds nothing.
    data = jax.lax.optimization_barrier(data)
    return data.astype(jnp.float32) * _spread(scale.astype(jnp.float32), (1, gran_k), data.shape)


def packed(x: jax.Array) -> jax.Array:
    """float4_e2m1fn [..., K], K even, as uint8 [..., K / 2]. On a GPU the same bytes."""
    if x.dtype == jnp.uint8:
        return x

    def pack(v: jax.Array) -> list[jax.Array]:
        return [jax.lax.bitcast_convert_type(v.reshape(*v.shape[:-1], v.shape[-1] // 2, 2), jnp.uint8)]

    return with_explicit_axes(pack, [x], lambda mesh_shape, types: [types[0].sharding.spec])[0]


def unpacked(x: jax.Array) -> jax.Array:
    """uint8 [..., K / 2] as float4_e2m1fn [..., K]."""
    if x.dtype == jnp.float4_e2m1fn:
        return x

    def unpack(v: jax.Array) -> list[jax.Array]:
        return [jax.lax.bitcast_convert_type(v, jnp.float4_e2m1fn).reshape(*v.shape[:-1], v.shape[-1] * 2)]

    return with_explicit_axes(unpack, [x], lambda mesh_shape, types: [types[0].sharding.spec])[0]
