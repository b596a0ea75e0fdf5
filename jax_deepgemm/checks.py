"""Argument errors. Each names the argument, says what it must be, and what it is.

A wrong kind or dtype is a `TypeError`, a wrong shape or value a `ValueError`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.sharding import PartitionSpec, Sharding
from jax.typing import DTypeLike

from jax_deepgemm.launch import MAX_SHARED_MEMORY

MOST = 2**31 - 1  # of a static number, which a kernel may get as an int32
_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct, ShapedArray)
_Known = TypeVar("_Known")


class Quantized(NamedTuple):
    """A quantised array: low-precision `data` and one `scale` for each block of it; the value is `data * scale`.

    Every function that takes one also takes a plain `(data, scale)` tuple.
    """

    data: jax.Array
    scale: jax.Array


jax.export.register_namedtuple_serialization(Quantized, serialized_name="jax_deepgemm.Quantized")


def describe(x: Any) -> str:
    """`bfloat16[4096,7168]` for an array or its abstract value, the type's name for anything else."""
    if isinstance(x, _ARRAYS):
        return f"{x.dtype}[{','.join(map(str, x.shape))}]"
    return type(x).__name__


def shown(x: Any) -> str:
    """What Python calls it, but arrays, also those in it, as `describe` does: they may be large, or traced."""
    if type(x) in (tuple, list):
        inner = ", ".join(map(shown, x))
        return f"[{inner}]" if isinstance(x, list) else f"({inner}{',' if len(x) == 1 else ''})"
    return describe(x) if isinstance(x, _ARRAYS) else repr(x)


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
    rank = len(dims.split(",") if shape is None else shape)  # symbolic sizes are spelled with commas, too
    if x.ndim != rank or (shape is not None and x.shape != tuple(shape)):
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


def integers(name: str, x: Any, dims: str, shape: Sequence[int | None]) -> None:
    """Checks that `x` is an array of integers, of `shape`, where None is any size."""
    wanted = f"integers of shape ({dims})"
    if not isinstance(x, (jax.Array, np.ndarray)) or not jnp.issubdtype(x.dtype, jnp.integer):
        fail(TypeError, name, wanted, x)
    if x.ndim != len(shape) or any(size not in (None, found) for size, found in zip(shape, x.shape, strict=True)):
        fail(ValueError, name, wanted, x)


def numbers(name: str, x: Any, dims: str, shape: Sequence[int | None]) -> jax.Array:
    """`x` as int32, of any integers of `shape`, where None is any size; what int32 does not hold becomes its end."""
    integers(name, x, dims, shape)
    if x.dtype == jnp.int32:
        return jnp.asarray(x)
    ends = np.iinfo(np.int32)
    wide = x.dtype.itemsize > 4
    low = ends.min if wide and jnp.issubdtype(x.dtype, jnp.signedinteger) else None
    high = ends.max if wide or x.dtype == jnp.uint32 else None
    clip = np.clip if isinstance(x, np.ndarray) else jnp.clip  # JAX has no int64 of its own without x64
    return jnp.asarray((x if low is None and high is None else clip(x, low, high)).astype(jnp.int32))


def out_sharding(value: Any) -> None:
    if not isinstance(value, (Sharding, PartitionSpec, type(None))):
        fail(TypeError, "out_sharding", "a NamedSharding, a PartitionSpec or None", shown(value))


def as_integer(value: Any) -> int | None:
    """A static number as an int, None if it is none."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def integer(name: str, value: Any, wanted: str, least: int) -> int:
    """A static number of at least `least`; `wanted` says so to the user."""
    found = as_integer(value)
    if found is None:
        fail(TypeError, name, wanted, shown(value))
    if not least <= found <= MOST:
        fail(ValueError, name, wanted, str(found))
    return found


def flag(name: str, value: Any) -> bool:
    """A static truth value."""
    if not isinstance(value, (bool, np.bool_)) and as_integer(value) not in (0, 1):
        fail(TypeError, name, "True or False", shown(value))
    return bool(value)


def one_of(name: str, value: Any, known: Sequence[_Known], wanted: str) -> _Known:
    """That of `known` which a static `value` equals; `wanted` says them to the user."""
    try:
        found = {k: k for k in known}.get(value)
    except TypeError:  # what holds an array has no hash
        found = None
    if found is None:
        fail(ValueError, name, wanted, shown(value))
    return found


def recipe(value: Any, known: Sequence[_Known]) -> _Known:
    """That of `known` which is asked for; None is the first."""
    wanted = f"{' or '.join(map(str, known))} or None"
    return known[0] if value is None else one_of("recipe", value, known, wanted)


def as_dtype(value: Any) -> np.dtype | None:
    """The dtype that `value` names, None if it names none, as arrays and None do here, though not to NumPy."""
    if not isinstance(value, (str, type, np.dtype)):
        return None
    try:
        return jnp.dtype(value)
    except (TypeError, ValueError):
        return None


def dtype(name: str, value: DTypeLike, allowed: Sequence[DTypeLike], wanted: str) -> jnp.dtype:
    """The dtype that `value` names, one of `allowed`; `wanted` says them to the user."""
    found = as_dtype(value)
    if found is None or found not in [jnp.dtype(d) for d in allowed]:
        fail(TypeError, name, wanted, shown(value) if found is None else str(found))
    return found


def numeric_dtype(name: str, value: DTypeLike) -> jnp.dtype:
    """The dtype of numbers that `value` names."""
    found = as_dtype(value)
    if found is None or not jnp.issubdtype(found, jnp.number):
        fail(TypeError, name, "a dtype of numbers", shown(value) if found is None else str(found))
    return found
