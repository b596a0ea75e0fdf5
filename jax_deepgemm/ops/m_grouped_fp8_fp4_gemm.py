"""GEMMs of FP8 activations and FP4 weights whose rows come in groups, each with weights of its own."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.ops import m_grouped_fp8_fp4_gemm_plan as plans
from jax_deepgemm.ops import m_grouped_quantised as shared
from jax_deepgemm.ops.fp4_weights import Operand, Recipe, checked_recipe, checked_weights, for_kernel, values
from jax_deepgemm.ops.fp8_fp4_gemm_plan import CONFIGS, TileConfig
from jax_deepgemm.ops.m_grouped_checks import (
    OUT_DTYPES,
    checked_expected_m,
    checked_grouped_layout,
    checked_layout,
    checked_sizes,
)
from jax_deepgemm.ops.m_grouped_plan import typical_groups
from jax_deepgemm.primitive import make


def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: Operand,
    b: Operand,
    grouped_layout: jax.Array,
    *,
    use_psum_layout: bool = False,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: TileConfig | None = None,
) -> jax.Array:
    """`A[i] @ B[g].T` for each row i of A, where g is the group of the row: FP8 activations by FP4 weights.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)], as from `per_token_cast_to_fp8`.
    b: data float4_e2m1fn [G, N, K], or uint8 [G, N, K / 2] with two values each, the lower half first, and scale
        [G, N, ceil(K / 32)], for each group as from `per_token_cast_to_fp4`.
    grouped_layout: integers [M], the group of each row; -1, or anything else outside 0 .. G - 1, is none. Rows may come
        in any order, but those of a group in one piece are fast. With `use_psum_layout`: integers [G], the row at which
        each group ends and the next begins; an end beyond M, or before the one before it, is taken as that.
    out_dtype: bfloat16 or float32.
    recipe: the blocks (rows, elements of K) of `a` and of `b` that share a scale. None is ((1, 128), (1, 32)); with
        ((1, 128), (1, 128)) the scale of `b` is [G, N, ceil(K / 128)].
    config: the kernel's tiles, instead of what `tune` found or the heuristics choose. Only a kernel heeds it.

    Scales are float32, or float8_e8m0fnu, which for each 32 of `b` are the faster ones. Groups begin and end on any row
    and may be empty: nothing is padded. Sizes may be zero; K is a multiple of 16, a row of the result of 16 bytes. The
    layout is read on the device: the host knows M and G alone, and one compiled program serves all sizes of the groups.

    Returns `out_dtype` [M, N]; rows of no group are zeros. NaN and Inf stay in the rows and columns they belong to.

    On Hopper `b` is read as it lies in memory, half the bytes of FP8. K that is no multiple of 32 runs by reference.

    Under jit over several devices, `b` sharded over N stays where it is; all else is gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    The name is DeepGEMM's, which wants groups padded to its tiles' rows.

    >>> a = per_token_cast_to_fp8(jnp.ones((6, 256)))
    >>> b = jax.tree.map(lambda x: jnp.stack([x, x]), per_token_cast_to_fp4(jnp.ones((128, 256)), use_ue8m0=True))
    >>> m_grouped_fp8_fp4_gemm_nt_contiguous(a, b, jnp.array([0, 0, 0, 1, 1, -1])).shape
    (6, 128)
    """
    return _contiguous("G, N, K", a, b, grouped_layout, use_psum_layout, out_dtype, recipe, config)


def m_grouped_fp8_fp4_gemm_nn_contiguous(
    a: Operand,
    b: Operand,
    grouped_layout: jax.Array,
    *,
    use_psum_layout: bool = False,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: TileConfig | None = None,
) -> jax.Array:
    """`A[i] @ B[g]`: `m_grouped_fp8_fp4_gemm_nt_contiguous` of a B whose N is contiguous.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)].
    b: data float4_e2m1fn [G, K, N], or uint8 [G, K, N / 2] with two neighbours of N each, and scale
        [G, ceil(K / 32), N].

    A scale is laid out as its data is. The rest is as for `m_grouped_fp8_fp4_gemm_nt_contiguous`. The kernel wants K
    contiguous, so XLA transposes `b` in a pass over it: keep weights as `m_grouped_fp8_fp4_gemm_nt_contiguous` takes
    them.

    >>> a = per_token_cast_to_fp8(jnp.ones((6, 256)))
    >>> b = jax.tree.map(lambda x: jnp.stack([x.T, x.T]), per_token_cast_to_fp4(jnp.ones((128, 256)), use_ue8m0=True))
    >>> m_grouped_fp8_fp4_gemm_nn_contiguous(a, b, jnp.array([0, 0, 0, 1, 1, -1])).shape
    (6, 128)
    """
    return _contiguous("G, K, N", a, b, grouped_layout, use_psum_layout, out_dtype, recipe, config)


def m_grouped_fp8_fp4_gemm_nt_masked(
    a: Operand,
    b: Operand,
    masked_m: jax.Array,
    expected_m: int,
    *,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: TileConfig | None = None,
) -> jax.Array:
    """`A[g] @ B[g].T` for each group g, of whose rows the first `masked_m[g]` count: FP8 activations by FP4 weights.

    a: data float8_e4m3fn [G, Mmax, K] and scale [G, Mmax, ceil(K / 128)].
    b: data float4_e2m1fn [G, N, K], or uint8 [G, N, K / 2] with two values each, the lower half first, and scale
        [G, N, ceil(K / 32)].
    masked_m: integers [G], rows of each group. A negative number counts as 0, one beyond Mmax as Mmax.
    expected_m: about how many rows a group has, known to the host: what the kernel's tiles are chosen by. Results do
        not depend on it.
    out_dtype, recipe, config: as for `m_grouped_fp8_fp4_gemm_nt_contiguous`.

    Returns `out_dtype` [G, Mmax, N]. Only the first `masked_m[g]` rows of a group are computed and written; what the
    others hold is undefined, on a GPU whatever the buffer held. Use none of them.

    Under jit over several devices, operands sharded over G stay where they are, and `b` sharded over N. All else is
    gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    The name is DeepGEMM's.

    >>> a = jax.tree.map(lambda x: jnp.stack([x, x]), per_token_cast_to_fp8(jnp.ones((4, 256))))
    >>> b = jax.tree.map(lambda x: jnp.stack([x, x]), per_token_cast_to_fp4(jnp.ones((128, 256)), use_ue8m0=True))
    >>> m_grouped_fp8_fp4_gemm_nt_masked(a, b, jnp.array([3, 1]), 2).shape
    (2, 4, 128)
    """
    recipe = checked_recipe(recipe)
    dtype = checks.dtype("out_dtype", out_dtype, OUT_DTYPES, "bfloat16 or float32")
    a = checks.quantized("a", a, "G, Mmax, K", recipe[0])
    weights = checked_weights("b", b, "G, N, K", recipe)
    groups = checked_sizes(a.data, weights.data, "G, Mmax, K", "G, N, K", dtype, 16, values=weights.shape)
    masked_m = checked_layout("masked_m", masked_m, "G", groups)
    expected_m = checked_expected_m(expected_m)
    checks.config(config, CONFIGS, dtype.itemsize)
    operands = *a, *for_kernel(weights, recipe), masked_m
    return _masked(*operands, expected_m=expected_m, out_dtype=dtype, recipe=recipe, config=config)[0]


def _contiguous(
    dims: str,
    a: Operand,
    b: Operand,
    layout: jax.Array,
    use_psum_layout: bool,
    out_dtype: DTypeLike,
    recipe: Recipe | None,
    config: TileConfig | None,
) -> jax.Array:
    recipe, k_last = checked_recipe(recipe), dims == "G, N, K"
    dtype = checks.dtype("out_dtype", out_dtype, OUT_DTYPES, "bfloat16 or float32")
    a = checks.quantized("a", a, "M, K", recipe[0])
    weights = checked_weights("b", b, dims, recipe, k_last=k_last)
    groups = checked_sizes(a.data, weights.data, "M, K", dims, dtype, 16, values=weights.shape)
    layout, psum = checked_grouped_layout(layout, use_psum_layout, groups, a.data.shape[0])
    checks.config(config, CONFIGS, dtype.itemsize)
    operands = *a, *for_kernel(weights, recipe, k_last=k_last), layout
    return _call(*operands, use_psum_layout=psum, out_dtype=dtype, recipe=recipe, config=config)[0]


# As for FP8 weights, but b's data is packed and its scale padded.


def _reference(
    *operands: jax.Array, use_psum_layout: bool, out_dtype: jnp.dtype, recipe: Recipe, config: TileConfig | None
) -> list[jax.Array]:
    of_weights = functools.partial(values, recipe=recipe)
    return [shared.contiguous(of_weights, operands, use_psum_layout).astype(out_dtype)]


def _masked_reference(
    *operands: jax.Array, expected_m: int, out_dtype: jnp.dtype, recipe: Recipe, config: TileConfig | None
) -> list[jax.Array]:
    return [shared.masked(functools.partial(values, recipe=recipe), operands).astype(out_dtype)]


def _factors(avals: Avals, params: Params) -> Factors:
    layout = "g" if params["use_psum_layout"] else "m"
    return Factors(f"m k, m kb, g n kp, g n ks, {layout} -> m n", whole=("m", "g", "k", "kb", "kp", "ks"))


def _masked_factors(avals: Avals, params: Params) -> Factors:
    return Factors("g m k, g m kb, g n kp, g n ks, g -> g m n", whole=("m", "k", "kb", "kp", "ks"))


_CONTIGUOUS = Op(
    name="m_grouped_fp8_fp4_gemm_nt_contiguous",
    abstract_eval=shared.abstract_eval,
    reference=_reference,
    plan=plans.plan,
    configs=CONFIGS,
    ranked=plans.ranked,
    typical=typical_groups,
    operand_layouts=shared.operand_layouts,
    factors=_factors,
    gradient=shared.NO_GRADIENT,
)
_MASKED = dataclasses.replace(
    _CONTIGUOUS, name="m_grouped_fp8_fp4_gemm_nt_masked", reference=_masked_reference, factors=_masked_factors
)
_call: Any = make(_CONTIGUOUS)
_masked: Any = make(_MASKED)
