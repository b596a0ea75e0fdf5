"""Argument errors. Each names the argument, says what it must be, and what it is.

A wrong kind or dtype is a `TypeError`, a wrong shape or value a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.typing import DTypeLike

from jax_deepgemm.launch import MAX_SHARED_MEMORY


class Quantized(NamedTuple):
    """A quantised array: low-precision `data` and one `scale` for each block of it; the value is `data * scale`.

    Every function that takes one also takes a plain `(data, scale)` tuple.
    """

    data: jax.Array
    scale: jax.Array


jax.export.register_namedtuple_serialization(Quantized, serialized_name="jax_deepgemm.Quantized")


def describe(x: Any) -> str:
    """`bfloat16[4096,7168]` for an array or its abstract value, the type's name for anything else."""
    if isinstance(x, (jax.Array, np.ndarray, jax.ShapeDtypeStruct, ShapedArray)):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return type(x).__name__


def call(name: str, avals: Sequence[Any], out_avals: Sequence[Any]) -> str:
    """`name(float32[2,3], ...) -> float32[2]`"""
    operands, results = (", ".join(map(describe, side)) for side in (avals, out_avals))
    return f"{name}({operands}) -> {results}"


def fail(error: type[Exception], name: str, wanted: str, got: Any) -> NoReturn:
    raise error(f"`{name}` must be {wanted}, got {got if isinstance(got, str) else describe(got)}")


def array(name: str, x: Any, dtypes: Sequence[DTypeLike], dims: str, shape: Sequence[int] | None = None) -> jax.Array:
    """`x` as an array of one of `dtypes`, with as many dimensions as `dims` ("M, K") names, or of exactly `shape`."""
    wanted = f"{' or '.join(str(jnp.dtype(d)) for d in dtypes)} of shape ({dims})"
    if not isinstance(x, (jax.Array, np.ndarray)):
        fail(TypeError, name, wanted, x)
    if x.dtype not in [jnp.dtype(d) for d in dtypes]:
        fail(TypeError, name, wanted, x)
    if x.ndim != len(dims.split(",")) or (shape is not None and x.shape != tuple(shape)):
        fail(ValueError, name, wanted, x)
    return jnp.asarray(x)


def pair(name: str, x: Any) -> Quantized:
    """`x` as a `Quantized`; what its members are is left to `array`."""
    if not isinstance(x, tuple) or len(x) != 2:
        got = f"a tuple of {len(x)}" if isinstance(x, tuple) else describe(x)
        fail(TypeError, name, "a (data, scale) pair of arrays", got)
    return Quantized(*x)


def quantized(name: str, x: Any, dims: str, block: tuple[int, int]) -> Quantized:
    """`x` as an FP8 matrix, or a stack of them, with one scale for each `block` (rows, columns). UE8M0 scales become
    float32."""
    data, scale = pair(name, x)
    data = array(name, data, [jnp.float8_e4m3fn], dims)
    shape = scale_shape(data.shape, block)
    spelled = ", ".join(map(str, shape))
    scale = array(f"{name}.scale", scale, [jnp.float32, jnp.float8_e8m0fnu], spelled, shape)
    return Quantized(data, scale.astype(jnp.float32))


def config(value: Any, kinds: Sequence[type], out_bytes: int) -> None:
    """Checks what a caller gives as the configuration of a kernel: of one of `kinds`, and of a size that a GPU has."""
    if value is None:
        return
    if type(value) not in kinds:  # one family's may be a subclass of another's
        fail(TypeError, "config", f"a {' or '.join(kind.__name__ for kind in kinds)} or None", value)
    if value.stages(out_bytes, MAX_SHARED_MEMORY) < 2:
        wanted = f"of tiles that fit into {MAX_SHARED_MEMORY} bytes of shared memory twice"
        fail(ValueError, "config", wanted, repr(value))


def scale_shape(shape: Sequence[int], block: tuple[int, int]) -> tuple[int, ...]:
    """Of a matrix, or of each of a stack of them."""
    *stack, rows, columns = shape
    return *stack, -(-rows // block[0]), -(-columns // block[1])


def dtype(name: str, value: DTypeLike, allowed: Sequence[DTypeLike], wanted: str) -> jnp.dtype:
    """The dtype that `value` names, one of `allowed`; `wanted` says them to the user."""
    try:
        found = jnp.dtype(value)
    except TypeError:
        fail(TypeError, name, wanted, repr(value))
    if found not in [jnp.dtype(d) for d in allowed]:
        fail(TypeError, name, wanted, str(found))
    return found
