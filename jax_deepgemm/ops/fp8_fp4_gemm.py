"""Dense GEMMs of FP8 activations and FP4 weights with block scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops.casting import dequantise
from jax_deepgemm.ops.fp4_weights import Operand, Recipe, checked_recipe, checked_weights, for_kernel, values
from jax_deepgemm.ops.fp8_fp4_gemm_plan import CONFIGS, SCALE_ALIGNMENT, TileConfig, plan, ranked
from jax_deepgemm.ops.gemm_result import alias_of, reduce_before, rounded
from jax_deepgemm.primitive import make

_OUT_DTYPES = (jnp.bfloat16, jnp.float32)
_K_MAJOR = ("M, K", "N, K")


def fp8_fp4_gemm_nt(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: TileConfig | None = None,
) -> jax.Array:
    """`A @ B.T (+ C)` of an FP8 and an FP4 matrix with block scales, accumulated in float32.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)], as from `per_token_cast_to_fp8`.
    b: data float4_e2m1fn [N, K], or uint8 [N, K / 2] with two values each, the lower half first, and scale
        [N, ceil(K / 32)], as from `per_token_cast_to_fp4`.
    c: `out_dtype` [M, N], added before the result is rounded. Donated to jit, its buffer becomes the result's.
    out_dtype: bfloat16 or float32.
    recipe: the blocks (rows, elements of K) of `a` and of `b` that share a scale. None is ((1, 128), (1, 32)); with
        ((1, 128), (1, 128)) the scale of `b` is [N, ceil(K / 128)].
    config: the kernel's tiles, instead of what `tune` found or the heuristics choose. Only a kernel heeds it.

    Scales are float32, or float8_e8m0fnu, which for each 32 of `b` are the faster ones. Sizes may be zero; K is a
    multiple of 16, a row of the result of 16 bytes. Returns `out_dtype` [M, N]. NaN and Inf stay in the rows and
    columns they belong to.

    On Hopper `b` is read as it lies in memory, half the bytes of FP8, and decoded without rounding. K that is no
    multiple of 32 runs by reference.

    Under jit over several devices, operands sharded over M or N stay where they are, and K sharded on borders of 512
    becomes a sum of float32 partial results; sharded otherwise, it is gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    FP4 with a scale for each 32 is MXFP4 of the OCP Microscaling Formats specification 1.0.

    >>> a = per_token_cast_to_fp8(jnp.ones((4, 256)))
    >>> b = per_token_cast_to_fp4(jnp.ones((128, 256)), use_ue8m0=True)
    >>> fp8_fp4_gemm_nt(a, b).shape
    (4, 128)
    """
    return _gemm(_K_MAJOR, a, b, c, out_dtype, recipe, config)


def fp8_fp4_gemm_nn(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: TileConfig | None = None,
) -> jax.Array:
    """`A @ B (+ C)`: `fp8_fp4_gemm_nt` of a B whose N is contiguous.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)].
    b: data float4_e2m1fn [K, N], or uint8 [K, N / 2] with two neighbours of N each, and scale [ceil(K / 32), N].

    A scale is laid out as its data is. The rest is as for `fp8_fp4_gemm_nt`. The kernel wants K contiguous, so XLA
    transposes `b` in a pass over it: keep weights as `fp8_fp4_gemm_nt` takes them.

    >>> a = per_token_cast_to_fp8(jnp.ones((4, 256)))
    >>> b = jax.tree.map(jnp.transpose, per_token_cast_to_fp4(jnp.ones((128, 256)), use_ue8m0=True))
    >>> fp8_fp4_gemm_nn(a, b).shape
    (4, 128)
    """
    return _gemm(("M, K", "K, N"), a, b, c, out_dtype, recipe, config)


def fp8_fp4_gemm_tn(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: TileConfig | None = None,
) -> jax.Array:
    """`A.T @ B (+ C)`: `fp8_fp4_gemm_nt` of an A whose M and a B whose N are contiguous.

    a: data float8_e4m3fn [K, M] and scale [ceil(K / 128), M].
    b: data float4_e2m1fn [K, N], or uint8 [K, N / 2] with two neighbours of N each, and scale [ceil(K / 32), N].

    A scale is laid out as its data is. The rest is as for `fp8_fp4_gemm_nt`. The kernel wants K contiguous, so XLA
    transposes both in passes over them.

    >>> a = jax.tree.map(jnp.transpose, per_token_cast_to_fp8(jnp.ones((16, 256))))
    >>> b = jax.tree.map(jnp.transpose, per_token_cast_to_fp4(jnp.ones((128, 256)), use_ue8m0=True))
    >>> fp8_fp4_gemm_tn(a, b).shape
    (16, 128)
    """
    return _gemm(("K, M", "K, N"), a, b, c, out_dtype, recipe, config)


def fp8_fp4_gemm_tt(
    a: Operand,
    b: Operand,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    recipe: Recipe | None = None,
    config: TileConfig | None = None,
) -> jax.Array:
    """`A.T @ B.T (+ C)`: `fp8_fp4_gemm_nt` of an A whose M is contiguous.

    a: data float8_e4m3fn [K, M] and scale [ceil(K / 128), M].
    b: data float4_e2m1fn [N, K], or uint8 [N, K / 2] with two values each, and scale [N, ceil(K / 32)].

    A scale is laid out as its data is. The rest is as for `fp8_fp4_gemm_nt`. The kernel wants K contiguous, so XLA
    transposes `a`, or has whatever computes it in the same jit write it so.

    >>> a = jax.tree.map(jnp.transpose, per_token_cast_to_fp8(jnp.ones((16, 256))))
    >>> b = per_token_cast_to_fp4(jnp.ones((128, 256)), use_ue8m0=True)
    >>> fp8_fp4_gemm_tt(a, b).shape
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
    config: TileConfig | None,
) -> jax.Array:
    """Checks the operands, whose `dims` are in the order given, and hands them to the primitive with K last."""
    recipe = checked_recipe(recipe)
    dtype = checks.dtype("out_dtype", out_dtype, _OUT_DTYPES, "bfloat16 or float32")
    checks.config(config, CONFIGS, dtype.itemsize)
    a = checks.quantized("a", a, dims[0], _k_last(recipe[0], dims[0]))
    weights = checked_weights("b", b, dims[1], recipe, k_last=dims[1] in _K_MAJOR)
    m, k = _k_last(a.data.shape, dims[0])
    n, k_of_b = _k_last(weights.shape, dims[1])
    if k_of_b != k:
        wanted = ", ".join(map(str, _k_last((n, k), dims[1])))
        checks.fail(ValueError, "b", f"of {wanted} values with the K of `a`", weights.data)
    if k % 16:
        checks.fail(ValueError, "a", f"of shape ({dims[0]}) with K a multiple of 16", a.data)
    if n * dtype.itemsize % 16:
        wanted = f"of ({dims[1]}) values with N a multiple of {16 // dtype.itemsize} for {dtype} out"
        checks.fail(ValueError, "b", wanted, weights.data)
    added = () if c is None else (checks.array("c", c, [dtype], f"{m}, {n}", (m, n)),)
    operands = [v if dims[0] in _K_MAJOR else v.T for v in a]
    operands += [*for_kernel(weights, recipe, k_last=dims[1] in _K_MAJOR), *added]
    return _call(*operands, out_dtype=dtype, recipe=recipe, config=config)[0]


def _k_last(sizes: Sequence[int], dims: str) -> tuple[int, int]:
    """Turns sizes in the order of `dims` around if K comes first there; and so turns them back."""
    first, second = sizes
    return (first, second) if dims in _K_MAJOR else (second, first)


# The operands of the primitive: a's data and scale, b's data packed and its scale padded, and c if there is one.


def _abstract_eval(
    avals: Avals, *, out_dtype: jnp.dtype, recipe: Recipe, config: TileConfig | None
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
    config: TileConfig | None,
) -> list[jax.Array]:
    product = jax.lax.dot_general(
        dequantise(Quantized(a, a_scale), block=recipe[0]),
        values(b, b_scale, recipe),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return [rounded(product, c, out_dtype)]


def _factors(avals: Avals, params: Params) -> Factors:
    """K in pieces whose scales are a box of the kernel's in every recipe: of 512; where they do not divide, whole."""
    piece, boxes = 512, SCALE_ALIGNMENT // avals[3].dtype.itemsize
    if params["recipe"][1][1] == 32 and avals[3].dtype == jnp.float32:
        boxes *= 4  # a box for each 128
    c = ", m n" if len(avals) == 5 else ""
    k = avals[0].shape[1]
    if k % piece:
        return Factors(f"m k, m kb, n kp, n ks{c} -> m n", whole=("k", "kb", "kp", "ks"))
    sizes = (("k", k // piece), ("ka", piece), ("kb", piece // 128), ("kp", piece // 2), ("ks", boxes))
    rule = f"m (k ka), m (k kb), n (k kp), n (k ks){c} -> m n"
    return Factors(rule, sizes, summed=("k",), whole=("ka", "kb", "kp", "ks"))


def _operand_layouts(avals: Avals, params: Params) -> Layouts:
    """A's scales with M fastest, as a warp reads those of a tile."""
    return [None, (0, 1), None, None, None][: len(avals)]


_call: Any = make(
    Op(
        name="fp8_fp4_gemm_nt",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=plan,
        configs=CONFIGS,
        ranked=ranked,
        operand_layouts=_operand_layouts,
        aliases=alias_of(4),
        factors=_factors,
        reduce=reduce_before(4),
        gradient="quantised operands have no gradients; differentiate around it with jax.custom_vjp",
    )
)
