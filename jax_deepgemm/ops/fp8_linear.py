"""A linear layer that trains in FP8: operands quantised inside, gradients by FP8 GEMMs.

The recipe is that of DeepSeek-V3 (arXiv:2412.19437, section 3.3). Activations and output gradients have one scale for
each (1, 128), weights one for each (128, 128). The gradient of the weights sums over tokens: there both operands have
one scale for each 128 tokens, and the sum stays in float32.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.ops.casting import per_block_cast_to_fp8, per_channel_cast_to_fp8, per_token_cast_to_fp8
from jax_deepgemm.ops.folding import merge, reshard, resize, spec, split
from jax_deepgemm.ops.fp8_gemm import fp8_gemm_nn, fp8_gemm_nt
from jax_deepgemm.ops.fp8_gemm_plan import ROW_RECIPE

DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
_WEIGHT_BLOCK = (128, 128)
_MULTIPLE = 16  # of what a GEMM sums over: K in the forward pass, N for `dx`, M for `dw`
_LIFT = 2.0**32


def fp8_linear(
    x: jax.Array, w: jax.Array | Quantized | tuple[jax.Array, jax.Array], *, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """`x @ w.T` with both operands quantised to FP8, and with gradients computed in FP8 too.

    x: bfloat16 or float32 [..., K].
    w: bfloat16 or float32 [N, K], as `equinox.nn.Linear` keeps it. Flax keeps its kernels [K, N]: use
        `fp8_dot_general` there, or `fp8_linear(x, kernel.T)`, which is the same. Or weights quantised already, as by
        `per_block_cast_to_fp8(w)`: data float8_e4m3fn [N, K] and scale [ceil(N / 128), ceil(K / 128)].
    out_dtype: bfloat16 or float32; None is the dtype of `x`.

    Returns `out_dtype` [..., N]. The gradients are `dx = dy @ w`, with the FP8 weights of the forward pass, and
    `dw = dy.T @ x`, summed in float32 and returned in the dtypes of `x` and `w`. Rounding to FP8 counts as the
    identity. The backward pass keeps `x` as it is, and `w` in FP8.

    Sizes are free, zero included. What is no multiple of 16 is padded with zeros inside, which copies weights that are
    quantised already at every call. Multiples of 128 are fastest.

    Over several devices `fp8_gemm_nt` says what is sharded and what is gathered: N, K, and for `dw` the tokens of each
    device, should be multiples of 128. Shard only the first of several leading dimensions, or use `shard_map`: they
    become one, and XLA may gather where another is sharded. Where `w` is the same for all, leading dimensions are also
    far better than `vmap`, under which `dw` is computed in a loop.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes. Raises NotImplementedError for
    second derivatives, and for the gradient of quantised weights: stop it with `jax.lax.stop_gradient(w)`. That of `x`
    is there with quantised weights too.

    >>> x, w = jnp.ones((2, 5, 256)), jnp.ones((384, 256))
    >>> fp8_linear(x, w).shape
    (2, 5, 384)
    """
    x = _checked_x(x)
    k = x.shape[-1]
    if isinstance(w, tuple):
        weights = checks.quantized("w", w, "N, K", _WEIGHT_BLOCK)
    else:
        weights = checks.array("w", w, DTYPES, "N, K")
    matrix = weights.data if isinstance(weights, Quantized) else weights
    if matrix.shape[1] != k:
        checks.fail(ValueError, "w", f"of shape (N, {k}) with the K of `x`", matrix)
    dtype = checks.dtype("out_dtype", x.dtype if out_dtype is None else out_dtype, DTYPES, "bfloat16, float32 or None")
    y = matmul_nt(merge(x, (x.ndim - 1, 1)), weights, dtype)
    return split(y, 0, x.shape[:-1], spec(x)[:-1])


def matmul_nt(x: jax.Array, w: jax.Array | Quantized, out_dtype: jnp.dtype) -> jax.Array:
    """`x @ w.T` of matrices that have been checked."""
    if isinstance(w, Quantized):
        return _matmul_nt(x, _without_gradient(w), out_dtype, _Types(jax.typeof(x), None))
    return _matmul_nt(x, w, out_dtype, _Types(jax.typeof(x), jax.typeof(w)))


def _checked_x(x: Any) -> jax.Array:
    wanted = "bfloat16 or float32 of shape (..., K)"
    if not isinstance(x, (jax.Array, np.ndarray)) or x.dtype not in DTYPES:
        checks.fail(TypeError, "x", wanted, x)
    if x.ndim == 0:
        checks.fail(ValueError, "x", wanted, x)
    return jnp.asarray(x)


class _Types(NamedTuple):
    """Types of the operands, which their gradients must have. No `w` where it has no gradient."""

    x: ShapedArray
    w: ShapedArray | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul_nt(x: jax.Array, w: jax.Array | Quantized, out_dtype: jnp.dtype, types: _Types) -> jax.Array:
    result: Any = _forward(x, w, out_dtype)
    return result[0]


def _matmul_nt_fwd(x: jax.Array, w: jax.Array | Quantized, out_dtype: jnp.dtype, types: _Types) -> Any:
    result: Any = _forward(x, w, out_dtype)
    y, quantised = result
    return y, (x, quantised)


def _matmul_nt_bwd(out_dtype: jnp.dtype, types: _Types, kept: tuple[jax.Array, Quantized], dy: jax.Array) -> Any:
    return _backward(dy, *kept, types)


_matmul_nt.defvjp(_matmul_nt_fwd, _matmul_nt_bwd)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _forward(x: jax.Array, w: jax.Array | Quantized, out_dtype: jnp.dtype) -> tuple[jax.Array, Quantized]:
    """The product, and the weights for the backward pass: quantised, padded."""
    if isinstance(w, Quantized):
        n = w.data.shape[0]
        quantised = Quantized(_padded(w.data), w.scale)  # no more blocks than before: 16 divides 128
    else:
        n = w.shape[0]
        quantised = per_block_cast_to_fp8(_padded(w))
    x = resize(x, (x.shape[0], quantised.data.shape[1]))
    y = fp8_gemm_nt(per_token_cast_to_fp8(x), quantised, out_dtype=out_dtype)
    return resize(y, (x.shape[0], n)), quantised


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _backward(dy: jax.Array, x: jax.Array, w: Quantized, types: _Types) -> tuple[jax.Array, jax.Array | None]:
    # The casts count what is under 1e-4 as 1e-4, and gradients of a mean over many tokens may be far smaller. So `dy`
    # is cast multiplied by a power of two, and its scales divided by it.
    dy = _padded(dy) * jnp.asarray(_LIFT, dy.dtype)
    summed = (_varying(dy) | _varying(w.data)) - types.x.manual_axis_type.varying
    dx = fp8_gemm_nn(_lowered(per_token_cast_to_fp8(dy)), w, out_dtype=jnp.float32 if summed else types.x.dtype)
    if types.w is None:
        return _gradient(dx, types.x), None
    summed = (_varying(dy) | _varying(x)) - types.w.manual_axis_type.varying
    dw = fp8_gemm_nt(
        _lowered(per_channel_cast_to_fp8(dy)),
        per_channel_cast_to_fp8(_padded(x)),
        recipe=ROW_RECIPE,
        out_dtype=jnp.float32 if summed else types.w.dtype,
    )
    return _gradient(dx, types.x), _gradient(dw, types.w)


@jax.custom_jvp
def _without_gradient(w: Quantized) -> Quantized:
    return w


def _refuse(message: str) -> Any:
    def rule(*_: Any) -> Any:
        raise NotImplementedError(message)

    return rule


_second = "fp8_linear and fp8_dot_general have first derivatives only, in reverse mode"
_forward.defjvp(_refuse(_second))
_backward.defjvp(_refuse(_second))
_without_gradient.defjvp(
    _refuse("fp8_linear has no gradient of weights that are quantised already: use jax.lax.stop_gradient(w)")
)


def _padded(x: jax.Array) -> jax.Array:
    return resize(x, [size + -size % _MULTIPLE for size in x.shape])


def _lowered(x: Quantized) -> Quantized:
    return Quantized(x.data, x.scale / _LIFT)


def _varying(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _gradient(value: jax.Array, wanted: ShapedArray) -> jax.Array:
    """`value` as the gradient of an operand of the type `wanted`, cut to its shape.

    Under shard_map, an operand that all devices share has the sum of their gradients.
    """
    value = resize(value, wanted.shape)
    axes = _varying(value) - wanted.manual_axis_type.varying
    if axes:
        value = jax.lax.psum(value, tuple(sorted(axes)))
    return reshard(value.astype(wanted.dtype), wanted.sharding)
