"""compute-sanitizer finds nothing in our kernels."""

from __future__ import annotations

import faulthandler
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.gpu.sanitized import (
    CASES,
    FP4_CASES,
    K_GROUPED_CASES,
    K_GROUPED_SIZES,
    LARGE_FP4_CASES,
    LARGE_M_GROUPED_FP4_CASES,
    M_GROUPED_CASES,
    M_GROUPED_FP4_CASES,
    SKIP_HEAD_MID,
    STORE_WARP_CASES,
    STORE_WARP_M_GROUPED_CASES,
)

pytestmark = pytest.mark.gpu

SECONDS = 480  # for all tools together: they run at once, often beside all other tests
FOUND = 9  # exit status
ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = {
    # Every buffer is an allocation of its own here, with a gap behind it: an access beyond it is seen.
    "memcheck": ("--padding=1024",),
    # Both count the mbarriers to follow by the initialisations that the compiler saw; ours are arrays, initialised by
    # the lanes of a warp: up to three for each stage, and two more. The rings here are far shorter than 32 stages.
    "racecheck": ("--num-cuda-barriers=96",),
    "synccheck": ("--num-cuda-barriers=96",),
}


@pytest.fixture(scope="module")
def reports(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], pathlib.Path]]]:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_ALLOCATOR": "platform",
        "XLA_FLAGS": "--xla_gpu_enable_command_buffer=",
    }
    folder = tmp_path_factory.mktemp("sanitizer")
    running = {}
    for i, (tool, options) in enumerate(TOOLS.items()):
        command = [
            sanitizer,
            f"--tool={tool}",
            *options,
            "--kernel-name=kns=sm90_",  # not XLA's own
            "--report-api-errors=no",  # XLA asks the driver for what may not be there
            "--target-processes=application-only",
            "--show-backtrace=device",
            "--launch-timeout=120",  # importing JAX takes a while
            f"--error-exitcode={FOUND}",
            f"--port={49152 + 20 * i}",
            *(sys.executable, "-m", "tests.gpu.sanitized"),
            *["every-thread-arrives"] * (tool == "racecheck"),
            *["large-tiles"] * (tool == "memcheck"),
        ]
        log = folder / f"{tool}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        running[tool] = process, log
    yield running
    for process, _ in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("tool", TOOLS)
def test_tool_finds_nothing(tool, reports):
    faulthandler.cancel_dump_traceback_later()  # has its own limit
    process, log = reports[tool]
    try:
        status = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end after {SECONDS} s:\n{log.read_text()[-8000:]}")
    text = log.read_text()
    said = "\n".join(line for line in text.splitlines() if line.startswith("========="))
    assert status == 0, f"{said[:4000]}\n...\n{text[-4000:]}"
    grouped = len(K_GROUPED_CASES) * len(K_GROUPED_SIZES) + len(M_GROUPED_CASES) + len(M_GROUPED_FP4_CASES)
    large = (len(LARGE_FP4_CASES) + len(LARGE_M_GROUPED_FP4_CASES)) * (tool == "memcheck")
    apart = len(STORE_WARP_CASES) + len(STORE_WARP_M_GROUPED_CASES)
    wanted = len(CASES) + apart + len(SKIP_HEAD_MID) + 2 + len(FP4_CASES) + large + grouped
    assert text.count(" right") == wanted, text[-8000:]
