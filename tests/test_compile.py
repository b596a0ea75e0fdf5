from __future__ import annotations

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import time

import pytest

from jax_deepgemm import cache, compile, env, nvrtc, warn
from jax_deepgemm.launch import Kernel

ARCH = "sm_90a"
ROOT = pathlib.Path(__file__).resolve().parent.parent

TOY = """
#include <cuda_bf16.h>
#include "common/add.cuh"
template <class Config>
__global__ void __launch_bounds__(128) toy(typename Config::T* out, int n) {
  if constexpr (Config::kLocal) {
    volatile float array[64];
    for (int i = 0; i < 64; ++i) array[i] = out[i];
    float sum = 0;
    for (int i = 0; i < n; ++i) sum += array[i * 7 % 64];
    out[n] = sum;
  } else {
    out[n] = add(n, Config::kValue);
  }
}
"""


@pytest.fixture
def sources(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of kernel sources of the test's own, so that no memo entry of another test is met."""
    folder = tmp_path / "cuda"
    (folder / "kernels").mkdir(parents=True)
    (folder / "common").mkdir()
    (folder / "kernels" / "toy.cuh").write_text(TOY)
    (folder / "common" / "add.cuh").write_text("constexpr int add(int a, int b) { return a + b; }\n")
    return folder


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    for variable in env.VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setenv("JAX_DEEPGEMM_CACHE_DIR", str(tmp_path / "cache"))
    warn.warn_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The expressions that NVRTC was asked to compile, as they come."""
    seen: list[str] = []
    original = nvrtc.compile_source

    def record(source: str, name: str, expression: str, options: tuple[str, ...]) -> nvrtc.Output:
        seen.append(expression)
        return original(source, name, expression, options)

    monkeypatch.setattr(nvrtc, "compile_source", record)
    return seen


def toy(local: bool = False, value: int = 3, type: str = "float") -> Kernel:
    return Kernel("toy", (("kValue", value), ("kLocal", local), ("T", type)))


def forget() -> None:
    compile._memo.clear()


def test_source() -> None:
    text = compile.source(Kernel("gemm", (("kM", 128), ("kBig", 2**40), ("kYes", True), ("Out", "__nv_bfloat16"))))
    assert text.splitlines() == [
        '#include "kernels/gemm.cuh"',
        "",
        "struct Config {",
        "  static constexpr int kM = 128;",
        "  static constexpr long long kBig = 1099511627776;",
        "  static constexpr bool kYes = true;",
        "  using Out = __nv_bfloat16;",
        "};",
    ]


@pytest.mark.parametrize("type", ["float", "__nv_bfloat16"])
def test_binary(sources: pathlib.Path, type: str) -> None:
    binary = compile.compile_kernel(toy(type=type), ARCH, sources=sources)
    assert binary.cubin.startswith(b"\x7fELF")
    assert binary.symbol.encode() + b"\0" in binary.cubin
    assert 0 < binary.registers <= 255
    assert (binary.spill_bytes, binary.local_bytes) == (0, 0)
    assert "ptxas info" in binary.log


def test_local_memory_is_seen_and_can_be_forbidden(sources: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = compile.compile_kernel(toy(local=True), ARCH, sources=sources)
    assert binary.local_bytes >= 256
    monkeypatch.setenv("JAX_DEEPGEMM_CHECK_LOCAL_MEMORY", "1")
    with pytest.raises(compile.CompileError, match=r"(?s)toy<kValue=3, kLocal=True.*no local memory, got 256 bytes"):
        compile.compile_kernel(toy(local=True), ARCH, sources=sources)
    compile.compile_kernel(toy(), ARCH, sources=sources)


def test_spills_are_counted(sources: pathlib.Path) -> None:
    # Volatile keeps 64 values alive at once, in the 32 registers that two blocks of 1024 threads leave to each.
    body = "".join(f"  float v{i} = p[{i}];\n" for i in range(64))
    uses = "".join(f"  p[{i}] = v{i} * v{63 - i};\n" for i in range(64))
    head = "template <class Config>\n__global__ void __launch_bounds__(1024, 2) full(volatile float* p)"
    (sources / "kernels" / "full.cuh").write_text(f"{head} {{\n{body}{uses}}}\n")
    binary = compile.compile_kernel(Kernel("full"), ARCH, sources=sources)
    assert binary.registers <= 32
    assert binary.spill_bytes > 0


def test_memo_and_disk(sources: pathlib.Path, cache_dir: pathlib.Path, compiled: list[str]) -> None:
    first = compile.compile_kernel(toy(), ARCH, sources=sources)
    assert compile.compile_kernel(toy(), ARCH, sources=sources) is first
    forget()
    again = compile.compile_kernel(toy(), ARCH, sources=sources)
    assert again == first
    assert len(compiled) == 1
    assert [path.suffix for path in cache_dir.iterdir()] == [".bin"]  # and no temporary file


def test_key_covers_what_matters(
    sources: pathlib.Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch, cache_dir: pathlib.Path
) -> None:
    def expect_new(**kwargs: object) -> None:
        before = len(compiled)
        forget()
        compile.compile_kernel(toy(**kwargs), ARCH, sources=sources)  # type: ignore[arg-type]
        assert len(compiled) == before + 1

    expect_new()
    expect_new(value=4)
    (sources / "common" / "add.cuh").write_text("constexpr int add(int a, int b) { return b - a; }\n")
    expect_new()
    monkeypatch.setenv("JAX_DEEPGEMM_LINE_INFO", "1")
    expect_new()
    monkeypatch.setattr(nvrtc, "identity", lambda: "another NVRTC")
    expect_new()
    (sources / "common" / "unrelated.cuh").write_text("int x;")
    forget()
    compile.compile_kernel(toy(), ARCH, sources=sources)
    assert len(compiled) == 5 == len(list(cache_dir.iterdir()))


def test_arch_is_in_the_key(sources: pathlib.Path, compiled: list[str]) -> None:
    assert compile.compile_kernel(toy(), ARCH, sources=sources) != compile.compile_kernel(
        toy(), "sm_100a", sources=sources
    )
    assert len(compiled) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_entry_is_compiled_again(
    sources: pathlib.Path, cache_dir: pathlib.Path, compiled: list[str], damage: str
) -> None:
    first = compile.compile_kernel(toy(), ARCH, sources=sources)
    (path,) = cache_dir.iterdir()
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    path.write_bytes({"truncate": good[:-1], "flip": bytes(flipped), "empty": b""}[damage])
    forget()
    assert compile.compile_kernel(toy(), ARCH, sources=sources).symbol == first.symbol
    assert len(compiled) == 2
    forget()
    compile.compile_kernel(toy(), ARCH, sources=sources)  # the entry is whole again
    assert len(compiled) == 2


def test_unwritable_folder_warns_once(
    sources: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"  # permissions would not stop root
    in_the_way.write_text("")
    monkeypatch.setenv("JAX_DEEPGEMM_CACHE_DIR", str(in_the_way / "cache"))
    with pytest.warns(RuntimeWarning, match="cannot use its cache folder .*JAX_DEEPGEMM_CACHE_DIR") as caught:
        for value in range(3):
            compile.compile_kernel(toy(value=value), ARCH, sources=sources)
    assert len(caught) == 1


@pytest.mark.parametrize("off", ["", "0"])
def test_cache_off(sources: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cache_dir: pathlib.Path, off: str) -> None:
    monkeypatch.setenv("JAX_DEEPGEMM_CACHE_DIR", off)
    assert compile.cache_folder() is None
    compile.compile_kernel(toy(), ARCH, sources=sources)
    assert not cache_dir.exists()


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_DEEPGEMM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert compile.cache_folder() == pathlib.Path("/xdg/jax_deepgemm")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert compile.cache_folder() == pathlib.Path("/home/someone/.cache/jax_deepgemm")


def test_error_carries_the_log(sources: pathlib.Path, cache_dir: pathlib.Path) -> None:
    (sources / "common" / "add.cuh").write_text("constexpr int add(int a, int b) { return a + undeclared; }\n")
    with pytest.raises(compile.CompileError) as error:
        compile.compile_kernel(toy(), ARCH, sources=sources)
    message = str(error.value)
    assert "toy<kValue=3, kLocal=False, T=float> for sm_90a" in message
    assert "common/add.cuh(1)" in message and "undeclared" in message
    assert "static constexpr int kValue = 3;" in message
    assert not cache_dir.exists()


def test_ptxas_refusal_is_a_compile_error(sources: pathlib.Path) -> None:
    (sources / "kernels" / "bad.cuh").write_text(
        'template <class Config>\n__global__ void bad() { asm volatile("no.such.instruction;"); }\n'
    )
    with pytest.raises(compile.CompileError, match=r"(?s)kernel bad<> for sm_90a.*Unknown modifier"):
        compile.compile_kernel(Kernel("bad"), ARCH, sources=sources)


def test_no_binding(sources: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc._load.cache_clear()
    nvrtc.identity.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(compile.NvrtcUnavailable, match="pip install cuda-bindings"):
        compile.compile_kernel(toy(), ARCH, sources=sources)
    assert compile.nvrtc_location() is None


def test_no_library(sources: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda import pathfinder  # type: ignore[attr-defined]

    def missing(name: str) -> object:
        raise pathfinder.DynamicLibNotFoundError(name)

    nvrtc._load.cache_clear()
    nvrtc.identity.cache_clear()
    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(compile.NvrtcUnavailable, match="pip install nvidia-cuda-nvrtc"):
        compile.compile_kernel(toy(), ARCH, sources=sources)


def run_alone(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts Python with a package of our files without `__init__.py`, which imports JAX and so takes a second."""
    package = f"package = types.ModuleType('jax_deepgemm'); package.__path__ = [{str(ROOT / 'jax_deepgemm')!r}]"
    code = f"import sys, types; {package}; sys.modules['jax_deepgemm'] = package\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LOADED_BEFORE = """
import ctypes, pathlib
library = ctypes.CDLL(sys.argv[2])  # as JAX does when it looks for CUDA devices
from jax_deepgemm import compile
from jax_deepgemm.launch import Kernel
kernel = Kernel("toy", (("kValue", 3), ("kLocal", False), ("T", "float")))
print(compile.compile_kernel(kernel, "sm_90a", sources=pathlib.Path(sys.argv[1])).symbol)
"""


def test_nvrtc_that_others_loaded(sources: pathlib.Path) -> None:
    location = compile.nvrtc_location()
    assert location is not None
    out, error = run_alone(LOADED_BEFORE, str(sources), location).communicate(timeout=60)
    assert error == ""
    assert out.startswith("_Z3toy")


def test_threads_compile_a_kernel_once(sources: pathlib.Path, compiled: list[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: compile.compile_kernel(toy(value=i % 2), ARCH, sources=sources), range(16)))
    assert len(compiled) == 2
    assert len({id(binary) for binary in found}) == 2


ONE_OF_MANY = """
import pathlib, time
from jax_deepgemm import compile
from jax_deepgemm.launch import Kernel
assert "jax" not in sys.modules and "cuda" not in sys.modules
kernel = Kernel("toy", (("kValue", 3), ("kLocal", False), ("T", "float")))
folder = pathlib.Path(sys.argv[1])
(folder / f"ready{sys.argv[2]}").touch()
while not (folder / "go").exists():
    time.sleep(0.002)
print(compile.compile_kernel(kernel, "sm_90a", sources=folder).symbol)
"""


def test_processes_on_a_cold_cache(sources: pathlib.Path, cache_dir: pathlib.Path) -> None:
    processes = [run_alone(ONE_OF_MANY, str(sources), str(i)) for i in range(16)]
    deadline = time.monotonic() + 60
    while len(list(sources.glob("ready*"))) < len(processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    (sources / "go").touch()
    ended = [process.communicate(timeout=120) for process in processes]
    assert [error for _, error in ended if error] == []
    assert len({out for out, _ in ended}) == 1
    assert len(list(cache_dir.iterdir())) == 1


def test_report(sources: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    compile.compile_kernel(toy(), ARCH, sources=sources)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("JAX_DEEPGEMM_PTXAS_REPORT", "1")
    forget()
    compile.compile_kernel(toy(), ARCH, sources=sources)  # from disk, with the log of its compilation
    assert "kernel toy<kValue=3, kLocal=False, T=float> for sm_90a: " in (text := capsys.readouterr().err)
    assert "registers=" in text and "ptxas info" in text


def test_dump(sources: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    compile.compile_kernel(toy(), ARCH, sources=sources)
    monkeypatch.setenv("JAX_DEEPGEMM_DUMP_DIR", str(tmp_path / "dump"))
    monkeypatch.setenv("JAX_DEEPGEMM_LINE_INFO", "1")
    binary = compile.compile_kernel(toy(), ARCH, sources=sources)
    files = {path.suffix: path for path in (tmp_path / "dump").iterdir()}
    assert set(files) == {".cu", ".ptx", ".cubin", ".sass"}
    assert files[".cubin"].read_bytes() == binary.cubin
    assert ".loc" in files[".ptx"].read_text() and binary.symbol in files[".ptx"].read_text()
    assert files[".sass"].stat().st_size > 0  # the code, or why there is none


def test_flags_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, value in (("1", True), ("on", True), ("0", False), ("", False), ("False", False)):
        monkeypatch.setenv("JAX_DEEPGEMM_LINE_INFO", text)
        assert env.LINE_INFO.flag() is value
    monkeypatch.setenv("JAX_DEEPGEMM_LINE_INFO", "maybe")
    with pytest.raises(ValueError, match=r"`JAX_DEEPGEMM_LINE_INFO` must be one of .*got 'maybe'"):
        env.LINE_INFO.flag()


def test_a_store_that_fails_leaves_nothing(cache_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        cache.store("entry.bin", b"payload")
    assert list(cache_dir.iterdir()) == []
    assert cache.load("entry.bin") is None
