"""What all GEMMs do with a product in float32: add `c`, sum over devices, round, write over `c`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jax_deepgemm.op import Avals, Params

Call = Callable[..., Sequence[jax.Array]]
Reduce = Callable[[Call, tuple[str, ...], Sequence[jax.Array], Params], list[jax.Array]]


def rounded(product: jax.Array, c: Sequence[jax.Array], out_dtype: jnp.dtype) -> jax.Array:
    for x in c:
        product += x.astype(jnp.float32)
    return product.astype(out_dtype)


def reduce_before(c: int) -> Reduce:
    """`Op.reduce` of a GEMM whose `c`, if it has one, is its operand number `c`, the last."""

    def reduce(call: Call, axes: tuple[str, ...], operands: Sequence[jax.Array], params: Params) -> list[jax.Array]:
        """K is sharded: partial results are summed, and `c` added, in float32."""
        (partial,) = call(*operands[:c], out_dtype=jnp.dtype(jnp.float32))
        return [rounded(jax.lax.psum(partial, axes), operands[c:], params["out_dtype"])]

    return reduce


def alias_of(c: int) -> Callable[[Avals, Params], dict[int, int]]:
    """`Op.aliases` of the same: the result takes the place of a donated `c`."""

    def aliases(avals: Avals, params: Params) -> dict[int, int]:
        return {c: 0} if len(avals) > c else {}

    return aliases
