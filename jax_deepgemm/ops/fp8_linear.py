"""A linear layer that trains in FP8: operands quantised inside, gradients by FP8 GEMMs.

The recipe is that of DeepSeek-V3 (arXiv:2412.19437, section 3.3). Activations and output gradients have one scale for
each (1, 128), weights one for each (128, 128). The gradient of the weights sums over tokens: there both operands have
one scale for each 128 tokens, and the sum stays in float32.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.ops.casting import SMALLEST_AMAX, quantise
from jax_deepgemm.ops.folding import merge, resize, spec, split
from jax_deepgemm.ops.fp8_gemm import fp8_gemm_nn, fp8_gemm_nt
from jax_deepgemm.ops.fp8_gemm_plan import ROW_RECIPE
from jax_deepgemm.ops.varying import gradient_of, varying

DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))
_WEIGHT_BLOCK, _COLUMNS, _TOKENS = (128, 128), (1, 128), (128, 1)  # what shares a scale
_MULTIPLE = 16  # of what a GEMM sums over: K in the forward pass, N for `dx`, M for `dw`
# The casts count what is under 1e-4 as 1e-4. Gradients of a mean over many tokens may be far smaller.
_SMALLEST_GRADIENT = SMALLEST_AMAX * 2.0**-32


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
    identity. The backward pass keeps `w` in FP8, and `x` too if it has a multiple of 128 rows, else as it is.

    Sizes are free, zero included. What is no multiple of 16 is padded with zeros inside, which copies weights that are
    quantised already at every call. Multiples of 128 are fastest.

    Over several devices `fp8_gemm_nt` says what is sharded and what is gathered: N, K, and for `dw` the tokens of each
    device, should be multiples of 128. Shard only the first of several leading dimensions, or use `shard_map`: they
    become one, and XLA may gather where another is sharded.

    Under `vmap` of `x` and `w` a product is one launch for the batch; that of `dw`, if there are a multiple of 128 rows
    of `x`, else a loop. Where `w` is the same for all, leading dimensions are far better: `vmap` makes a `dw` for each.

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
    result: Any = _forward(x, w, out_dtype, False)
    return result[0]


def _matmul_nt_fwd(x: jax.Array, w: jax.Array | Quantized, out_dtype: jnp.dtype, types: _Types) -> Any:
    result: Any = _forward(x, w, out_dtype, True)
    return result


def _matmul_nt_bwd(out_dtype: jnp.dtype, types: _Types, kept: tuple[Any, Quantized], dy: jax.Array) -> Any:
    return _backward(dy, *kept, types)


_matmul_nt.defvjp(_matmul_nt_fwd, _matmul_nt_bwd)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _forward(x: jax.Array, w: jax.Array | Quantized, out_dtype: jnp.dtype, keep: bool) -> tuple[jax.Array, Any]:
    """The product, and `x` and `w` for the backward pass, padded, if it is to be kept.

    What is quantised here is quantised for both passes at once, by one read: weights [K, N] for the backward pass, and
    `x` [K, M] unless blocks of tokens are cut: casting those moves them to other devices.
    """
    kept_x: Any = x
    if isinstance(w, Quantized):
        n, kept_x = w.data.shape[0], None
        quantised = kept_w = Quantized(_padded(w.data), w.scale)  # no more blocks than before: 16 divides 128
    else:
        n = w.shape[0]
        quantised, *rest = quantise(_padded(w), straight=_WEIGHT_BLOCK, turned=_WEIGHT_BLOCK if keep else None)
        kept_w = rest[0] if rest else None
    x = resize(x, (x.shape[0], quantised.data.shape[1]))
    if keep and kept_x is not None and _in_whole_blocks(x):
        tokens, kept_x = quantise(x, straight=_COLUMNS, turned=_TOKENS)
    else:
        (tokens,) = quantise(x, straight=_COLUMNS)
    y = fp8_gemm_nt(tokens, quantised, out_dtype=out_dtype)
    return resize(y, (x.shape[0], n)), (kept_x, kept_w) if keep else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _backward(
    dy: jax.Array, x: jax.Array | Quantized | None, w: Quantized, types: _Types
) -> tuple[jax.Array, jax.Array | None]:
    """The gradients, of `x` and `w` as `_forward` keeps them: none of `x` and `w` [N, K] where `w` has no gradient."""
    dy = _padded(dy)
    cast = functools.partial(quantise, dy, smallest_amax=_SMALLEST_GRADIENT)
    summed = (varying(dy) | varying(w.data)) - types.x.manual_axis_type.varying
    dx_dtype = jnp.dtype(jnp.float32) if summed else types.x.dtype
    if x is None or types.w is None:
        (rows,) = cast(straight=_COLUMNS)
        return gradient_of(fp8_gemm_nn(rows, w, out_dtype=dx_dtype), types.x), None
    if isinstance(x, Quantized):
        rows, tokens = cast(straight=_COLUMNS, turned=_TOKENS)
    else:
        (rows,), (tokens,), (x,) = cast(straight=_COLUMNS), cast(turned=_TOKENS), quantise(_padded(x), turned=_TOKENS)
    dx = fp8_gemm_nt(rows, w, out_dtype=dx_dtype)
    summed = (varying(dy) | varying(x.data)) - types.w.manual_axis_type.varying
    dw = fp8_gemm_nt(tokens, x, recipe=ROW_RECIPE, out_dtype=jnp.float32 if summed else types.w.dtype)
    return gradient_of(dx, types.x), gradient_of(dw, types.w)


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
    return resize(x, [-(-size // _MULTIPLE) * _MULTIPLE for size in x.shape])


def _in_whole_blocks(x: jax.Array) -> bool:
    """Whether 128 tokens that share a scale are whole, also on each device if the type of `x` says what it has."""
    entry, sizes = spec(x)[0], jax.typeof(x).sharding.mesh.shape
    axes = (entry,) if isinstance(entry, str) else entry or ()
    return x.shape[0] % (_TOKENS[0] * math.prod(sizes[axis] for axis in axes)) == 0
