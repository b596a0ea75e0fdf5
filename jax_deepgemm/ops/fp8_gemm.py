"""Dense GEMMs of FP8 operands with block scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.heuristics.resident_config import ResidentConfig
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops import batched_fp8_gemm
from jax_deepgemm.ops.casting import dequantise
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE, ROW_RECIPE, plan, ranked
from jax_deepgemm.ops.gemm_result import alias_of, reduce_before, rounded
from jax_deepgemm.primitive import make

Operand = Quantized | tuple[jax.Array, jax.Array]
Recipe = tuple[tuple[int, int], tuple[int, int]]
RECIPES: tuple[Recipe, ...] = (RECIPE, ROW_RECIPE)  # the default first
_CONFIGS: dict[Recipe, tuple[type, ...]] = {RECIPE: (GemmConfig, ResidentConfig), ROW_RECIPE: (GemmConfig1d1d,)}
_OUT_DTYPES = (jnp.bfloat16, jnp.float32)
_K_MAJOR = ("M, K", "N, K")


def fp8_gemm_nt(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: GemmConfig | ResidentConfig | None = None,
) -> jax.Array:
    """`A @ B.T (+ C)` of FP8 matrices with block scales, accumulated in float32.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)], as from `per_token_cast_to_fp8`.
    b: data float8_e4m3fn [N, K] and scale [ceil(N / 128), ceil(K / 128)], as from `per_block_cast_to_fp8`.
    c: `out_dtype` [M, N], added before the result is rounded. Donated to jit, its buffer becomes the result's.
    out_dtype: bfloat16 or float32.
    recipe: the blocks (rows, elements of K) of `a` and of `b` that share a scale. None is ((1, 128), (128, 128)).
        ((1, 128), (1, 128)), where `b` is quantised like `a` and its scale is [N, ceil(K / 128)], is for the gradients
        of weights (DeepGEMM's (1, 1, 128)).
    config: the kernel's tiles, instead of what `tune` found or the heuristics choose; a GemmConfig1d1d where `b` has a
        scale for each row; where K is at most 512 also a ResidentConfig. Only a kernel heeds it.

    Scales are float32, or float8_e8m0fnu. Sizes may be zero; K, and a row of the result, are multiples of 16 bytes.
    Returns `out_dtype` [M, N]. NaN and Inf stay in the rows and columns they belong to.

    Under jit over several devices, operands sharded over M or N stay where they are, and K sharded on borders of 128
    becomes a sum of float32 partial results. K that is no multiple of 128, N that is none where a scale of `b` is for
    128 rows, or shards that cut a block, are gathered. So is everything under `jax.export` for several devices,
    outside `shard_map`.

    Under `vmap` of one operand the batch becomes part of M or N. Of both, it is one launch of a grouped GEMM, for up to
    1024 problems; to its result `c` is added. By the second recipe it adds `c` itself, and K must be a multiple of 128.
    All else, and a `config` with both, makes a loop.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    The recipe is that of DeepSeek-V3 (arXiv:2412.19437, section 3.3).

    >>> a = per_token_cast_to_fp8(jnp.ones((4, 256)))
    >>> b = per_block_cast_to_fp8(jnp.ones((128, 256)))
    >>> fp8_gemm_nt(a, b).shape
    (4, 128)
    """
    return _gemm(_K_MAJOR, a, b, c, out_dtype, recipe, config)


def fp8_gemm_nn(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: GemmConfig | ResidentConfig | None = None,
) -> jax.Array:
    """`A @ B (+ C)`: `fp8_gemm_nt` of a B whose N is contiguous.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)].
    b: data float8_e4m3fn [K, N] and scale [ceil(K / 128), ceil(N / 128)], or [ceil(K / 128), N] by the recipe
        ((1, 128), (1, 128)).

    A scale is laid out as its data is. The rest is as for `fp8_gemm_nt`. FP8 tensor cores multiply matrices with K
    contiguous, so XLA transposes `b`, or has whatever computes it in the same jit write it so.

    >>> a = per_token_cast_to_fp8(jnp.ones((4, 256)))
    >>> b = jax.tree.map(jnp.transpose, per_block_cast_to_fp8(jnp.ones((128, 256))))
    >>> fp8_gemm_nn(a, b).shape
    (4, 128)
    """
    return _gemm(("M, K", "K, N"), a, b, c, out_dtype, recipe, config)


def fp8_gemm_tn(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: GemmConfig | ResidentConfig | None = None,
) -> jax.Array:
    """`A.T @ B (+ C)`: `fp8_gemm_nt` of an A whose M and a B whose N are contiguous.

    a: data float8_e4m3fn [K, M] and scale [ceil(K / 128), M].
    b: data float8_e4m3fn [K, N] and scale [ceil(K / 128), ceil(N / 128)], or [ceil(K / 128), N] by the recipe
        ((1, 128), (1, 128)).

    A scale is laid out as its data is. The rest is as for `fp8_gemm_nt`. FP8 tensor cores multiply matrices with K
    contiguous, so XLA transposes both, or has whatever computes them in the same jit write them so. The scale of `a`
    is taken as it is.

    >>> a = jax.tree.map(jnp.transpose, per_token_cast_to_fp8(jnp.ones((16, 256))))
    >>> b = jax.tree.map(jnp.transpose, per_block_cast_to_fp8(jnp.ones((128, 256))))
    >>> fp8_gemm_tn(a, b).shape
    (16, 128)
    """
    return _gemm(("K, M", "K, N"), a, b, c, out_dtype, recipe, config)


def fp8_gemm_tt(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: GemmConfig | ResidentConfig | None = None,
) -> jax.Array:
    """`A.T @ B.T (+ C)`: `fp8_gemm_nt` of an A whose M is contiguous.

    a: data float8_e4m3fn [K, M] and scale [ceil(K / 128), M].
    b: data float8_e4m3fn [N, K] and scale [ceil(N / 128), ceil(K / 128)], or [N, ceil(K / 128)] by the recipe
        ((1, 128), (1, 128)).

    A scale is laid out as its data is. The rest is as for `fp8_gemm_nt`. FP8 tensor cores multiply matrices with K
    contiguous, so XLA transposes `a`, or has whatever computes it in the same jit write it so. The scale of `a` is
    taken as it is.

    >>> a = jax.tree.map(jnp.transpose, per_token_cast_to_fp8(jnp.ones((16, 256))))
    >>> b = per_block_cast_to_fp8(jnp.ones((128, 256)))
    >>> fp8_gemm_tt(a, b).shape
    (16, 128)
    """
    return _gemm(("K, M", "N, K"), a, b, c, out_dtype, recipe, config)


def _gemm(
    dims: tuple[str, str],
    a: Operand,
    b: Operand,
    c: jax.Array | None,
    out_dtype: DTypeLike,
    recipe: Recipe | None,
    config: GemmConfig | ResidentConfig | None,
) -> jax.Array:
    """Checks the operands, whose `dims` are in the order given, and hands them to the primitive with K last."""
    recipe = checks.recipe(recipe, RECIPES)
    dtype = checks.dtype("out_dtype", out_dtype, _OUT_DTYPES, "bfloat16 or float32")
    a = checks.quantized("a", a, dims[0], _k_last(recipe[0], dims[0]))
    b = checks.quantized("b", b, dims[1], _k_last(recipe[1], dims[1]))
    m, k = _k_last(a.data.shape, dims[0])
    n, k_of_b = _k_last(b.data.shape, dims[1])
    if k_of_b != k:
        checks.fail(ValueError, "b", f"of shape ({dims[1].replace('K', str(k))}) with the K of `a`", b.data)
    if k % 16:
        checks.fail(ValueError, "a", f"of shape ({dims[0]}) with K a multiple of 16", a.data)
    if n * dtype.itemsize % 16:
        wanted = f"of shape ({dims[1]}) with N a multiple of {16 // dtype.itemsize} for {dtype} out"
        checks.fail(ValueError, "b", wanted, b.data)
    checks.config(config, _CONFIGS[recipe], dtype.itemsize)
    if isinstance(config, ResidentConfig) and k > config.MAX_K:
        checks.fail(ValueError, "config", f"a GemmConfig where K is more than {config.MAX_K}", repr(config))
    added = () if c is None else (checks.array("c", c, [dtype], f"{m}, {n}", (m, n)),)
    operands = [v if d in _K_MAJOR else v.T for x, d in zip((a, b), dims, strict=True) for v in x]
    return _call(*operands, *added, out_dtype=dtype, recipe=recipe, config=config)[0]


def _k_last(sizes: Sequence[int], dims: str) -> tuple[int, int]:
    """Turns sizes in the order of `dims` around if K comes first there; and so turns them back."""
    first, second = sizes
    return (first, second) if dims in _K_MAJOR else (second, first)


# The operands of the primitive: a's data and scale, b's data and scale, and c if there is one.


def _abstract_eval(
    avals: Avals, *, out_dtype: jnp.dtype, recipe: Recipe, config: GemmConfig | ResidentConfig | None
) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((avals[0].shape[0], avals[2].shape[0]), out_dtype)]


def _reference(
    a: jax.Array,
    a_scale: jax.Array,
    b: jax.Array,
    b_scale: jax.Array,
    *c: jax.Array,
    out_dtype: jnp.dtype,
    recipe: Recipe,
    config: GemmConfig | ResidentConfig | None,
) -> list[jax.Array]:
    product = jax.lax.dot_general(
        dequantise(Quantized(a, a_scale), block=recipe[0]),
        dequantise(Quantized(b, b_scale), block=recipe[1]),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return [rounded(product, c, out_dtype)]


def _factors(avals: Avals, params: Params) -> Factors:
    """Dimensions in blocks of 128 where they divide; where not, K is never sharded, nor N that shares scales.

    N in blocks that do not divide is not batched either.
    """
    n, k = avals[2].shape
    whole: tuple[str, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    summed: tuple[str, ...] = ()
    if k % 128 == 0:
        k_dim, whole, sizes, summed = "(kb ki)", (*whole, "ki"), (*sizes, ("ki", 128)), ("kb",)
    else:
        k_dim, whole = "k", (*whole, "k", "kb")
    if params["recipe"][1][0] == 1:
        n_dim, n_scale = "n", "n"
    elif n % 128 == 0:
        n_dim, n_scale, whole, sizes = "(nb ni)", "nb", (*whole, "ni"), (*sizes, ("ni", 128))
    else:
        n_dim, n_scale, whole = "n", "nb", (*whole, "n", "nb")
    c = f", m {n_dim}" if len(avals) == 5 else ""
    return Factors(f"m {k_dim}, m kb, {n_dim} {k_dim}, {n_scale} kb{c} -> m {n_dim}", sizes, summed, whole)


def _operand_layouts(avals: Avals, params: Params) -> Layouts:
    """Scales of rows with the rows fastest: those of a tile are neighbours, and a warp copies 32 of them at once."""
    b_scale = (0, 1) if params["recipe"] == ROW_RECIPE else None
    return [None, (0, 1), None, b_scale, None][: len(avals)]


_call: Any = make(
    Op(
        name="fp8_gemm_nt",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=plan,
        configs=tuple(kind for kinds in _CONFIGS.values() for kind in kinds),
        ranked=ranked,
        operand_layouts=_operand_layouts,
        aliases=alias_of(4),
        factors=_factors,
        reduce=reduce_before(4),
        batched=batched_fp8_gemm.BATCHED,
        gradient="quantised operands have no gradients; differentiate around it with jax.custom_vjp",
    )
)
