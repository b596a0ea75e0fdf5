"""The launch contract: everything that a kernel launch is, decided in Python, executed by `ffi/launch.cc`.

A `Launch` is pure data: it can be printed, compared and tested with no GPU. `buffer` numbers the buffers of the
custom call: operands first, then results. Every class checks itself, so a `Launch` that exists has a geometry that the
hardware takes; that its arguments lie inside their buffers is checked by `ffi/launch_description.cc`, which knows them.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import numpy as np

MAX_SHARED_MEMORY = 227 * 1024  # bytes a block, on every architecture with kernels here

# Bits of an element in memory. FP8 and FP4 have no arithmetic in the TMA unit: out of bounds they read as zero bits.
_TENSOR_MAP_BITS = {
    "uint8": 8,
    "int8": 8,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "float8_e8m0fnu": 8,
    "uint16": 16,
    "uint32": 32,
    "int32": 32,
    "uint64": 64,
    "int64": 64,
    "float16": 16,
    "float32": 32,
    "float64": 64,
    "bfloat16": 16,
    "tfloat32": 32,
    "float4_e2m1fn": 4,
    "float4_e2m1fn_padded": 4,
}
_NAN_FILL = ("float16", "float32", "float64", "bfloat16", "tfloat32")
_SCALAR_RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}


class CompiledKernel(Protocol):
    """What `Launch.attributes` needs of a compiled kernel."""

    @property
    def cubin(self) -> bytes: ...

    @property
    def symbol(self) -> str: ...


def _fail(field: str, must: str, value: object) -> NoReturn:
    raise ValueError(f"`{field}` must {must}, got {value!r}")


def _integers(field: str, values: Sequence[int], low: int, high: int, length: int | None = None) -> None:
    """Checks that `values` are `length` integers in low..high."""
    if length is not None and len(values) != length:
        _fail(field, f"have {length} elements", values)
    if not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and low <= v <= high for v in values):
        _fail(field, f"be integers in {low}..{high}", values)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel template and its named template arguments.

    `cuda/kernels/<stem>.cuh` defines `template <class Config> __global__ void <stem>(...)`; the arguments become the
    static members of `Config`.
    """

    stem: str
    template: tuple[tuple[str, int | bool | str], ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.template]
        for name in (self.stem, *names):
            if not name.isidentifier():
                _fail("Kernel", "have identifiers for its stem and its template's names", name)
        if len(set(names)) != len(names):
            _fail("Kernel.template", "name every argument once", names)


@dataclasses.dataclass(frozen=True)
class Pointer:
    """A kernel argument: the address of a buffer plus `offset` bytes."""

    buffer: int
    offset: int = 0

    def __post_init__(self) -> None:
        _integers("Pointer.buffer", (self.buffer,), 0, 2**32 - 1)
        _integers("Pointer.offset", (self.offset,), 0, 2**63 - 1)

    def attributes(self) -> dict[str, Any]:
        return {"kind": "pointer", "buffer": int(self.buffer), "offset": int(self.offset)}


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """A kernel argument: a tiled TMA descriptor over a buffer. Innermost dimension first; strides in bytes.

    The limits are those of `cuTensorMapEncodeTiled` in the CUDA driver API. "float4_e2m1fn_padded" reads packed FP4 and
    writes it to shared memory with 8 bytes of gap after every 8 bytes, as tensor cores want FP4 beside FP8.
    """

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

    def __post_init__(self) -> None:
        rank = len(self.sizes)
        if self.dtype not in _TENSOR_MAP_BITS:
            _fail("TensorMap.dtype", f"be one of {', '.join(_TENSOR_MAP_BITS)}", self.dtype)
        if not 1 <= rank <= 5:
            _fail("TensorMap.sizes", "have 1 to 5 dimensions", self.sizes)
        _integers("TensorMap.buffer", (self.buffer,), 0, 2**32 - 1)
        _integers("TensorMap.offset", (self.offset,), 0, 2**63 - 1)
        _integers("TensorMap.sizes", self.sizes, 1, 2**32)
        _integers("TensorMap.strides", self.strides, 1, 2**40 - 1, rank - 1)
        _integers("TensorMap.box", self.box, 1, 256, rank)
        if self.element_strides:
            _integers("TensorMap.element_strides", self.element_strides, 1, 8, rank)
        for field, value, choices in (
            ("swizzle", self.swizzle, (0, 32, 64, 128)),
            ("l2_promotion", self.l2_promotion, (0, 64, 128, 256)),
            ("fill", self.fill, ("zeros", "nan")),
        ):
            if value not in choices:
                _fail(f"TensorMap.{field}", f"be one of {choices}", value)
        if self.fill == "nan" and self.dtype not in _NAN_FILL:
            _fail("TensorMap.fill", f'be "zeros" for {self.dtype}', self.fill)
        self._check_bytes()

    def _check_bytes(self) -> None:
        padded = self.dtype == "float4_e2m1fn_padded"
        alignment = 32 if padded else 16
        if self.offset % alignment:
            _fail("TensorMap.offset", f"be a multiple of {alignment} bytes", self.offset)
        if any(stride % alignment for stride in self.strides):
            _fail("TensorMap.strides", f"be multiples of {alignment} bytes", self.strides)
        bits = _TENSOR_MAP_BITS[self.dtype]
        if padded and (self.sizes[0] % 128 or self.box[0] != 128):
            _fail("TensorMap", "have an innermost size of a multiple of 128 and box of 128", (self.sizes, self.box))
        if padded and self.swizzle not in (0, 128):
            _fail("TensorMap.swizzle", f"be 0 or 128 for {self.dtype}", self.swizzle)
        if self.sizes[0] * bits % 8:
            _fail("TensorMap.sizes", f"have an even innermost size for {self.dtype}", self.sizes)
        inner = self.box[0] * bits
        if inner % 128:
            _fail("TensorMap.box", "span a multiple of 16 bytes innermost", f"{inner / 8:g} bytes")
        if self.swizzle and inner > self.swizzle * 8:
            _fail("TensorMap.box", f"span at most the {self.swizzle} bytes of the swizzle", f"{inner // 8} bytes")

    def attributes(self) -> dict[str, Any]:
        rank = len(self.sizes)
        attributes: dict[str, Any] = {
            "kind": "tensor_map",
            "buffer": int(self.buffer),
            "offset": int(self.offset),
            "dtype": self.dtype,
            "sizes": np.array(self.sizes, np.int64),
            "box": np.array(self.box, np.int64),
            "element_strides": np.array(self.element_strides or (1,) * rank, np.int64),
            "swizzle": self.swizzle,
            "l2_promotion": self.l2_promotion,
            "fill": self.fill,
        }
        if rank > 1:  # an empty array has no attribute form that every version decodes
            attributes["strides"] = np.array(self.strides, np.int64)
        return attributes


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A kernel argument passed by value. dtype: "int32", "uint32", "int64", "uint64" or "float32"."""

    value: int | float
    dtype: str = "int32"

    def __post_init__(self) -> None:
        if self.dtype == "float32":
            if isinstance(self.value, bool) or not isinstance(self.value, (int, float, np.number)):
                _fail("Scalar.value", "be a number", self.value)
            try:
                struct.pack("<f", self.value)
            except OverflowError:
                _fail("Scalar.value", "be in the range of float32", self.value)
        elif self.dtype in _SCALAR_RANGES:
            _integers("Scalar.value", (self.value,), *_SCALAR_RANGES[self.dtype])  # type: ignore[arg-type]
        else:
            _fail("Scalar.dtype", f"be one of {', '.join(_SCALAR_RANGES)}, float32", self.dtype)

    def attributes(self) -> dict[str, Any]:
        if self.dtype == "float32":
            return {"kind": "scalar", "dtype": self.dtype, "value": np.float32(self.value)}
        # uint64 travels as the int64 of the same bits: MLIR attributes that XLA decodes are signed.
        value = int(self.value)
        return {"kind": "scalar", "dtype": self.dtype, "value": value - 2**64 if value >= 2**63 else value}


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

    def __post_init__(self) -> None:
        try:
            self._check()
        except ValueError as error:
            raise ValueError(f"launch of kernel {self.kernel.stem}: {error}") from None

    def _check(self) -> None:
        for field, values, limits in (
            ("grid", self.grid, (2**31 - 1, 65535, 65535)),
            ("block", self.block, (1024, 1024, 64)),
            ("cluster", self.cluster, (16, 16, 16)),
        ):
            _integers(field, values, 1, max(limits), 3)
            if any(value > limit for value, limit in zip(values, limits, strict=True)):
                _fail(field, f"be at most {limits}", values)
        if math.prod(self.block) > 1024:
            _fail("block", "have at most 1024 threads", self.block)
        if math.prod(self.cluster) > 16:
            _fail("cluster", "have at most 16 blocks", self.cluster)
        if any(blocks % size for blocks, size in zip(self.grid, self.cluster, strict=True)):
            _fail("cluster", f"divide the grid {self.grid}", self.cluster)
        _integers("shared_memory", (self.shared_memory,), 0, MAX_SHARED_MEMORY)
        if len(self.arguments) > 512:
            _fail("arguments", "be at most 512", len(self.arguments))
        for index, argument in enumerate(self.arguments):
            if not isinstance(argument, (Pointer, TensorMap, Scalar)):
                _fail(f"arguments[{index}]", "be a Pointer, a TensorMap or a Scalar", argument)

    def attributes(self, binary: CompiledKernel) -> dict[str, Any]:
        """The attributes of the custom call `jax_deepgemm.launch`: `jax.ffi.ffi_lowering(name)(ctx, *args, **these)`.

        Everything but the cubin can be read in the HLO. Dictionaries are sorted there, hence the numbered names.
        """
        return {
            "kernel": self.kernel.stem,
            "template": ", ".join(f"{name}={value}" for name, value in self.kernel.template),
            "symbol": binary.symbol,
            "cubin": base64.b64encode(binary.cubin).decode("ascii"),
            "grid": np.array(self.grid, np.int64),
            "block": np.array(self.block, np.int64),
            "cluster": np.array(self.cluster, np.int64),
            "shared_memory": int(self.shared_memory),
            "pdl": bool(self.pdl),
            "arguments": {
                f"argument{index:03}": argument.attributes() for index, argument in enumerate(self.arguments)
            },
        }
