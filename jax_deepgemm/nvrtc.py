"""NVRTC, with no driver and no GPU: CUDA C++ source in, cubin out.

Everything of CUDA is imported on first use: importing `cuda.bindings` and loading the library take 0.1 s, and a
program that runs on the CPU needs neither.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import glob
import os
import re
from typing import Any


class NvrtcUnavailable(RuntimeError):
    """NVRTC, or the Python package that binds it, was not found."""


class NvrtcError(RuntimeError):
    """NVRTC refused a program; the message is its log."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What one compilation gave. `symbol` is the mangled name of the kernel in `cubin`."""

    cubin: bytes
    symbol: str
    log: str
    ptx: bytes


@functools.cache
def _load() -> tuple[Any, str]:
    """The binding and the path of the library."""
    try:
        from cuda.bindings import nvrtc  # type: ignore[import-untyped]

        from cuda import pathfinder  # type: ignore[attr-defined]
    except ImportError as e:
        raise NvrtcUnavailable(f"cannot import the binding of NVRTC ({e}): pip install cuda-bindings") from e
    try:
        path = pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path or ""
        # NVRTC opens its builtins by their bare name. That finds them only if they are loaded already, which nobody
        # has done where JAX loaded NVRTC first.
        for builtins in glob.glob(os.path.join(glob.escape(os.path.dirname(path)), "libnvrtc-builtins.so.*")):
            ctypes.CDLL(builtins)
        _check(nvrtc, nvrtc.nvrtcVersion())
    except (RuntimeError, OSError) as e:  # pathfinder's and the binding's errors of a missing library, and dlopen's
        raise NvrtcUnavailable(f"the NVRTC library cannot be loaded ({e}): pip install nvidia-cuda-nvrtc") from e
    return nvrtc, path


def location() -> str | None:
    """Where the NVRTC library is, None if there is none."""
    try:
        return _load()[1]
    except NvrtcUnavailable:
        return None


def version() -> str:
    """NVRTC's version, such as "13.0". Raises NvrtcUnavailable."""
    nvrtc, _ = _load()
    major, minor = _check(nvrtc, nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


@functools.cache
def identity() -> str:
    """Text that differs between any two NVRTCs (and CUDA headers) that may compile a source differently.

    NVRTC tells only major.minor: the size of the library tells the patch releases apart.
    """
    path = _load()[1]
    size = os.path.getsize(path) if os.path.exists(path) else 0
    return f"nvrtc {version()} of {size} bytes, headers {_header_version()}"


@functools.cache
def header_folder() -> str | None:
    """The folder of cuda_bf16.h and cuda_fp8.h, None if there is none: kernels that include neither still compile."""
    try:
        from cuda import pathfinder  # type: ignore[attr-defined]

        return pathfinder.find_nvidia_header_directory("cudart")
    except (ImportError, RuntimeError):
        return None


def _header_version() -> str:
    folder = header_folder()
    if folder is None:
        return "none"
    with open(os.path.join(folder, "cuda_runtime_api.h"), encoding="utf-8", errors="replace") as f:
        found = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", f.read(1 << 16))
    return found[1] if found else "unknown"


def compile_source(source: str, name: str, expression: str, options: tuple[str, ...]) -> Output:
    """Compiles the kernel that `expression` names in `source`.

    Args:
      source: CUDA C++.
      name: the file name that the log calls the source by.
      expression: a C++ expression such as "gemm<Config>"; it instantiates the template.
      options: NVRTC options, with a real architecture (sm_90a).

    Raises:
      NvrtcError: the program does not compile; the message is the log.
      NvrtcUnavailable: there is no NVRTC.
    """
    nvrtc, _ = _load()

    def text(size: Any, fill: Any) -> bytes:
        buffer = b" " * _check(nvrtc, size(program))
        _check(nvrtc, fill(program, buffer))
        return buffer

    program = _check(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []))
    try:
        _check(nvrtc, nvrtc.nvrtcAddNameExpression(program, expression.encode()))
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode(errors="replace").rstrip("\0\n ")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise NvrtcError(log or status.name)
        return Output(
            cubin=text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN),
            symbol=_check(nvrtc, nvrtc.nvrtcGetLoweredName(program, expression.encode())).decode(),
            log=log,
            ptx=text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX).rstrip(b"\0"),
        )
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _check(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    """Takes the status off what every function of the binding returns."""
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise NvrtcError(f"NVRTC failed: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
