"""The FP8 GEMM whose result leaves room in the middle of every attention head."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.heuristics import sm90
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.launch import MAX_SHARED_MEMORY, Launch
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops.casting import dequantise
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE, launch, problem_of
from jax_deepgemm.ops.gemm_plan import MAX_EXTENT
from jax_deepgemm.ops.gemm_result import alias_of
from jax_deepgemm.ops.head_splits import HeadSplits
from jax_deepgemm.primitive import make

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.target import Target

_OUT_DTYPES = (jnp.bfloat16, jnp.float32)


def fp8_gemm_nt_skip_head_mid(
    a: Quantized | tuple[jax.Array, jax.Array],
    b: Quantized | tuple[jax.Array, jax.Array],
    head_splits: tuple[int, int, int],
    *,
    d: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: GemmConfig | None = None,
) -> jax.Array:
    """`A @ B.T` of FP8 matrices with block scales, with columns left free in the middle of every head.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)], as from `per_token_cast_to_fp8`.
    b: data float8_e4m3fn [heads * (left + right), K] and scale [ceil(heads * (left + right) / 128), ceil(K / 128)], as
        from `per_block_cast_to_fp8`.
    head_splits: (left, mid, right), columns of each head of the result. The first `left` columns of a head of the
        product come first, then `mid` columns that are not computed, then the `right` others. Each part spans a
        multiple of 16 bytes: multiples of 8 columns in bfloat16, of 4 in float32. Multiples of 64 are fastest.
    d: `out_dtype` [M, heads * (left + mid + right)]: what the columns in the middle are. Donated to jit, its buffer
        becomes the result's, and nothing is copied. None: they are zero.
    out_dtype: bfloat16 or float32.
    config: the kernel's tiles, instead of what `tune` found or the heuristics choose. Only a kernel heeds it.

    Returns `out_dtype` [M, heads * (left + mid + right)].

    Under jit over several devices, M stays sharded, and heads where `left + right` is a multiple of 128; K is gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    DeepGEMM's function of this name writes to `d` instead of returning it. DeepSeek's latent attention uses it to
    leave room for the part of the keys that carries positions.

    >>> a, b = per_token_cast_to_fp8(jnp.ones((4, 512))), per_block_cast_to_fp8(jnp.ones((3 * 256, 512)))
    >>> fp8_gemm_nt_skip_head_mid(a, b, (128, 64, 128)).shape
    (4, 960)
    """
    dtype = checks.dtype("out_dtype", out_dtype, _OUT_DTYPES, "bfloat16 or float32")
    parts = _checked_parts(head_splits, 16 // dtype.itemsize, dtype)
    splits = HeadSplits(*parts, keeps=d is not None)
    a = checks.quantized("a", a, "M, K", RECIPE[0])
    b = checks.quantized("b", b, "N, K", RECIPE[1])
    (m, k), (n, k_of_b) = a.data.shape, b.data.shape
    if k_of_b != k:
        checks.fail(ValueError, "b", f"of shape (N, {k}) with the K of `a`", b.data)
    if k % 16:
        checks.fail(ValueError, "a", "of shape (M, K) with K a multiple of 16", a.data)
    if n % splits.product:
        checks.fail(ValueError, "b", f"of shape (N, K) with N a multiple of left + right, {splits.product}", b.data)
    checks.config(config, (GemmConfig,), dtype.itemsize)
    if config is not None:
        splits.check(config, dtype.itemsize, MAX_SHARED_MEMORY)
    width = splits.width(n)
    kept = () if d is None else (checks.array("d", d, [dtype], f"{m}, {width}", (m, width)),)
    return _call(*a, *b, *kept, out_dtype=dtype, head_splits=parts, config=config)[0]


def _checked_parts(head_splits: Any, multiple: int, dtype: jnp.dtype) -> tuple[int, int, int]:
    wanted = f"(left, mid, right), three positive multiples of {multiple} for {dtype} out"
    try:
        left, mid, right = map(operator.index, head_splits)
    except (TypeError, ValueError):
        checks.fail(TypeError, "head_splits", wanted, repr(head_splits))
    if any(part <= 0 or part % multiple for part in (left, mid, right)):
        checks.fail(ValueError, "head_splits", wanted, repr(head_splits))
    return left, mid, right


# The operands of the primitive: a's data and scale, b's data and scale, and d if there is one.


def _splits(avals: Sequence[Any], params: Params) -> HeadSplits:
    return HeadSplits(*params["head_splits"], keeps=len(avals) == 5)


def _abstract_eval(avals: Avals, **params: Any) -> list[jax.ShapeDtypeStruct]:
    width = _splits(avals, params).width(avals[2].shape[0])
    return [jax.ShapeDtypeStruct((avals[0].shape[0], width), params["out_dtype"])]


def _reference(
    a: jax.Array, a_scale: jax.Array, b: jax.Array, b_scale: jax.Array, *d: jax.Array, **params: Any
) -> list[jax.Array]:
    product = jax.lax.dot_general(
        dequantise(Quantized(a, a_scale), block=RECIPE[0]),
        dequantise(Quantized(b, b_scale), block=RECIPE[1]),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    left, mid, right = params["head_splits"]
    m, heads = a.shape[0], b.shape[0] // (left + right)
    result = product.astype(params["out_dtype"]).reshape(m, heads, left + right)
    if d:
        between = d[0].reshape(m, heads, left + mid + right)[:, :, left : left + mid]
    else:
        between = jnp.zeros((m, heads, mid), result.dtype)
    spread = jnp.concatenate([result[:, :, :left], between, result[:, :, left:]], axis=2)
    return [spread.reshape(m, heads * (left + mid + right))]


def _problem(
    avals: Avals, out_avals: Avals, target: Target, config: Config
) -> tuple[int, int, int, int, int, int] | None:
    """As of the product, but the result may be far wider."""
    return problem_of(avals, out_avals, target, config) if out_avals[0].shape[1] <= MAX_EXTENT else None


def _plan(avals: Avals, out_avals: Avals, params: Params, target: Target, config: Config) -> Launch | None:
    problem = _problem(avals, out_avals, target, config)
    if problem is None:
        return None
    chosen = params["config"] or _ranked(avals, out_avals, params, target, config)[0]
    return launch(chosen, *problem, pdl=config.pdl, splits=_splits(avals, params))


def _ranked(
    avals: Avals, out_avals: Avals, params: Mapping[str, Any], target: Target, config: Config
) -> list[GemmConfig]:
    problem = _problem(avals, out_avals, target, config)
    if problem is None:
        return []
    return _splits(avals, params).among(sm90.ranked(*problem), problem[3], target.smem_bytes)


def _factors(avals: Avals, params: Params) -> Factors:
    """Whole heads where their scales are whole blocks of 128."""
    splits, columns = _splits(avals, params), avals[2].shape[0]
    if splits.product % 128 == 0:
        n, n_scale, width, whole = "(h p)", "(h q)", "(h w)", ("p", "q", "w")
        sizes = (("p", splits.product), ("q", splits.product // 128), ("w", sum(splits.parts)))
        sizes += (("h", columns // splits.product),)
    else:
        n, n_scale, width, whole = "n", "nb", "w", ("n", "nb", "w")
        sizes = (("w", splits.width(columns)),)
    d = f", m {width}" if len(avals) == 5 else ""
    return Factors(f"m k, m kb, {n} k, {n_scale} kb{d} -> m {width}", sizes, whole=("k", "kb", *whole))


def _operand_layouts(avals: Avals, params: Params) -> Layouts:
    """A's scales with M fastest, as for `fp8_gemm_nt`."""
    return [None, (0, 1), None, None, None][: len(avals)]


_call: Any = make(
    Op(
        name="fp8_gemm_nt_skip_head_mid",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=_plan,
        configs=(GemmConfig,),
        ranked=_ranked,
        operand_layouts=_operand_layouts,
        aliases=alias_of(4),
        factors=_factors,
        gradient="quantised operands have no gradients; differentiate around it with jax.custom_vjp",
    )
)
