"""From a kernel and its named template arguments to a cubin: source -> memo -> disk cache -> NVRTC.

Imports no JAX and, until something has to be compiled, nothing of CUDA.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

from jax_deepgemm import cache, env, nvrtc
from jax_deepgemm.launch import Kernel
from jax_deepgemm.nvrtc import NvrtcUnavailable as NvrtcUnavailable  # part of this module's interface

_FORMAT = "1"  # of the key and of an entry's payload: raise it when either changes
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


class CompileError(RuntimeError):
    """A kernel does not compile, or breaks a check that was asked for. The message carries the compile log."""


@dataclasses.dataclass(frozen=True)
class Binary:
    """A compiled kernel. Sizes are bytes per thread; -1 where the compiler did not say."""

    cubin: bytes = dataclasses.field(repr=False)
    symbol: str  # the mangled name in the cubin
    registers: int  # at launch, per thread
    spill_bytes: int  # stored and loaded
    local_bytes: int  # stack, spills included
    log: str = dataclasses.field(repr=False)


@functools.cache
def sources_folder() -> pathlib.Path:
    """The folder of the kernels' sources: inside an installed package, else of the checkout."""
    here = pathlib.Path(__file__).resolve().parent
    for folder in (here / "cuda", here.parent / "cuda"):
        if (folder / "kernels").is_dir():
            return folder
    raise FileNotFoundError(f"the kernel sources are neither in {here / 'cuda'} nor in {here.parent / 'cuda'}")


def cache_folder() -> pathlib.Path | None:
    """The folder of compiled kernels, None if the cache is off."""
    return cache.folder()


def nvrtc_location() -> str | None:
    """Where the NVRTC library is, None if there is none."""
    return nvrtc.location()


def source(kernel: Kernel) -> str:
    """The translation unit: the kernel's file and `Config`, which holds its template arguments."""
    members = "".join(f"  {_member(name, value)}\n" for name, value in kernel.template)
    return f'#include "kernels/{kernel.stem}.cuh"\n\nstruct Config {{\n{members}}};\n'


def _member(name: str, value: int | bool | str) -> str:
    if isinstance(value, str):
        return f"using {name} = {value};"
    if isinstance(value, bool):  # before int, which bool is
        return f"static constexpr bool {name} = {str(value).lower()};"
    kind = "int" if -(2**31) <= value < 2**31 else "long long"
    return f"static constexpr {kind} {name} = {value};"


def compile_kernel(kernel: Kernel, arch: str, *, sources: pathlib.Path | None = None) -> Binary:
    """Compiles a kernel, or finds it in the memo or on disk. Needs no GPU and no driver; safe to call from threads.

    Args:
      kernel: the stem and the named template arguments.
      arch: a real architecture with its suffix, such as "sm_90a".
      sources: the folder that holds `kernels/` and `common/`, instead of the package's own.

    Raises:
      CompileError: it does not compile, or it uses local memory and JAX_DEEPGEMM_CHECK_LOCAL_MEMORY is set.
      NvrtcUnavailable: there is no NVRTC.
    """
    folder = sources_folder() if sources is None else sources
    dump = env.DUMP_DIR.text()
    job = _Job(kernel, source(kernel), arch, folder, env.LINE_INFO.flag(), dump)
    with _lock:
        entry = _memo.setdefault(job, _Entry())
    # One lock a job: threads that want the same kernel wait for one compilation, others go on.
    with entry.lock:
        first = entry.binary is None
        if entry.binary is None:
            entry.binary = _find_or_compile(job)
        binary = entry.binary
    if first and env.PTXAS_REPORT.flag():
        print(f"{describe(kernel, arch)}: {binary}\n{binary.log}", file=sys.stderr)
    if env.CHECK_LOCAL_MEMORY.flag() and (binary.local_bytes != 0 or binary.spill_bytes != 0):
        raise CompileError(
            f"{describe(kernel, arch)} must use no local memory, got {binary.local_bytes} bytes of stack and "
            f"{binary.spill_bytes} bytes of spills\n{binary.log}"
        )
    return binary


def describe(kernel: Kernel, arch: str) -> str:
    """The kernel in words, for messages: `fp8_gemm<kBlockM=128, ...> for sm_90a`."""
    arguments = ", ".join(f"{name}={value}" for name, value in kernel.template)
    return f"kernel {kernel.stem}<{arguments}> for {arch}"


@dataclasses.dataclass(frozen=True)
class _Job:
    """All that a compilation depends on, besides the contents of the files and the compiler."""

    kernel: Kernel = dataclasses.field(compare=False)  # its source tells more: True equals 1, but is another type there
    source: str
    arch: str
    folder: pathlib.Path
    line_info: bool
    dump: str

    def options(self) -> tuple[str, ...]:
        # No --use_fast_math: a kernel that wants an approximation says so where it does.
        options = (f"--gpu-architecture={self.arch}", "--std=c++20", "-default-device", "--ptxas-options=-v")
        return options + ("--generate-line-info",) * self.line_info


@dataclasses.dataclass
class _Entry:
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    binary: Binary | None = None


_lock = threading.Lock()
_memo: dict[_Job, _Entry] = {}


def _find_or_compile(job: _Job) -> Binary:
    name = f"{job.kernel.stem}-{_key(job)}.bin"
    if not job.dump:  # a dump needs the PTX, which no entry holds
        stored = cache.load(name)
        if stored is not None:
            return _unpack(stored)
    binary = _compile(job)
    cache.store(name, _pack(binary))
    return binary


def _compile(job: _Job) -> Binary:
    includes = [str(job.folder)] + [folder for folder in (nvrtc.header_folder(),) if folder]
    options = job.options() + tuple(f"--include-path={folder}" for folder in includes)
    try:
        output = nvrtc.compile_source(job.source, f"{job.kernel.stem}.cu", f"{job.kernel.stem}<Config>", options)
    except nvrtc.NvrtcError as e:
        raise CompileError(
            f"{describe(job.kernel, job.arch)} does not compile (NVRTC {nvrtc.version()}, {' '.join(options)}):\n{e}\n"
            f"--- {job.kernel.stem}.cu ---\n{job.source}"
        ) from None
    registers, spill_bytes, local_bytes = _resources(output.log, output.symbol)
    if job.dump:
        _dump(job, output)
    return Binary(output.cubin, output.symbol, registers, spill_bytes, local_bytes, output.log)


def _resources(log: str, symbol: str) -> tuple[int, int, int]:
    """Registers, spilled bytes and stack bytes of the kernel, from what ptxas -v wrote about it."""
    about = re.search(
        rf"Compiling entry function '{re.escape(symbol)}'(.*?)(?=Compiling entry function|\Z)", log, re.DOTALL
    )
    text = about[1] if about else ""
    frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    used = re.search(r"Used (\d+) registers", text)
    if frame is None or used is None:
        return -1, -1, -1
    # The cumulative size counts the functions that the kernel calls.
    total = re.search(r"(\d+) bytes cumulative stack size", text)
    return int(used[1]), int(frame[2]) + int(frame[3]), max(int(frame[1]), int(total[1]) if total else 0)


def _key(job: _Job) -> str:
    """A hash over everything that the cubin depends on."""
    parts = [_FORMAT, nvrtc.identity(), *job.options(), job.source]
    for path, content in sorted(_included(job.folder, f"kernels/{job.kernel.stem}.cuh").items()):
        parts += [path, content]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()[:40]


@functools.cache
def sources_digest(stem: str) -> str:
    """A hash over the kernel's file and all that it includes, as they are when it is first asked for."""
    digest = hashlib.sha256()
    for path, content in sorted(_included(sources_folder(), f"kernels/{stem}.cuh").items()):
        digest.update(f"{path}:{len(content)}:{content}".encode())
    return digest.hexdigest()


def _included(folder: pathlib.Path, start: str) -> dict[str, str]:
    """Path and content of `start` and of all that it includes from `folder`, whatever the preprocessor decides."""
    found: dict[str, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found or not (folder / path).is_file():  # what is not ours is NVRTC's to find
            continue
        found[path] = (folder / path).read_text(encoding="utf-8")
        for name in _INCLUDE.findall(found[path]):
            waiting += [os.path.normpath(os.path.join(os.path.dirname(path), name)), os.path.normpath(name)]
    return found


def _pack(binary: Binary) -> bytes:
    fields = dataclasses.asdict(binary)
    cubin = fields.pop("cubin")
    return json.dumps(fields).encode() + b"\n" + cubin


def _unpack(payload: bytes) -> Binary:
    fields, cubin = payload.split(b"\n", 1)  # JSON escapes newlines
    return Binary(cubin=cubin, **json.loads(fields))


def _dump(job: _Job, output: nvrtc.Output) -> None:
    folder = pathlib.Path(job.dump)
    folder.mkdir(parents=True, exist_ok=True)
    base = f"{job.kernel.stem}-{job.arch}-{hashlib.sha256(job.source.encode()).hexdigest()[:12]}"
    cubin = folder / f"{base}.cubin"
    (folder / f"{base}.cu").write_text(job.source)
    (folder / f"{base}.ptx").write_bytes(output.ptx)
    cubin.write_bytes(output.cubin)
    sass = folder / f"{base}.sass"
    for tool, arguments in (("nvdisasm", ["--print-line-info"]), ("cuobjdump", ["--dump-sass"])):
        program = _utility(tool)
        if program is not None:
            done = subprocess.run([program, *arguments, str(cubin)], capture_output=True, check=False)
            if done.returncode == 0:
                sass.write_bytes(done.stdout)
                return
    sass.write_text(
        "No SASS: neither nvdisasm nor cuobjdump was found, or both failed. pip install nvidia-cuda-nvdisasm\n"
    )


def _utility(name: str) -> str | None:
    from cuda import pathfinder  # type: ignore[attr-defined]

    return pathfinder.find_nvidia_binary_utility(name) or shutil.which(name)
