"""Products of rows that come in groups with weights of each group, with derivatives: beneath `ragged_dot`, `moe_mlp`.

Two products are each other's transposes: one multiplies the rows of each group with a matrix of the group, the other
sums outer products of rows over each group. In FP8 the recipe is that of `fp8_linear`, but the gradient of the weights
is a product of BF16 matrices: casts in which each group begins with a block of its own take about the time that FP8
would save.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.ops.casting import SMALLEST_AMAX, quantise
from jax_deepgemm.ops.folding import resize
from jax_deepgemm.ops.k_grouped_bf16_gemm import k_grouped_bf16_gemm_tn_contiguous
from jax_deepgemm.ops.m_grouped_bf16_gemm import m_grouped_bf16_gemm_nn_contiguous, m_grouped_bf16_gemm_nt_contiguous
from jax_deepgemm.ops.m_grouped_fp8_gemm import m_grouped_fp8_gemm_nn_contiguous, m_grouped_fp8_gemm_nt_contiguous
from jax_deepgemm.ops.stacked_casting import quantise_stack
from jax_deepgemm.ops.varying import gradient_of

Recipe = tuple[tuple[int, int], tuple[int, int]]  # what shares a scale, of the first operand and of the second
BF16 = jnp.dtype(jnp.bfloat16)
_MULTIPLE = 16  # of the elements of a row of FP8
# The casts count what is under 1e-4 as 1e-4. Gradients of a mean over many tokens may be far smaller.
_SMALLEST_GRADIENT = SMALLEST_AMAX * 2.0**-32
_BF16_GEMMS = {"nt": m_grouped_bf16_gemm_nt_contiguous, "nn": m_grouped_bf16_gemm_nn_contiguous}


class Groups(NamedTuple):
    """Rows of groups that lie one behind the other: int32 [G], how many each has, and where they end."""

    sizes: jax.Array
    ends: jax.Array


def groups_of(sizes: jax.Array, rows: int) -> Groups:
    """Of sizes that may be anything: negative ones count as 0, and what lies beyond `rows` is cut off."""
    if sizes.dtype.itemsize < 4:
        sizes = sizes.astype(jnp.int32)  # `rows` may be more than such a dtype holds
    sizes = jnp.clip(sizes, 0, rows).astype(jnp.int32)
    return Groups(sizes, jnp.cumsum(sizes, dtype=jnp.int32))


# --- BF16 --------------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def bf16_matmul(a: jax.Array, b: jax.Array, groups: Groups, layout: str, out_dtype: jnp.dtype) -> jax.Array:
    """`a[i] @ b[g].T` ("nt", b [G, N, K]) or `a[i] @ b[g]` ("nn", b [G, K, N]) of the rows i of each group g."""
    return _BF16_GEMMS[layout](a, b, groups.ends, use_psum_layout=True, out_dtype=out_dtype)


def _bf16_matmul_fwd(a: jax.Array, b: jax.Array, groups: Groups, layout: str, out_dtype: jnp.dtype) -> Any:
    return bf16_matmul(a, b, groups, layout, out_dtype), (a, b, groups)


def _bf16_matmul_bwd(layout: str, out_dtype: jnp.dtype, kept: tuple[Any, ...], dy: jax.Array) -> Any:
    a, b, groups = kept
    dy = dy.astype(jnp.bfloat16)
    da: Any = bf16_matmul(dy, b, groups, "nn" if layout == "nt" else "nt", BF16)  # JAX 0.10 types it as object
    db: Any = bf16_outer(dy, a, groups) if layout == "nt" else bf16_outer(a, dy, groups)
    return gradient_of(da, jax.typeof(a)), gradient_of(db, jax.typeof(b)), None


bf16_matmul.defvjp(_bf16_matmul_fwd, _bf16_matmul_bwd)


@jax.custom_vjp
def bf16_outer(a: jax.Array, b: jax.Array, groups: Groups) -> jax.Array:
    """`a_g.T @ b_g` of the rows of each group: bfloat16 [G, M, N] of [R, M] and [R, N]."""
    return k_grouped_bf16_gemm_tn_contiguous(a, b, groups.sizes, out_dtype=jnp.bfloat16)


def _bf16_outer_fwd(a: jax.Array, b: jax.Array, groups: Groups) -> Any:
    return bf16_outer(a, b, groups), (a, b, groups)


def _bf16_outer_bwd(kept: tuple[Any, ...], d: jax.Array) -> Any:
    a, b, groups = kept
    da: Any = bf16_matmul(b, d, groups, "nt", BF16)
    db: Any = bf16_matmul(a, d, groups, "nn", BF16)
    return gradient_of(da, jax.typeof(a)), gradient_of(db, jax.typeof(b)), None


bf16_outer.defvjp(_bf16_outer_fwd, _bf16_outer_bwd)


# --- FP8 ---------------------------------------------------------------------------------------------------------


def fp8_matmul(x: jax.Array, w: jax.Array | Quantized, groups: Groups, layout: str, out_dtype: jnp.dtype) -> jax.Array:
    """As `bf16_matmul`, of BF16 or FP32 operands that are quantised here, or of weights [G, N, K] that are already."""
    if isinstance(w, Quantized):
        return _fp8_matmul(x, without_gradient(w), groups, layout, out_dtype, None)
    return _fp8_matmul(x, w, groups, layout, out_dtype, jax.typeof(w))


# of_w: the type of `w`, which its gradient must have; None where it has none.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _fp8_matmul(
    x: jax.Array,
    w: jax.Array | Quantized,
    groups: Groups,
    layout: str,
    out_dtype: jnp.dtype,
    of_w: ShapedArray | None,
) -> jax.Array:
    del of_w
    return _forward(x, w, groups, layout, out_dtype, False)[0]


def _fp8_matmul_fwd(
    x: jax.Array,
    w: jax.Array | Quantized,
    groups: Groups,
    layout: str,
    out_dtype: jnp.dtype,
    of_w: ShapedArray | None,
) -> Any:
    del of_w
    y, back = _forward(x, w, groups, layout, out_dtype, True)
    return y, (x, back, groups)


def _forward(
    x: jax.Array, w: jax.Array | Quantized, groups: Groups, layout: str, out_dtype: jnp.dtype, keep: bool
) -> tuple[jax.Array, Quantized | None]:
    """The product, and the weights as the backward pass needs them: both casts are one, of one read."""
    if isinstance(w, Quantized):
        n, forward, back = w.data.shape[1], w, w
    else:
        n = w.shape[1 if layout == "nt" else 2]
        casts = quantise_stack(_padded(w), straight=layout == "nt" or keep, turned=layout == "nn" or keep)
        forward, back = (casts[0], casts[-1]) if layout == "nt" else (casts[-1], casts[0])
    (rows,) = quantise(_padded(x), straight=(1, 128))
    y = m_grouped_fp8_gemm_nt_contiguous(rows, forward, groups.ends, use_psum_layout=True, out_dtype=out_dtype)
    return resize(y, (x.shape[0], n)), back if keep else None


def _fp8_matmul_bwd(
    layout: str, out_dtype: jnp.dtype, of_w: ShapedArray | None, kept: tuple[Any, ...], dy: jax.Array
) -> Any:
    x, w, groups = kept
    (rows,) = quantise(_padded(dy), straight=(1, 128), smallest_amax=_SMALLEST_GRADIENT)
    product = m_grouped_fp8_gemm_nn_contiguous if of_w is None else m_grouped_fp8_gemm_nt_contiguous
    dx = product(rows, w, groups.ends, use_psum_layout=True, out_dtype=x.dtype)
    dx = gradient_of(dx, jax.typeof(x))
    if of_w is None:
        return dx, None, None
    a, b = (dy, x) if layout == "nt" else (x, dy)
    a, b = (_padded(v).astype(jnp.bfloat16) for v in (a, b))
    dw = k_grouped_bf16_gemm_tn_contiguous(a, b, groups.sizes, out_dtype=of_w.dtype)
    return dx, gradient_of(dw, of_w), None


_fp8_matmul.defvjp(_fp8_matmul_fwd, _fp8_matmul_bwd)


def _padded(x: jax.Array) -> jax.Array:
    """With whole rows of 16 bytes of FP8, as they lie and transposed; the number of rows of a matrix is free."""
    first, *sizes = x.shape
    return resize(x, (first, *(-(-size // _MULTIPLE) * _MULTIPLE for size in sizes)))


@jax.custom_jvp
def without_gradient(w: Quantized) -> Quantized:
    return w


@without_gradient.defjvp
def _refused(*_: Any) -> Any:
    raise NotImplementedError("weights that are quantised already have no gradient: use jax.lax.stop_gradient on them")


def checked_recipe(recipe: Any, known: Any) -> bool:
    """Whether a recipe is given; there is one."""
    checks.recipe(recipe, [known])
    return recipe is not None
