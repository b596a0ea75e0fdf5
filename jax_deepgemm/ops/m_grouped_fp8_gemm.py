"""GEMMs of FP8 operands with block scales whose rows come in groups, each with weights of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.heuristics.gemm_config import GemmConfig
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.ops import m_grouped_fp8_gemm_plan as plans
from jax_deepgemm.ops import m_grouped_quantised as shared
from jax_deepgemm.ops.casting import dequantise
from jax_deepgemm.ops.fp8_gemm_plan import RECIPE
from jax_deepgemm.ops.m_grouped_checks import (
    OUT_DTYPES,
    checked_expected_m,
    checked_grouped_layout,
    checked_layout,
    checked_sizes,
)
from jax_deepgemm.ops.m_grouped_plan import typical_groups
from jax_deepgemm.primitive import make

Operand = Quantized | tuple[jax.Array, jax.Array]


def m_grouped_fp8_gemm_nt_contiguous(
    a: Operand,
    b: Operand,
    grouped_layout: jax.Array,
    *,
    use_psum_layout: bool = False,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: GemmConfig | None = None,
) -> jax.Array:
    """`A[i] @ B[g].T` for each row i of A, where g is the group of the row, in FP8 with block scales.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)], as from `per_token_cast_to_fp8`.
    b: data float8_e4m3fn [G, N, K] and scale [G, ceil(N / 128), ceil(K / 128)], for each group as from
        `per_block_cast_to_fp8`.
    grouped_layout: integers [M], the group of each row; -1, or anything else outside 0 .. G - 1, is none. Rows may come
        in any order, but those of a group in one piece are fast. With `use_psum_layout`: integers [G], the row at which
        each group ends and the next begins; an end beyond M, or before the one before it, is taken as that.
    out_dtype: bfloat16 or float32.
    config: the kernel's tiles, instead of what `tune` found or the heuristics choose. Only a kernel heeds it.

    Scales are float32, or float8_e8m0fnu. Groups begin and end on any row and may be empty: nothing is padded. Sizes
    may be zero; K, and a row of the result, are multiples of 16 bytes. The layout is read on the device: the host knows
    M and G alone, and one compiled program serves all sizes of the groups.

    Returns `out_dtype` [M, N]; rows of no group are zeros. NaN and Inf stay in the rows and columns they belong to.

    Under jit over several devices, `b` sharded over N stays where it is, if N is a multiple of 128; all else is
    gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    The name is DeepGEMM's, which wants groups padded to its tiles' rows.

    >>> a = per_token_cast_to_fp8(jnp.ones((6, 256)))
    >>> b = jax.tree.map(lambda x: jnp.stack([x, x]), per_block_cast_to_fp8(jnp.ones((128, 256))))
    >>> m_grouped_fp8_gemm_nt_contiguous(a, b, jnp.array([0, 0, 0, 1, 1, -1])).shape
    (6, 128)
    """
    return _contiguous("G, N, K", a, b, grouped_layout, use_psum_layout, out_dtype, config)


def m_grouped_fp8_gemm_nn_contiguous(
    a: Operand,
    b: Operand,
    grouped_layout: jax.Array,
    *,
    use_psum_layout: bool = False,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: GemmConfig | None = None,
) -> jax.Array:
    """`A[i] @ B[g]`: `m_grouped_fp8_gemm_nt_contiguous` of a B whose N is contiguous.

    a: data float8_e4m3fn [M, K] and scale [M, ceil(K / 128)].
    b: data float8_e4m3fn [G, K, N] and scale [G, ceil(K / 128), ceil(N / 128)].

    The rest is as for `m_grouped_fp8_gemm_nt_contiguous`. FP8 tensor cores multiply matrices with K contiguous, so XLA
    transposes `b`, or has whatever computes it in the same jit write it so.

    >>> a = per_token_cast_to_fp8(jnp.ones((6, 256)))
    >>> b = jax.tree.map(lambda x: jnp.stack([x.T, x.T]), per_block_cast_to_fp8(jnp.ones((128, 256))))
    >>> m_grouped_fp8_gemm_nn_contiguous(a, b, jnp.array([0, 0, 0, 1, 1, -1])).shape
    (6, 128)
    """
    return _contiguous("G, K, N", a, b, grouped_layout, use_psum_layout, out_dtype, config)


def m_grouped_fp8_gemm_nt_masked(
    a: Operand,
    b: Operand,
    masked_m: jax.Array,
    expected_m: int,
    *,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: GemmConfig | None = None,
) -> jax.Array:
    """`A[g] @ B[g].T` for each group g, of whose rows the first `masked_m[g]` count, in FP8 with block scales.

    a: data float8_e4m3fn [G, Mmax, K] and scale [G, Mmax, ceil(K / 128)].
    b: data float8_e4m3fn [G, N, K] and scale [G, ceil(N / 128), ceil(K / 128)].
    masked_m: integers [G], rows of each group. A negative number counts as 0, one beyond Mmax as Mmax.
    expected_m: about how many rows a group has, known to the host: what the kernel's tiles are chosen by. Results do
        not depend on it.
    out_dtype, config: as for `m_grouped_fp8_gemm_nt_contiguous`.

    Returns `out_dtype` [G, Mmax, N]. Only the first `masked_m[g]` rows of a group are computed and written; what the
    others hold is undefined, on a GPU whatever the buffer held. Use none of them.

    Under jit over several devices, operands sharded over G stay where they are, and `b` sharded over N, if N is a
    multiple of 128. All else is gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    The name is DeepGEMM's.

    >>> a = jax.tree.map(lambda x: jnp.stack([x, x]), per_token_cast_to_fp8(jnp.ones((4, 256))))
    >>> b = jax.tree.map(lambda x: jnp.stack([x, x]), per_block_cast_to_fp8(jnp.ones((128, 256))))
    >>> m_grouped_fp8_gemm_nt_masked(a, b, jnp.array([3, 1]), 2).shape
    (2, 4, 128)
    """
    dtype = checks.dtype("out_dtype", out_dtype, OUT_DTYPES, "bfloat16 or float32")
    a = checks.quantized("a", a, "G, Mmax, K", RECIPE[0])
    b = checks.quantized("b", b, "G, N, K", RECIPE[1])
    groups = checked_sizes(a.data, b.data, "G, Mmax, K", "G, N, K", dtype, 16)
    masked_m = checked_layout("masked_m", masked_m, "G", groups)
    expected_m = checked_expected_m(expected_m)
    checks.config(config, (GemmConfig,), dtype.itemsize)
    return _masked(*a, *b, masked_m, expected_m=expected_m, out_dtype=dtype, config=config)[0]


def _contiguous(
    dims: str,
    a: Operand,
    b: Operand,
    layout: jax.Array,
    use_psum_layout: bool,
    out_dtype: DTypeLike,
    config: GemmConfig | None,
) -> jax.Array:
    dtype = checks.dtype("out_dtype", out_dtype, OUT_DTYPES, "bfloat16 or float32")
    k_last = dims == "G, N, K"
    a = checks.quantized("a", a, "M, K", RECIPE[0])
    b = checks.quantized("b", b, dims, RECIPE[1])
    groups = checked_sizes(a.data, b.data, "M, K", dims, dtype, 16)
    layout, psum = checked_grouped_layout(layout, use_psum_layout, groups, a.data.shape[0])
    checks.config(config, (GemmConfig,), dtype.itemsize)
    weights = b if k_last else Quantized(*(x.swapaxes(1, 2) for x in b))
    return _call(*a, *weights, layout, use_psum_layout=psum, out_dtype=dtype, config=config)[0]


def _values(data: jax.Array, scale: jax.Array) -> jax.Array:
    return dequantise(Quantized(data, scale), block=RECIPE[1])


def _reference(
    *operands: jax.Array, use_psum_layout: bool, out_dtype: jnp.dtype, config: GemmConfig | None
) -> list[jax.Array]:
    return [shared.contiguous(_values, operands, use_psum_layout).astype(out_dtype)]


def _masked_reference(
    *operands: jax.Array, expected_m: int, out_dtype: jnp.dtype, config: GemmConfig | None
) -> list[jax.Array]:
    return [shared.masked(_values, operands).astype(out_dtype)]


def _n_factors(n: int) -> tuple[str, str, tuple[tuple[str, int], ...], tuple[str, ...]]:
    """N of the data and of its scales, factors' sizes, and those that are whole."""
    if n % 128 == 0:
        return "(nb ni)", "nb", (("ni", 128),), ("ni",)
    return "n", "nb", (), ("n", "nb")


def _factors(avals: Avals, params: Params) -> Factors:
    n, n_scale, sizes, whole = _n_factors(avals[2].shape[1])
    layout = "g" if params["use_psum_layout"] else "m"
    rule = f"m k, m kb, g {n} k, g {n_scale} kb, {layout} -> m {n}"
    return Factors(rule, sizes, whole=("m", "g", "k", "kb", *whole))


def _masked_factors(avals: Avals, params: Params) -> Factors:
    n, n_scale, sizes, whole = _n_factors(avals[2].shape[1])
    rule = f"g m k, g m kb, g {n} k, g {n_scale} kb, g -> g m {n}"
    return Factors(rule, sizes, whole=("m", "k", "kb", *whole))


_CONTIGUOUS = Op(
    name="m_grouped_fp8_gemm_nt_contiguous",
    abstract_eval=shared.abstract_eval,
    reference=_reference,
    plan=plans.plan,
    configs=(GemmConfig,),
    ranked=plans.ranked,
    typical=typical_groups,
    operand_layouts=shared.operand_layouts,
    factors=_factors,
    gradient=shared.NO_GRADIENT,
)
_MASKED = dataclasses.replace(
    _CONTIGUOUS, name="m_grouped_fp8_gemm_nt_masked", reference=_masked_reference, factors=_masked_factors
)
_call: Any = make(_CONTIGUOUS)
_masked: Any = make(_MASKED)
