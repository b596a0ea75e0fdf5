"""The launch contract: everything that a kernel launch is, decided in Python, executed by `ffi/launch.cc`.

A `Launch` is pure data: it can be printed, compared and tested with no GPU. `buffer` numbers the buffers of the
custom call: operands first, then results.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel template and its named template arguments.

    `cuda/kernels/<stem>.cuh` defines `template <class Config> __global__ void <stem>(...)`; the arguments become the
    static members of `Config`.
    """

    stem: str
    template: tuple[tuple[str, int | bool | str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Pointer:
    """A kernel argument: the address of a buffer plus `offset` bytes."""

    buffer: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A kernel argument: a tiled TMA descriptor over a buffer. Innermost dimension first; strides in bytes."""

    buffer: int
    dtype: str  # a NumPy-style name: "float8_e4m3fn", "bfloat16", "float32", "uint8", "int32", ...
    sizes: tuple[int, ...]
    strides: tuple[int, ...]  # of dimensions 1.. (the innermost is dense): one shorter than `sizes`
    box: tuple[int, ...]
    element_strides: tuple[int, ...] = ()  # () means all ones
    offset: int = 0  # bytes from the start of the buffer
    swizzle: int = 0  # 0, 32, 64 or 128 bytes
    l2_promotion: int = 256  # 0, 64, 128 or 256 bytes
    fill: str = "zeros"  # what reads out of bounds see: "zeros" or "nan"


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A kernel argument passed by value. dtype: "int32", "uint32", "int64", "uint64" or "float32"."""

    value: int | float
    dtype: str = "int32"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel launch. `grid` counts blocks, not clusters; `shared_memory` is dynamic, in bytes."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Pointer | TensorMap | Scalar, ...]
    cluster: tuple[int, int, int] = (1, 1, 1)
    shared_memory: int = 0
    pdl: bool = False  # programmatic dependent launch: the kernel itself waits for its predecessor
