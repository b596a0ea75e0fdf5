"""The feed-forward block of a mixture of experts on one device."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.ops import fp4_weights
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE
from jax_deepgemm.ops.grouped_matmul import (
    BF16,
    Groups,
    Recipe,
    bf16_matmul,
    checked_recipe,
    fp8_matmul,
    without_gradient,
)
from jax_deepgemm.ops.m_grouped_fp8_fp4_gemm import m_grouped_fp8_fp4_gemm_nt_contiguous
from jax_deepgemm.ops.m_grouped_fp8_gemm import m_grouped_fp8_gemm_nt_contiguous
from jax_deepgemm.ops.m_grouped_fp8_gemm_swiglu import m_grouped_fp8_gemm_swiglu
from jax_deepgemm.ops.moe_permute import MoePermutation, checked_experts, checked_weights, sorted_by_expert
from jax_deepgemm.ops.moe_rows import permute_rows, permute_rows_to_fp8, unpermute_rows
from jax_deepgemm.ops.stacked_casting import quantise_stack
from jax_deepgemm.ops.swiglu import swiglu, swiglu_to_fp8
from jax_deepgemm.ops.varying import varying_alike

Weights = jax.Array | Quantized | tuple[jax.Array, jax.Array]
_F32 = jnp.dtype(jnp.float32)


def moe_mlp(
    x: jax.Array,
    topk_idx: jax.Array,
    topk_weights: jax.Array,
    w13: Weights,
    w2: Weights,
    *,
    recipe: Recipe | None = None,
) -> jax.Array:
    """Gated MLPs, one an expert, each token through k of them: `sum over j of weight_j * w2 @ (silu(gate) * up)`.

    x: bfloat16 [T, H]; in FP8 float32 too.
    topk_idx: integers [T, k], the experts of each token. Others than 0 to G - 1 are no expert and count nothing: on a
        device that has a part of the experts, subtract the number of its first, and sum the results over devices.
    topk_weights: floats [T, k].
    w13: bfloat16 [G, 2 I, H], the rows of the gate's weights and behind them those of what it gates.
    w2: bfloat16 [G, H, I].
    recipe: None multiplies in BF16. ((1, 128), (128, 128)) multiplies in FP8, activations with a scale for each
        1 x 128 and weights with one for each 128 x 128: BF16 or FP32 weights are quantised inside. Or give both weights
        quantised already, as (data float8_e4m3fn, scale [G, ceil(rows / 128), ceil(columns / 128)]) pairs; or in FP4,
        as `m_grouped_fp8_fp4_gemm_nt_contiguous` takes them, with a scale for each 32 or each 128 columns of a row.

    H and I are multiples of 8, in FP8 of 16; of 32, or FP4 weights run by reference. Returns [T, H] in the dtype of
    `x`. What lies between the products is rounded to that dtype; SwiGLU and sums are computed in float32. No expert
    needs to have any number of tokens, and nothing about them reaches the host. With quantised weights five kernels
    run: the sort; tokens quantised and copied to their experts; the first product, gated and quantised; the second
    product; and the weighted sum. (Six where experts have fewer than 128 tokens on average, I is no multiple of 128, or
    `w13` is in FP4: SwiGLU is then one of its own.)

    It is differentiable in reverse mode with respect to `x`, `topk_weights` and weights that are not quantised already,
    in BF16 to any order; in FP8 rounding counts as the identity, and gradients are as those of `ragged_dot`. With FP4
    weights it is for inference alone.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError for gradients
    of quantised weights, for any with FP4 weights, and for second derivatives in FP8.

    >>> x, topk_idx = jnp.ones((4, 256), jnp.bfloat16), jnp.array([[0, 1], [1, 2], [2, 0], [0, 1]])
    >>> w13, w2 = jnp.ones((3, 2 * 128, 256), jnp.bfloat16), jnp.ones((3, 256, 128), jnp.bfloat16)
    >>> moe_mlp(x, topk_idx, jnp.full((4, 2), 0.5), w13, w2).shape
    (4, 256)
    """
    quantised = isinstance(w13, tuple)
    if isinstance(w2, tuple) != quantised:
        checks.fail(TypeError, "w2", f"{'a (data, scale) pair' if quantised else 'an array'}, as `w13` is", w2)
    fp8 = checked_recipe(recipe, RECIPE) or quantised
    x = checks.array("x", x, (BF16, _F32) if fp8 else (BF16,), "T, H")
    tokens, h = x.shape
    topk_idx = checked_experts("topk_idx", topk_idx, tokens)
    topk_weights = checked_weights("topk_weights", topk_weights, topk_idx.shape)
    w13 = _weights("w13", w13, "G, 2 I, H", quantised, fp8)
    groups, i = _shape(w13)[0], _shape(w13)[1] // 2
    if _shape(w13) != (groups, 2 * i, h):
        checks.fail(ValueError, "w13", f"of shape (G, 2 I, {h}) with the H of `x`", _matrix(w13))
    w2 = _weights("w2", w2, "G, H, I", quantised, fp8)
    if _shape(w2) != (groups, h, i):
        checks.fail(ValueError, "w2", f"of shape ({groups}, {h}, {i}) with the G and I of `w13`", _matrix(w2))
    fp4 = _is_fp4(w13) or _is_fp4(w2)
    if fp4 and recipe is not None:
        checks.fail(ValueError, "recipe", "None with FP4 weights", repr(recipe))
    multiple = 16 if fp8 else 8
    if h % multiple or i % multiple:
        checks.fail(ValueError, "w13", f"of shape (G, 2 I, H) with H and I multiples of {multiple}", _matrix(w13))
    permutation = sorted_by_expert(topk_idx, groups)
    leaves, structure = jax.tree.flatten((x, topk_weights, w13, w2, permutation))
    operands: Any = structure.unflatten(varying_alike(*leaves))
    if fp4:
        operands = _without_gradients(operands)
    elif quantised:
        operands = *operands[:2], *map(without_gradient, operands[2:4]), operands[4]
    product: Any = _in_fp8 if fp8 else _in_bf16
    return product(*operands)


def _weights(name: str, w: Any, dims: str, quantised: bool, fp8: bool) -> Any:
    if not quantised:
        return checks.array(name, w, (BF16, _F32) if fp8 else (BF16,), dims)
    data, scale = pair = checks.pair(name, w)
    if _is_fp4(pair):
        return Quantized(*fp4_weights.checked_weights(name, pair, dims, fp4_weights.recipe_of(data, scale))[:2])
    data = checks.array(name, data, [jnp.float8_e4m3fn], dims)
    shape = (data.shape[0], *checks.scale_shape(data.shape[1:], RECIPE[1]))
    spelled = ", ".join(map(str, shape))
    scale = checks.array(f"{name}.scale", scale, [jnp.float32, jnp.float8_e8m0fnu], spelled, shape)
    return Quantized(data, scale.astype(jnp.float32))


def _is_fp4(w: Any) -> bool:
    return isinstance(w, Quantized) and getattr(w.data, "dtype", None) in fp4_weights.DTYPES


def _matrix(w: Any) -> jax.Array:
    return w.data if isinstance(w, Quantized) else w


def _shape(w: Any) -> tuple[int, ...]:
    return fp4_weights.shape_in_values(_matrix(w))


@jax.custom_jvp
def _without_gradients(operands: Any) -> Any:
    return operands


@_without_gradients.defjvp
def _refused(*_: Any) -> Any:
    raise NotImplementedError("moe_mlp with FP4 weights is for inference: it has no gradients")


def _in_bf16(x: jax.Array, weights: jax.Array, w13: jax.Array, w2: jax.Array, permutation: MoePermutation) -> jax.Array:
    groups = Groups(permutation.group_sizes, permutation.group_ends)
    hidden: Any = bf16_matmul(permute_rows(x, permutation.rows), w13, groups, "nt", BF16)  # JAX 0.10 types it as object
    y: Any = bf16_matmul(swiglu(hidden), w2, groups, "nt", BF16)
    return unpermute_rows(y, permutation.rows, weights)


@jax.custom_vjp
def _in_fp8(x: jax.Array, weights: jax.Array, w13: Any, w2: Any, permutation: MoePermutation) -> jax.Array:
    """Each row quantised once, where it is read anyway."""
    rows, _, ends = permutation

    def quantised(w: Any) -> Quantized:
        return w if isinstance(w, Quantized) else quantise_stack(w, straight=True, turned=False)[0]

    def product(a: Quantized, w: Quantized) -> jax.Array:
        gemm: Any = m_grouped_fp8_gemm_nt_contiguous
        if _is_fp4(w):
            gemm = functools.partial(m_grouped_fp8_fp4_gemm_nt_contiguous, recipe=fp4_weights.recipe_of(*w))
        return gemm(a, w, ends, use_psum_layout=True, out_dtype=x.dtype)

    tokens, w13 = permute_rows_to_fp8(x, rows), quantised(w13)
    if _is_fp4(w13):
        gated = swiglu_to_fp8(product(tokens, w13))
    else:
        gated = m_grouped_fp8_gemm_swiglu(tokens, w13, ends, x.dtype)
    return unpermute_rows(product(gated, quantised(w2)), rows, weights)


def _in_fp8_by_steps(x: jax.Array, weights: jax.Array, w13: Any, w2: Any, permutation: MoePermutation) -> jax.Array:
    """The same of steps that have gradients, which keep what those need."""
    groups = Groups(permutation.group_sizes, permutation.group_ends)
    hidden = fp8_matmul(permute_rows(x, permutation.rows), w13, groups, "nt", x.dtype)
    y = fp8_matmul(swiglu(hidden), w2, groups, "nt", x.dtype)
    return unpermute_rows(y, permutation.rows, weights)


def _in_fp8_fwd(x: jax.Array, weights: jax.Array, w13: Any, w2: Any, permutation: MoePermutation) -> Any:
    if isinstance(w13, Quantized):
        return jax.vjp(lambda x, weights: _in_fp8_by_steps(x, weights, w13, w2, permutation), x, weights)
    return jax.vjp(lambda *inputs: _in_fp8_by_steps(*inputs, permutation=permutation), x, weights, w13, w2)


def _in_fp8_bwd(pull: Any, dy: jax.Array) -> Any:
    gradients = pull(dy)
    return (*gradients, *[None] * (5 - len(gradients)))


_in_fp8.defvjp(_in_fp8_fwd, _in_fp8_bwd)
