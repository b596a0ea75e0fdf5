"""Runs the launch of a kernel on the CPU: its CUDA source, compiled by the C++ compiler against `emulator.h`.

For kernels' logic, where there is no GPU: which thread reads, waits and writes what. Threads switch in an order drawn
from `seed`, and what is asynchronous happens as late as it may, so that a wrong phase, count or hand-over shows as a
wrong result, or as threads that wait for ever. Operands end at pages that nobody may touch: who does so ends the
process. It says nothing about speed, fences or the memory model.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import mmap
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_deepgemm import compile
from jax_deepgemm.launch import _TENSOR_MAP_BITS, Kernel, Launch, Pointer, Scalar, TensorMap

Changes = tuple[tuple[str, str, str], ...]

_HERE = pathlib.Path(__file__).parent
# Jumps between stacks are no faults, which a fortified longjmp takes them for.
_OPTIONS = ("-std=c++20", "-O1", "-fPIC", "-fno-strict-aliasing", "-w", "-Wno-psabi", "-U_FORTIFY_SOURCE")
_SCALARS = {"int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8", "float32": "f4"}
# What only nvcc understands, and what stands for it. Every pattern must be found in its file.
_REPLACED: dict[str, tuple[tuple[str, str], ...]] = {
    "common/types.cuh": (
        (
            r'asm\("cvt.rn.bf16x2.f32[^;]*;"[^;]*;',
            "const auto round = [](float v) { const u32 b = __float_as_uint(v);"
            " return v != v ? 0x7fffu : (b + 0x7fffu + (b >> 16 & 1)) >> 16; };"
            " packed = round(low) | round(high) << 16;",
        ),
    ),
    "common/cast.cuh": (
        (
            r'asm\("cvt.f32.f16[^;]*;"[^;]*;',
            "wide = static_cast<float>(std::bit_cast<_Float16>(static_cast<u16>(element)));",
        ),
    ),
    "common/fp8_cast.cuh": (
        (
            r'asm\("\{\\n"\s*"\.reg \.b16 low, high;.*?: "f"\(first\)[^;]*;',
            "packed = to_e4m3(first) | to_e4m3(second) << 8 | to_e4m3(third) << 16 | to_e4m3(fourth) << 24;",
        ),
    ),
    "common/row_vector.cuh": (
        (
            r'asm\("cvt.rn.f16x2.f32[^;]*;"[^;]*;',
            "packed = std::bit_cast<u16>(static_cast<_Float16>(low)) |"
            " static_cast<u32>(std::bit_cast<u16>(static_cast<_Float16>(high))) << 16;",
        ),
    ),
    "common/fp4_decode.cuh": ((r'asm\("prmt[^;]*;"[^;]*;', "bytes = __byte_perm(low, high, nibbles);"),),
    "common/fp4_pair_feed.cuh": (
        (
            r'asm volatile\("ld.shared.v4.u32[^;]*;"[^;]*;',
            "x = *reinterpret_cast<const uint4*>(emu::dynamic_shared() + address);",
        ),
        (
            r'asm volatile\("st.shared.v4.u32[^;]*;"[^;]*;',
            "*reinterpret_cast<uint4*>(emu::dynamic_shared() + address) = x;",
        ),
    ),
    "common/gemm_epilogue.cuh": (
        (
            r'asm volatile\("stmatrix.*?: "memory"\);',
            "store_matrices(atom + to, {pack_bf16(v[i], v[i + 1]), pack_bf16(v[i + 2], v[i + 3]),"
            " pack_bf16(v[i + 4], v[i + 5]), pack_bf16(v[i + 6], v[i + 7])});",
        ),
    ),
    "common/split_k.cuh": (
        (
            r'asm volatile\(\s*"\{\\n"\s*"\.reg \.b32 remote.*?"memory"\);',
            "v = *reinterpret_cast<float4*>(in_block(const_cast<float*>(local), rank));",
        ),
        (r'asm volatile\("st.global.v4.f32.*?"memory"\);', "*reinterpret_cast<float4*>(d + offset) = v;"),
        (
            r'asm volatile\("st.global.v2.b32.*?"memory"\);',
            "*reinterpret_cast<uint2*>(d + offset) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));",
        ),
    ),
}
_SHARED = (
    (
        r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];",
        r"\1* const \2 = reinterpret_cast<\1*>(emu::dynamic_shared());",
    ),
    (r"__shared__ ([^;]+?) (\w+);", r"auto& \2 = emu::static_shared<\1>();"),
)
_MAIN = """
extern "C" const char* emulate(void* const* arguments, const emu::Launch* launch) {{
    return emu::run(&{stem}<Config>, arguments, *launch);
}}
"""


class EmulationError(RuntimeError):
    """A fault of the kernel, or something that the emulator does not know."""


class _Launch(ctypes.Structure):
    _fields_ = (("sizes", ctypes.c_uint * 9), ("shared_bytes", ctypes.c_uint), ("seed", ctypes.c_uint))


class _Map(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("sizes", ctypes.c_uint64 * 5),
        ("strides", ctypes.c_uint64 * 5),
        ("box", ctypes.c_uint32 * 5),
        ("rank", ctypes.c_uint32),
        ("swizzle", ctypes.c_uint32),
        ("padding", ctypes.c_uint8 * 8),
    )


def emulate(
    launch: Launch,
    operands: Sequence[Any],
    results: Sequence[tuple[Sequence[int], Any]],
    *,
    aliases: Mapping[int, int] | None = None,
    seed: int = 0,
    changes: Changes = (),
) -> list[np.ndarray]:
    """The results of `launch`, of shapes and dtypes as given, poisoned beforehand.

    aliases: {operand: result} that share a buffer.
    changes: to the kernels' sources, (file, text, other text): faults to be found.

    Raises EmulationError where threads wait for ever, arrive too often, and the like.
    """
    poison = [np.full(int(np.prod(s)) * np.dtype(d).itemsize, 0xFF, np.uint8) for s, d in results]
    contents = [np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in operands] + poison
    buffers = [_Guarded(x) for x in contents]
    for operand, result in (aliases or {}).items():
        buffers[len(operands) + result] = buffers[operand]
    values = [_value(argument, buffers) for argument in launch.arguments]
    slots = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
    sizes = (ctypes.c_uint * 9)(*launch.grid, *launch.block, *launch.cluster)
    said = _Launch(sizes, launch.shared_memory, seed)
    fault = _library(launch.kernel, changes).emulate(slots, ctypes.byref(said))
    if fault is not None:
        raise EmulationError(f"{launch.kernel.stem}: {fault.decode()}")
    written = buffers[len(operands) :]
    return [b.bytes().view(np.dtype(d)).reshape(s) for b, (s, d) in zip(written, results, strict=True)]


class _Guarded:
    """Memory that ends, but for what aligns its beginning, where nobody may read."""

    def __init__(self, content: np.ndarray):
        page, self._size = mmap.PAGESIZE, content.size
        room = -(-max(self._size, 1) // page) * page
        self._map = mmap.mmap(-1, room + page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + room), page, 0) == 0
        self._offset = (room - self._size) // 16 * 16
        self.address = start + self._offset
        ctypes.memmove(self.address, content.ctypes.data, self._size)

    def bytes(self) -> np.ndarray:
        return np.frombuffer(ctypes.string_at(self.address, self._size), np.uint8)


def _value(argument: Pointer | TensorMap | Scalar, buffers: Sequence[_Guarded]) -> np.ndarray:
    """The kernel's parameter, as it lies in memory."""
    if isinstance(argument, Scalar):
        return np.asarray([argument.value], _SCALARS[argument.dtype])
    address = buffers[argument.buffer].address + argument.offset
    if isinstance(argument, Pointer):
        return np.asarray([address], np.uint64)
    assert not argument.element_strides
    rank, element = len(argument.sizes), _TENSOR_MAP_BITS[argument.dtype] // 8
    encoded = _Map(
        address,
        (ctypes.c_uint64 * 5)(*argument.sizes),
        (ctypes.c_uint64 * 5)(element, *argument.strides),
        (ctypes.c_uint32 * 5)(*argument.box),
        rank,
        argument.swizzle,
    )
    return _aligned(np.frombuffer(bytes(encoded), np.uint8))


def _aligned(content: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes, as a TensorMap is declared."""
    memory = np.zeros(content.size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + content.size] = content
    return memory[start : start + content.size]


@functools.cache
def _library(kernel: Kernel, changes: Changes = ()) -> ctypes.CDLL:
    """The kernel, compiled, or as it was compiled before for the same sources."""
    text = f'#include "emulator.h"\n{compile.source(kernel)}{_MAIN.format(stem=kernel.stem)}'
    sources = _translated_sources(changes)
    digest = _digest(text, *sources.rglob("*.cuh"), *_HERE.rglob("*.h"), *_HERE.rglob("*.cuh"), *_HERE.glob("*.cc"))
    library = _folder() / f"{kernel.stem}-{digest}.so"
    compiled = _compiled()
    include = (compiled, _HERE, _HERE / "overrides", sources)
    _build(library, text, "-shared", *(f"-I{path}" for path in include), str(compiled / "machine.o"))
    loaded = ctypes.CDLL(str(library))
    loaded.emulate.restype = ctypes.c_char_p
    return loaded


@functools.cache
def _compiled() -> pathlib.Path:
    """A folder with what all kernels share: emulator.h, as the compiler has parsed it, and the scheduler."""
    folder = _folder() / f"emulator-{_digest('', *_HERE.glob('*.h'), *_HERE.glob('*.cc'))}"
    _build(folder / "emulator.h.gch", f'#include "{_HERE}/emulator.h"\n', "-x", "c++-header")
    _build(folder / "machine.o", f'#include "{_HERE}/machine.cc"\n', "-c")
    return folder


@functools.cache
def _folder() -> pathlib.Path:
    """Where to keep what is compiled: the kernels' cache or, if there is none, until this process ends."""
    return compile.cache_folder() or _temporary_folder()


def _temporary_folder() -> pathlib.Path:
    folder = tempfile.mkdtemp(prefix="jax_deepgemm_emulator_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


def _digest(text: str, *files: pathlib.Path) -> str:
    digest = hashlib.sha256(f"{_OPTIONS}{text}".encode())
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _build(built: pathlib.Path, text: str, *options: str) -> None:
    """Compiles `text`, unless another process, or an earlier one, has done so."""
    if built.exists():
        return
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as work:
        main, output = pathlib.Path(work) / "main.cc", pathlib.Path(work) / built.name
        main.write_text(text)
        subprocess.run(["g++", *_OPTIONS, *options, str(main), "-o", str(output)], check=True)
        output.replace(built)


@functools.cache
def _translated_sources(changes: Changes = ()) -> pathlib.Path:
    """The kernels' sources without what only nvcc understands, and without those that `overrides` has."""
    folder = _temporary_folder()
    for path in sorted(compile.sources_folder().rglob("*.cuh")):
        name = str(path.relative_to(compile.sources_folder()))
        if (_HERE / "overrides" / name).exists():
            continue
        text = path.read_text()
        for where, old, new in changes:
            if where == name:
                if text.count(old) != 1:  # no AssertionError, which whoever looks for faults takes for one found
                    raise LookupError(f"{name} has {old!r} {text.count(old)} times, must be once")
                text = text.replace(old, new)
        for pattern, by in _REPLACED.get(name, ()):
            text, found = re.subn(pattern, by, text, flags=re.DOTALL)
            assert found, f"{name} has nothing like {pattern}"
        for pattern, by in _SHARED:
            text = re.sub(pattern, by, text)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder
