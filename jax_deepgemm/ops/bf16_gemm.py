"""Dense GEMMs of BF16 operands, each in either major order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_deepgemm import checks
from jax_deepgemm.factors import Factors
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.ops import batched_bf16_gemm, bf16_gemm_gradient
from jax_deepgemm.ops.bf16_gemm_plan import plan, ranked
from jax_deepgemm.ops.gemm_result import alias_of, reduce_before, rounded
from jax_deepgemm.ops.varying import varying_alike
from jax_deepgemm.primitive import make

CONFIGS = (Bf16GemmConfig,)
_OUT_DTYPES = (jnp.bfloat16, jnp.float32)
_A = {"n": "M, K", "t": "K, M"}
_B = {"t": "N, K", "n": "K, N"}


def bf16_gemm_nt(
    a: jax.Array,
    b: jax.Array,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: Bf16GemmConfig | None = None,
) -> jax.Array:
    """`A @ B.T (+ C)` of bfloat16 matrices, accumulated in float32.

    a: bfloat16 [M, K].
    b: bfloat16 [N, K].
    c: `out_dtype` [M, N], added before the result is rounded. Donated to jit, its buffer becomes the result's.
    out_dtype: bfloat16 or float32.
    config: the kernel's tiles, of this layout, instead of what `tune` found or the heuristics choose. Only a kernel
        heeds it, and no gradient.

    Sizes may be zero. A row of each operand and of the result is a multiple of 16 bytes: here K is a multiple of 8,
    and N of 8, or of 4 for float32 out. Returns `out_dtype` [M, N]. NaN and Inf stay in the rows and columns they
    belong to.

    The derivatives with respect to `a`, `b` and `c`, forward and reverse, of any order, are GEMMs of the other layouts:
    nothing is transposed in memory. Tangents and cotangents are rounded to bfloat16 before they are multiplied.

    Under jit over several devices, operands sharded over M or N stay where they are, and sharded K becomes a sum of
    float32 partial results. Shards whose rows are no multiples of 16 bytes are multiplied by XLA.

    Under `vmap` of one operand the batch becomes part of M or N. Of both, it is one launch of a grouped GEMM, for up to
    1024 problems; to its result `c` is added. So are the derivatives. More problems, or a `config`, make a loop.

    Raises TypeError or ValueError, naming the argument, for other dtypes and shapes.

    The names are DeepGEMM's (https://github.com/deepseek-ai/DeepGEMM).

    >>> a, b = jnp.ones((4, 256), jnp.bfloat16), jnp.ones((128, 256), jnp.bfloat16)
    >>> bf16_gemm_nt(a, b).shape
    (4, 128)
    """
    return _gemm("nt", a, b, c, out_dtype, config)


def bf16_gemm_nn(
    a: jax.Array,
    b: jax.Array,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: Bf16GemmConfig | None = None,
) -> jax.Array:
    """`A @ B (+ C)`: as `bf16_gemm_nt`, of a B whose N is contiguous.

    a: bfloat16 [M, K], K a multiple of 8.
    b: bfloat16 [K, N], N a multiple of 8.

    The kernel reads both as they lie in memory.

    >>> bf16_gemm_nn(jnp.ones((4, 256), jnp.bfloat16), jnp.ones((256, 128), jnp.bfloat16)).shape
    (4, 128)
    """
    return _gemm("nn", a, b, c, out_dtype, config)


def bf16_gemm_tn(
    a: jax.Array,
    b: jax.Array,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: Bf16GemmConfig | None = None,
) -> jax.Array:
    """`A.T @ B (+ C)`: as `bf16_gemm_nt`, of an A whose M and a B whose N are contiguous.

    a: bfloat16 [K, M], M a multiple of 8.
    b: bfloat16 [K, N], N a multiple of 8.

    K is any number. The kernel reads both as they lie in memory. Under `vmap` of both it adds `c` itself.

    >>> bf16_gemm_tn(jnp.ones((5, 16), jnp.bfloat16), jnp.ones((5, 128), jnp.bfloat16)).shape
    (16, 128)
    """
    return _gemm("tn", a, b, c, out_dtype, config)


def bf16_gemm_tt(
    a: jax.Array,
    b: jax.Array,
    *,
    c: jax.Array | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    config: Bf16GemmConfig | None = None,
) -> jax.Array:
    """`A.T @ B.T (+ C)`: as `bf16_gemm_nt`, of an A whose M is contiguous.

    a: bfloat16 [K, M], M a multiple of 8.
    b: bfloat16 [N, K], K a multiple of 8, and N as for `bf16_gemm_nt`.

    The kernel reads both as they lie in memory, but under `vmap` of both XLA transposes `a`.

    >>> bf16_gemm_tt(jnp.ones((256, 16), jnp.bfloat16), jnp.ones((128, 256), jnp.bfloat16)).shape
    (16, 128)
    """
    return _gemm("tt", a, b, c, out_dtype, config)


def _gemm(
    layout: str,
    a: jax.Array,
    b: jax.Array,
    c: jax.Array | None,
    out_dtype: DTypeLike,
    config: Bf16GemmConfig | None,
) -> jax.Array:
    dtype = checks.dtype("out_dtype", out_dtype, _OUT_DTYPES, "bfloat16 or float32")
    of_a, of_b = _A[layout[0]], _B[layout[1]]
    a = checks.array("a", a, [jnp.bfloat16], of_a)
    b = checks.array("b", b, [jnp.bfloat16], of_b)
    sizes = dict(zip(of_a.split(", "), a.shape, strict=True))
    sizes_of_b = dict(zip(of_b.split(", "), b.shape, strict=True))
    m, n, k = sizes["M"], sizes_of_b["N"], sizes["K"]
    if sizes_of_b["K"] != k:
        checks.fail(ValueError, "b", f"of shape ({of_b.replace('K', str(k))}) with the K of `a`", b)
    for name, x, dims in (("a", a, of_a), ("b", b, of_b)):
        if x.shape[1] % 8:
            checks.fail(ValueError, name, f"of shape ({dims}) with {dims[-1]} a multiple of 8", x)
    if n * dtype.itemsize % 16:
        wanted = f"of shape ({of_b}) with N a multiple of {16 // dtype.itemsize} for {dtype} out"
        checks.fail(ValueError, "b", wanted, b)
    checks.config(config, CONFIGS, dtype.itemsize)
    if config is not None and config.layout != layout:
        checks.fail(ValueError, "config", f"of layout {layout}", repr(config))
    added = () if c is None else (checks.array("c", c, [dtype], f"{m}, {n}", (m, n)),)
    return _call(*varying_alike(a, b, *added), layout=layout, out_dtype=dtype, config=config)[0]


# The operands of the primitive: a, b, and c if there is one.


def _abstract_eval(
    avals: Avals, *, layout: str, out_dtype: jnp.dtype, config: Bf16GemmConfig | None
) -> list[jax.ShapeDtypeStruct]:
    m, n = avals[0].shape[layout[0] == "t"], avals[1].shape[layout[1] == "n"]
    return [jax.ShapeDtypeStruct((m, n), out_dtype)]


def _reference(
    a: jax.Array,
    b: jax.Array,
    *c: jax.Array,
    layout: str,
    out_dtype: jnp.dtype,
    config: Bf16GemmConfig | None,
) -> list[jax.Array]:
    product = jax.lax.dot_general(
        a,
        b,
        (((int(layout[0] == "n"),), (int(layout[1] == "t"),)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    return [rounded(product, c, out_dtype)]


def _factors(avals: Avals, params: Params) -> Factors:
    """A shard whose rows are no multiples of 16 bytes is multiplied by reference, so no factor is whole."""
    layout = params["layout"]
    of_a, of_b = (dims[layout[i]].replace(",", "").lower() for i, dims in enumerate((_A, _B)))
    c = ", m n" if len(avals) == 3 else ""
    return Factors(f"{of_a}, {of_b}{c} -> m n", summed=("k",))


_call: Any = make(
    Op(
        name="bf16_gemm",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=plan,
        configs=CONFIGS,
        ranked=ranked,
        aliases=alias_of(2),
        factors=_factors,
        reduce=reduce_before(2),
        jvp=bf16_gemm_gradient.jvp,
        transpose=bf16_gemm_gradient.transpose,
        batched=batched_bf16_gemm.BATCHED,
    )
)
