"""What all m-grouped GEMMs ask of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm import checks

OUT_DTYPES = (jnp.bfloat16, jnp.float32)


def checked_sizes(
    a: jax.Array,
    b: jax.Array,
    of_a: str,
    of_b: str,
    out_dtype: jnp.dtype,
    multiple: int,
    *,
    values: Sequence[int] | None = None,
) -> int:
    """The number of groups, of operands whose dimensions are `of_a` and `of_b`.

    multiple: elements in 16 bytes of a row of an operand.
    values: the shape of `b` in values, where two of them may be an element.
    """
    sizes_of_a = dict(zip(of_a.split(", "), a.shape, strict=True))
    sizes = dict(zip(of_b.split(", "), b.shape if values is None else values, strict=True))
    shape, end = ("of shape ({})", "") if values is None else ("of ({})", " values")
    if any(sizes[dim] != size for dim, size in sizes_of_a.items() if dim in sizes):
        shared = " and ".join(dim for dim in sizes_of_a if dim in sizes)
        wanted = ", ".join(str(sizes_of_a.get(dim, dim)) for dim in sizes)
        checks.fail(ValueError, "b", f"{shape.format(wanted)}{end} with the {shared} of `a`", b)
    if sizes["K"] % multiple:
        checks.fail(ValueError, "a", f"of shape ({of_a}) with K a multiple of {multiple}", a)
    if of_b.endswith("N") and multiple == 8 and sizes["N"] % 8:  # BF16 is read as it lies
        checks.fail(ValueError, "b", f"of shape ({of_b}) with N a multiple of 8", b)
    if sizes["N"] * out_dtype.itemsize % 16:
        least = 16 // out_dtype.itemsize
        wanted = f"{shape.format(of_b)}{end} with N a multiple of {least} for {out_dtype} out"
        checks.fail(ValueError, "b", wanted, b)
    return sizes["G"]


def checked_layout(name: str, x: Any, dims: str, size: int) -> jax.Array:
    return checks.numbers(name, x, dims, (size,))


def checked_grouped_layout(x: Any, use_psum_layout: Any, groups: int, m: int) -> tuple[jax.Array, bool]:
    """The layout of contiguous rows, and whether it says where groups end."""
    psum = checks.flag("use_psum_layout", use_psum_layout)
    return checked_layout("grouped_layout", x, *(("G", groups) if psum else ("M", m))), psum


def checked_expected_m(value: Any) -> int:
    return checks.integer("expected_m", value, "a number of rows known at tracing", 0)
