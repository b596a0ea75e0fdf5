"""What a result must say about the machine and the code it was taken with."""

from __future__ import annotations

import datetime
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent


def prepare() -> None:
    """Sets the variables that jax reads once. Call it before the first import of jax."""
    # Our peers allocate beside XLA in this process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ["JAX_DEEPGEMM_USE_TUNED"] = "0"  # results are those of the heuristics
    # Without graphs every kernel is an event of its own that names its HLO module.
    if "xla_gpu_enable_command_buffer" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer=".strip()


def output(*command: str) -> str | None:
    """The stripped standard output of a command, or None if it cannot be run or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit(described: str | None = None) -> tuple[str | None, bool | None]:
    """(commit, dirty) of this checkout; where there is none, of `git describe --always --abbrev=40 --dirty`'s text."""
    if described:
        return described.removesuffix("-dirty"), described.endswith("-dirty")
    head = output("git", "rev-parse", "HEAD")
    if head is None:
        return None, None
    return head, bool(output("git", "status", "--porcelain", "--untracked-files=no"))


def gpu_folder(gpu: str) -> str:
    """The folder of a GPU's results: "NVIDIA H100 80GB HBM3" -> "h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")


def header(described: str | None = None) -> dict[str, Any]:
    """The first fields of a result file, peaks and rows still missing."""
    import jax

    from jax_deepgemm.doctor import driver_version

    sha, dirty = commit(described)
    return {
        "gpu": jax.devices()[0].device_kind,
        "driver": driver_version(),
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": sha,
        "dirty": dirty,
        "peak_tflops": None,
        "copy_gbs": None,
        "rows": [],
    }


def warn(text: str) -> None:
    """Standard output carries the table alone."""
    print(text, file=sys.stderr, flush=True)
