"""Quantisation to FP8 with one scale a block, and back.

The scale of a block is its largest magnitude over 448, the largest float8_e4m3fn; magnitudes under 1e-4 count as 1e-4,
so that a block of zeros has a scale too. To divide by 448, and by the scale, is to multiply with the float32 nearest to
its reciprocal. The method is that of DeepSeek-V3 (arXiv:2412.19437, section 3.3).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Batched, Layouts, Op, Params, Stack
from jax_deepgemm.ops.casting_plan import TILE, Block, plan
from jax_deepgemm.primitive import make

E4M3_MAX = 448.0
SMALLEST_AMAX = 1e-4
_WIDE = (jnp.bfloat16, jnp.float16, jnp.float32)
# Derivatives of data would have its dtype: most underflow in so few bits, or overflow.
NO_GRADIENT = (
    "its result has too few bits for one. Where rounding is to count as the identity, cast s = "
    "jax.lax.stop_gradient(x) and take x + (cast back - s), or use fp8_linear, which casts inside"
)
_KNOWN_BLOCKS = ((1, 128), (128, 128), (1, 32))


def per_token_cast_to_fp8(x: jax.Array, *, use_ue8m0: bool = False, gran_k: int = 128) -> Quantized:
    """Quantises activations: one scale for each row and each `gran_k` columns.

    x: bfloat16, float16 or float32 [M, K], of any size.
    use_ue8m0: round scales up to powers of two, kept as float8_e8m0fnu.
    gran_k: positive; 128 is what the GEMMs take.

    Returns data float8_e4m3fn [M, K] and scale float32 (or float8_e8m0fnu) [M, ceil(K / gran_k)]. A NaN or Inf in `x`
    makes the block it is in NaN. Magnitudes under 1e-4 count as 1e-4 for the scale: smaller numbers keep fewer bits.

    Raises TypeError or ValueError, naming the argument, where `x` or `gran_k` is none of these, NotImplementedError for
    derivatives, which says how to have rounding count as the identity.

    >>> data, scale = per_token_cast_to_fp8(jnp.ones((4, 256)))
    >>> data.dtype, scale.shape
    (dtype(float8_e4m3fn), (4, 2))
    """
    gran_k = checks.integer("gran_k", gran_k, "a positive number of columns", 1)
    x = checks.array("x", x, _WIDE, "M, K")
    return quantise(x, straight=(1, gran_k), use_ue8m0=checks.flag("use_ue8m0", use_ue8m0))[0]


def per_block_cast_to_fp8(x: jax.Array, *, use_ue8m0: bool = False, block: Block = (128, 128)) -> Quantized:
    """Quantises weights: one scale for each `block` of rows and columns.

    x: bfloat16, float16 or float32 [N, K], of any size.
    use_ue8m0: round scales up to powers of two, kept as float8_e8m0fnu.
    block: both positive; (128, 128) is what the GEMMs take.

    Returns data float8_e4m3fn [N, K] and scale float32 (or float8_e8m0fnu) [ceil(N / rows), ceil(K / columns)]. A NaN
    or Inf in `x` makes the block it is in NaN. Small numbers, derivatives: as for `per_token_cast_to_fp8`.

    Raises TypeError or ValueError, naming the argument, where `x` or `block` is none of these.

    >>> data, scale = per_block_cast_to_fp8(jnp.ones((128, 256)))
    >>> data.dtype, scale.shape
    (dtype(float8_e4m3fn), (1, 2))
    """
    x = checks.array("x", x, _WIDE, "N, K")
    return quantise(x, straight=_checked_block(block), use_ue8m0=checks.flag("use_ue8m0", use_ue8m0))[0]


def per_channel_cast_to_fp8(x: jax.Array, *, use_ue8m0: bool = False) -> Quantized:
    """Quantises and transposes, for a product that sums over the rows of `x`: one scale for each column and 128 rows.

    x: bfloat16, float16 or float32 [K, M], of any size.
    use_ue8m0: round scales up to powers of two, kept as float8_e8m0fnu.

    Returns data float8_e4m3fn [M, K] and scale float32 (or float8_e8m0fnu) [M, ceil(K / 128)]: `per_token_cast_to_fp8`
    of `x.T`, bit for bit. So either operand of `fp8_gemm_nt` with the recipe ((1, 128), (1, 128)) can be its result,
    as the gradient of weights `dy.T @ x` needs it, whose K is the number of tokens. DeepGEMM's function of this name
    leaves data and scale [K, M] and [K / 128, M]: transpose both for that. A NaN or Inf in `x` makes the block it is in
    NaN. Small numbers, derivatives: as for `per_token_cast_to_fp8`.

    Raises TypeError or ValueError, naming the argument, where `x` is none of these.

    >>> dy, x = jnp.ones((256, 8)), jnp.ones((256, 16))
    >>> fp8_gemm_nt(per_channel_cast_to_fp8(dy), per_channel_cast_to_fp8(x), recipe=((1, 128), (1, 128))).shape
    (8, 16)
    """
    x = checks.array("x", x, _WIDE, "K, M")
    return quantise(x, turned=(TILE, 1), use_ue8m0=checks.flag("use_ue8m0", use_ue8m0))[0]


def cast_back_from_fp8(
    x: Quantized | tuple[jax.Array, jax.Array],
    *,
    block: Block | None = None,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Dequantises: `data * scale`, multiplied in float32.

    x: data float8_e4m3fn [M, K] and scale float32 or float8_e8m0fnu, one for each block.
    block: rows and columns that share a scale. By default whichever of (1, 128), (128, 128), (1, 32) fits the shapes.

    Returns `dtype` [M, K].

    Raises TypeError or ValueError, naming the argument, for other dtypes or a scale that fits no block.

    >>> cast_back_from_fp8(per_block_cast_to_fp8(jnp.ones((128, 256)))).shape
    (128, 256)
    """
    dtype = checks.numeric_dtype("dtype", dtype)
    data, scale = checks.pair("x", x)
    data = checks.array("x", data, [jnp.float8_e4m3fn], "M, K")
    if block is not None:
        block = _checked_block(block)
    else:
        # Where two fit, they mean the same.
        shape = getattr(scale, "shape", None)
        block = next((b for b in _KNOWN_BLOCKS if checks.scale_shape(data.shape, b) == shape), _KNOWN_BLOCKS[0])
    return dequantise(checks.quantized("x", (data, scale), "M, K", block), block=block).astype(dtype)


@functools.partial(jax.jit, static_argnames="block")
def dequantise(x: Quantized, block: Block) -> jax.Array:
    """float32 values of an operand that has been checked."""
    # Without the barrier, XLA for GPUs takes a cast and its inverse in the same jit for nothing, and rounds nothing.
    return jax.lax.optimization_barrier(x.data).astype(jnp.float32) * _spread(
        x.scale.astype(jnp.float32), block, x.data.shape
    )


def _checked_block(block: Block) -> Block:
    sizes = [checks.as_integer(size) or 0 for size in block] if isinstance(block, tuple) else []
    if len(sizes) != 2 or not all(0 < size <= checks.MOST for size in sizes):
        checks.fail(ValueError, "block", "a tuple (rows, columns) of positive numbers", checks.shown(block))
    return sizes[0], sizes[1]


def quantise(
    x: jax.Array,
    *,
    straight: Block | None = None,
    turned: Block | None = None,
    use_ue8m0: bool = False,
    smallest_amax: float = SMALLEST_AMAX,
) -> list[Quantized]:
    """`x`, which has been checked, quantised as it lies, and transposed, both by one kernel that reads it once.

    straight, turned: rows and columns of `x` that share a scale in the one and in the other; None leaves it out.
    smallest_amax: what a smaller magnitude counts as.
    """
    flat = _call(x, straight=straight, turned=turned, use_ue8m0=use_ue8m0, smallest_amax=smallest_amax)
    return [Quantized(*flat[i : i + 2]) for i in range(0, len(flat), 2)]


def _abstract_eval(
    avals: Avals, *, straight: Block | None, turned: Block | None, use_ue8m0: bool, smallest_amax: float
) -> list[jax.ShapeDtypeStruct]:
    shape = avals[0].shape
    scale_dtype = jnp.float8_e8m0fnu if use_ue8m0 else jnp.float32
    results = []
    for block, step in ((straight, 1), (turned, -1)):
        if block is not None:
            results.append(jax.ShapeDtypeStruct(shape[::step], jnp.float8_e4m3fn))
            results.append(jax.ShapeDtypeStruct(checks.scale_shape(shape, block)[::step], scale_dtype))
    return results


def reference(
    x: jax.Array,
    *,
    straight: Block | None = None,
    turned: Block | None = None,
    use_ue8m0: bool = False,
    smallest_amax: float = SMALLEST_AMAX,
) -> list[jax.Array]:
    """What `quantise` computes, in plain JAX, as a flat list."""
    results = []
    if straight is not None:
        results += _scaled(x, straight, use_ue8m0, smallest_amax)
    if turned is not None:
        # Transposed last: it is then FP8 that moves, and a scale with M contiguous, as the GEMM wants it.
        results += [v.T for v in _scaled(x, turned, use_ue8m0, smallest_amax)]
    return results


def _factors(avals: Avals, params: Params) -> Factors:
    """Dimensions in blocks where they divide; where not, they are neither sharded nor batched."""
    blocks = [b for b in (params["straight"], params["turned"]) if b is not None]
    dims: list[str] = []
    sizes: list[tuple[str, int]] = []
    whole: list[str] = []
    for name, size, lengths in zip("rc", avals[0].shape, zip(*blocks, strict=True), strict=True):
        length = max(lengths)
        if length == 1:
            dims.append(name)
        elif size % length == 0:
            dims.append(f"({name}b {name}i)")
            sizes += [(f"{name}b", size // length), (f"{name}i", length)]
            whole.append(f"{name}i")
        else:
            dims.append(name)
            whole += [name, f"{name}b"]
    results = []
    for block, step in ((params["straight"], 1), (params["turned"], -1)):
        if block is not None:
            scale = [d if b == 1 else f"{n}b" for d, n, b in zip(dims, "rc", block, strict=True)]
            results += [" ".join(dims[::step]), " ".join(scale[::step])]
    return Factors(f"{' '.join(dims)} -> {', '.join(results)}", tuple(sizes), whole=tuple(whole))


def _result_layouts(avals: Avals, params: Params) -> Layouts:
    """Scales of single rows, or columns, with these fastest, as the GEMM reads them."""
    layouts: list[tuple[int, ...] | None] = []
    for block in (params["straight"], params["turned"]):
        if block is not None:
            layouts += [None, (0, 1) if 1 in block else None]
    return layouts


def _stacked(stack: Stack, operands: Sequence[jax.Array], params: Params) -> Sequence[jax.Array] | None:
    """Blocks only: folded into the rows, they would come out transposed together, and the batch between the columns."""
    by_block = (TILE, TILE) in (params["straight"], params["turned"])
    return stack(*operands) if by_block and stack.takes(*operands) else None


_call: Any = make(
    Op(
        name="cast_to_fp8",
        abstract_eval=_abstract_eval,
        reference=reference,
        plan=plan,
        result_layouts=_result_layouts,
        factors=_factors,
        gradient=NO_GRADIENT,
        batched=Batched(plan, rule=_stacked, before_folding=True),
    )
)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _scaled(x: jax.Array, block: Block, use_ue8m0: bool, smallest_amax: float) -> list[jax.Array]:
    wide = x.astype(jnp.float32)
    # Products with reciprocals: XLA makes them of divisions anyway, but not everywhere. So said, it agrees with the
    # kernel to the bit.
    scale = stored = jnp.maximum(_amax(x, block), smallest_amax) * np.float32(1 / E4M3_MAX)
    if use_ue8m0:
        stored = _ceil_to_ue8m0(scale)
        scale = stored.astype(jnp.float32)
    # Rounding of the scale can carry a value over 448, of which astype would make NaN.
    scaled = jnp.clip(wide * _spread(1 / scale, block, x.shape), -E4M3_MAX, E4M3_MAX)
    return [scaled.astype(jnp.float8_e4m3fn), stored]


def _amax(x: jax.Array, block: Block) -> jax.Array:
    rows, columns = checks.scale_shape(x.shape, block)
    padding = [(0, n * b - s) for n, b, s in zip((rows, columns), block, x.shape, strict=True)]
    # As integers, magnitudes order the same, with NaN on top: XLA's maximum of floats loses NaN on some CPUs. In the
    # dtype of `x`, where widening it first would be shared with what scales it, and share a transposing cast's layout.
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32 if x.dtype.itemsize == 4 else jnp.int16)
    blocks = jnp.pad(bits, padding).reshape(rows, block[0], columns, block[1])
    return jax.lax.bitcast_convert_type(jnp.max(blocks, axis=(1, 3)), x.dtype).astype(jnp.float32)


def _ceil_to_ue8m0(scale: jax.Array) -> jax.Array:
    """The least power of two not under `scale`, by its bits: exact, where log2 is not. NaN and Inf become NaN."""
    bits = jax.lax.bitcast_convert_type(scale, jnp.uint32)
    exponent = (bits >> 23) + (bits & 0x7FFFFF != 0).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(jnp.minimum(exponent, 255).astype(jnp.uint8), jnp.float8_e8m0fnu)


def _spread(scale: jax.Array, block: Block, shape: tuple[int, ...]) -> jax.Array:
    """Each scale repeated over its block."""
    for axis in (0, 1):
        scale = jnp.repeat(scale, block[axis], axis=axis)
    return scale[: shape[0], : shape[1]]
