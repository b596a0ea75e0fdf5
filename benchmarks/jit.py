"""Suite `jit`: what a call costs besides the kernel. Compile times, and host time per launch.

Every measurement runs in a process of its own (`benchmarks/jit_worker.py`): memos, imports and XLA's flags are set
once in a process. Results are rows like any suite's, with no limit and no peers.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import chain, results
from benchmarks.environment import ROOT, header, warn

PROCESSES = 16
REPEATS = 3


def worker(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A worker that has said nothing yet. It prints "ready", waits for a line, works, and prints its result."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.jit_worker", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def together(workers: list[subprocess.Popen[str]]) -> list[dict[str, float] | None]:
    """Starts the work of all workers at once; None for one that failed (its reason is on stderr)."""
    for process in workers:
        while process.stdout and process.stdout.readline() not in ("ready\n", ""):
            pass
    answers: list[dict[str, float] | None] = []
    for process in workers:  # all are released before any is waited for
        try:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        except OSError:
            pass  # it is dead, and its empty answer says so
    for process in workers:
        text, _ = process.communicate()
        lines = [line for line in text.splitlines() if line.startswith("{")]
        answers.append(json.loads(lines[-1]) if process.returncode == 0 and lines else None)
    return answers


def compile_rows() -> list[results.Row]:
    """Compile times with an empty cache folder, a filled one, and in the same process again."""
    found: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("cold", "disk"):  # the first worker fills the folder for the second
                (answer,) = together([worker("compile", JAX_DEEPGEMM_CACHE_DIR=folder)])
                if answer is None:
                    return []
                found.setdefault("load NVRTC", []).append(answer["load_us"])
                found.setdefault(f"compile_kernel, {name}", []).append(answer["first_us"])
                found.setdefault("compile_kernel, memory", []).append(answer["again_us"])
    return [results.row(name, {"processes": 1}, statistics.median(us), None, {}) for name, us in found.items()]


def crowd_row(count: int = PROCESSES) -> results.Row | None:
    """The slowest of many processes that start together on an empty cache folder; None if one of them failed."""
    with tempfile.TemporaryDirectory() as folder:
        answers = together([worker("compile", JAX_DEEPGEMM_CACHE_DIR=folder) for _ in range(count)])
    times = [answer["first_us"] for answer in answers if answer is not None]
    if len(times) < count:
        warn(f"{count - len(times)} of {count} processes failed on a cold cache")
        return None
    return results.row("compile_kernel, cold, slowest process", {"processes": count}, max(times), None, {})


def chain_rows() -> list[results.Row]:
    """Chains of GEMMs with XLA's command buffers off and on: the host's time for each GEMM, the wall time of a call.

    The limit of a wall time is the sum of the kernels' times in calls that follow each other in the same way. Only in
    graphs: outside kernels overlap, and count what they overlap twice.
    """
    rows = []
    plain = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if "command_buffer" not in flag)
    for name, flags in (("off", f"{plain} --xla_gpu_enable_command_buffer=".strip()), ("on", plain)):
        (answer,) = together([worker("chain", XLA_FLAGS=flags)])
        if answer is None:
            continue
        for what, us, limit in (
            ("host time of a call per GEMM", answer["host_us"] / chain.LENGTH, None),
            ("host time per further GEMM", answer["further_us"], None),
            ("wall time", answer["wall_us"], answer["kernels_us"] if name == "on" else None),
        ):
            rows.append(results.row(f"{what}, command buffers {name}", {"chain": chain.LENGTH}, us, limit, {}))
    return rows


def run(path: str | None, described: str | None) -> int:
    """Prints and writes the suite. Returns 1 if a part of it is missing."""
    result: dict[str, Any] = header(described)
    missing = 0
    for part in (compile_rows, lambda: [row for row in [crowd_row()] if row], chain_rows):
        rows = part()
        missing += not rows
        for row in rows:
            (size,) = row["case"].items()
            limit = f"  kernels {row['limit_us']:.2f} us" if row["limit_us"] else ""
            print(f"{row['op']:<56} {size[0]:>9} {size[1]:>3} {row['us']:>12.2f} us{limit}", flush=True)
        result["rows"] += rows
        if path:
            results.write(path, result)
    return 1 if missing else 0
