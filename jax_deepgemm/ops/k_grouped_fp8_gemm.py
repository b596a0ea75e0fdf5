"""Products of FP8 matrices that sum over groups of K."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.k_grouped_config import check
from jax_deepgemm.op import Avals, Layouts, Op, Params
from jax_deepgemm.ops import k_groups
from jax_deepgemm.ops.casting import dequantise
from jax_deepgemm.ops.gemm_result import alias_of, rounded
from jax_deepgemm.ops.k_grouped_plan import fp8_plan, fp8_ranked
from jax_deepgemm.primitive import make

CONFIGS = (GemmConfig1d1d,)
_OUT_DTYPES = (jnp.float32, jnp.bfloat16)
_BLOCK = (1, k_groups.BLOCK)
_Operand = Quantized | tuple[jax.Array, jax.Array]


def k_grouped_fp8_gemm_tn_contiguous(
    a: _Operand,
    b: _Operand,
    ks: jax.Array,
    c: jax.Array | None = None,
    *,
    out_dtype: DTypeLike = jnp.float32,
    config: GemmConfig1d1d | None = None,
) -> jax.Array:
    """`A[g].T @ B[g] (+ C[g])` for groups g of rows of matrices [K, M] and [K, N], quantised to FP8 and transposed.

    a: data float8_e4m3fn [M, P] and scale [M, P / 128], as from `k_grouped_cast_to_fp8(x, ks)`, which says what P is:
        K lies last there, and each group begins at a multiple of 128 of it, its last block filled up with zeros.
    b: data float8_e4m3fn [N, P] and scale [N, P / 128], likewise.
    ks: integers [G], how many rows each group has. Groups lie one behind the other, and may be of any size. Sizes are
        read on the device, and may be anything there: a negative one counts as 0, and what lies beyond P is cut off.
    c: `out_dtype` [G, M, N], added before the result is rounded. Donated to jit, its buffer becomes the result's.
    out_dtype: float32 or bfloat16.
    config: the kernel's tiles, without clusters, instead of what `tune` found or the heuristics choose. Only a kernel
        heeds it.

    Scales are float32, or float8_e8m0fnu. A row of the result is a multiple of 16 bytes. Returns `out_dtype` [G, M, N];
    of a group without rows, zeros or `c`. NaN and Inf stay in the group, the row and the column they belong to.

    Under jit over several devices, operands sharded over M or N stay where they are; K is gathered.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes; NotImplementedError when
    differentiated.

    DeepGEMM's function of this name (https://github.com/deepseek-ai/DeepGEMM) needs the sizes on the host too, as
    multiples of 128. The recipe is that of DeepSeek-V3 (arXiv:2412.19437, section 3.3).

    >>> ks = jnp.array([30, 0, 70])
    >>> x, y = jnp.ones((100, 16), jnp.bfloat16), jnp.ones((100, 128), jnp.bfloat16)
    >>> a, b = k_grouped_cast_to_fp8(x, ks), k_grouped_cast_to_fp8(y, ks)
    >>> k_grouped_fp8_gemm_tn_contiguous(a, b, ks).shape
    (3, 16, 128)
    """
    dtype = checks.dtype("out_dtype", out_dtype, _OUT_DTYPES, "float32 or bfloat16")
    a = checks.quantized("a", a, "M, P", _BLOCK)
    b = checks.quantized("b", b, "N, P", _BLOCK)
    (m, extent), n = a.data.shape, b.data.shape[0]
    if b.data.shape[1] != extent:
        checks.fail(ValueError, "b", f"of shape (N, {extent}) with the P of `a`", b.data)
    if extent % k_groups.BLOCK:
        checks.fail(ValueError, "a", f"of shape (M, P) with P a multiple of {k_groups.BLOCK}", a.data)
    if n * dtype.itemsize % 16:
        wanted = f"of shape (N, P) with N a multiple of {16 // dtype.itemsize} for {dtype} out"
        checks.fail(ValueError, "b", wanted, b.data)
    ks = k_groups.checked_sizes(ks)
    checks.config(config, CONFIGS, dtype.itemsize)
    if config is not None:
        check(config)
    shape = (ks.shape[0], m, n)
    added = () if c is None else (checks.array("c", c, [dtype], ", ".join(map(str, shape)), shape),)
    return _call(*a, *b, ks, *added, out_dtype=dtype, config=config)[0]


# The operands of the primitive: a's data and scale, b's data and scale, ks, and c if there is one.


def _abstract_eval(avals: Avals, *, out_dtype: jnp.dtype, config: GemmConfig1d1d | None) -> list[jax.ShapeDtypeStruct]:
    a, b, ks = avals[0], avals[2], avals[4]
    return [jax.ShapeDtypeStruct((ks.shape[0], a.shape[0], b.shape[0]), out_dtype)]


def _reference(
    a: jax.Array,
    a_scale: jax.Array,
    b: jax.Array,
    b_scale: jax.Array,
    ks: jax.Array,
    *c: jax.Array,
    out_dtype: jnp.dtype,
    config: GemmConfig1d1d | None,
) -> list[jax.Array]:
    wide = [dequantise(Quantized(*x), block=_BLOCK) for x in ((a, a_scale), (b, b_scale))]

    def product(mine: jax.Array) -> jax.Array:
        left, right = (jnp.where(mine, x, 0) for x in wide)  # both: NaN times zero is NaN
        return jax.lax.dot_general(
            left,
            right,
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    extent = a.shape[1]
    columns = k_groups.rows_of_groups(*k_groups.padded_bounds(ks, extent), extent)
    return [rounded(jax.lax.map(product, columns), c, out_dtype)]


def _factors(avals: Avals, params: Params) -> Factors:
    """Sizes count K from the beginning of all, so neither K nor groups are shared out."""
    c = ", g m n" if len(avals) == 6 else ""
    return Factors(f"m p, m pb, n p, n pb, g{c} -> g m n", whole=("p", "pb", "g"))


def _operand_layouts(avals: Avals, params: Params) -> Layouts:
    """Scales with the rows fastest: those of a tile are neighbours, and a warp copies 32 of them at once."""
    return [None, (0, 1), None, (0, 1), None, None][: len(avals)]


def _typical(avals: Avals, params: Params) -> dict[int, np.ndarray]:
    return {4: k_groups.evenly(avals[0].shape[1], avals[4].shape[0], k_groups.BLOCK)}


_call: Any = make(
    Op(
        name="k_grouped_fp8_gemm_tn_contiguous",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=fp8_plan,
        configs=CONFIGS,
        ranked=fp8_ranked,
        typical=_typical,
        operand_layouts=_operand_layouts,
        aliases=alias_of(5),
        factors=_factors,
        gradient="quantised operands have no gradients; differentiate around it with jax.custom_vjp",
    )
)
