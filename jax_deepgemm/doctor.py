"""What this installation is, what it would run where, and whether its main job comes out right."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_deepgemm
from jax_deepgemm import compile as compiler
from jax_deepgemm import config, inventory
from jax_deepgemm.target import Target, common_target

# ||d - ref|| / ||ref||. Against float64 on the FP8 operands only the rounding to BF16 is left; against float64 on the
# BF16 input, the rounding of two operands to the 3 mantissa bits of float8_e4m3fn.
ERROR_BOUND = 2e-3
QUANTISATION_BOUND = 5e-2
ORACLE_ROWS = 64  # float64 on the host takes its time

GPU_SIZES = ((128, 4096, 7168), (4096, 4096, 7168), (4096, 7168, 16384))
CPU_SIZES = ((64, 576, 1024), (256, 1024, 512))


def driver_version() -> str | None:
    """The version of the NVIDIA driver, None without one."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        if answer:
            return answer[0]
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found and found[1]


def versions() -> dict[str, str | None]:
    """Versions by name; None for what is not there."""
    found: dict[str, str | None] = {}
    for name in ("jax_deepgemm", "jax", "jaxlib", "jax-cuda13-plugin", "cuda-bindings"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found | {"python": platform.python_version(), "driver": driver_version()}


def target() -> tuple[Target | None, str]:
    """The target that a call on the default device compiles for, and why it is that."""
    chosen = config.current().target
    if chosen is not None:
        return chosen, "set by set_target"
    no_gpu = _no_gpu()
    return (None, no_gpu) if no_gpu else common_target(jax.devices())


def no_backend() -> str | None:
    """Why JAX has no devices, None if it has."""
    try:
        jax.devices()
    except Exception as error:  # of several kinds, an AssertionError too
        said = str(error).strip().splitlines()
        return f"JAX has no devices: {type(error).__name__}{': ' + said[0] if said else ''}"
    return None


def _no_gpu() -> str | None:
    missing = no_backend()
    if missing:
        return missing
    device = jax.devices()[0]
    return None if device.platform == "gpu" else f"the default device is {device.device_kind}, and kernels run on GPUs"


def operations() -> dict[str, str]:
    """How each operation runs on the default device."""
    chosen, why = target()
    obstacle = _no_gpu()
    if obstacle is None and chosen is None:
        obstacle = why
    elif obstacle is None and compiler.nvrtc_location() is None:
        obstacle = "NVRTC was not found"
    return inventory.runs_as(chosen, obstacle)


def _gemm(a: jax.Array, a_scale: jax.Array, b: jax.Array, b_scale: jax.Array) -> jax.Array:
    return jax_deepgemm.fp8_gemm_nt((a, a_scale), (b, b_scale))


def dequantise_and_dot(a: jax.Array, a_scale: jax.Array, b: jax.Array, b_scale: jax.Array) -> jax.Array:
    """What XLA offers for these operands: both dequantised to BF16, then a dot."""
    k = a.shape[1]
    a_full = jnp.repeat(a_scale, 128, axis=1)[:, :k]
    b_full = jnp.repeat(jnp.repeat(b_scale, 128, axis=0)[: b.shape[0]], 128, axis=1)[:, :k]
    a_bf16 = (a.astype(jnp.float32) * a_full).astype(jnp.bfloat16)
    b_bf16 = (b.astype(jnp.float32) * b_full).astype(jnp.bfloat16)
    return jax.lax.dot_general(a_bf16, b_bf16, (((1,), (1,)), ((), ())), preferred_element_type=jnp.bfloat16)


def _wall_us(function: Callable[..., jax.Array], operands: tuple[jax.Array, ...]) -> float:
    """Wall time per call with several calls in flight: the median of three rounds."""
    calls = 20 if jax.default_backend() == "gpu" else 3
    for _ in range(2):
        function(*operands).block_until_ready()
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        outputs = [function(*operands) for _ in range(calls)]
        jax.block_until_ready(outputs)
        rounds.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(rounds)


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _dequantised(data: jax.Array, scale: jax.Array, rows: int) -> np.ndarray:
    """Float64 of an operand whose scales stand for `rows` x 128 elements."""
    blocks = np.repeat(np.repeat(np.asarray(scale, np.float64), rows, axis=0), 128, axis=1)
    return np.asarray(data).astype(np.float64) * blocks[: data.shape[0], : data.shape[1]]


def main_job(m: int, n: int, k: int) -> dict[str, Any]:
    """Quantises BF16 activations [m,k] and weights [n,k], multiplies them, and compares with float64 and with XLA."""
    keys = jax.random.split(jax.random.key(m + n + k))
    x = jax.random.normal(keys[0], (m, k), jnp.bfloat16)
    w = jax.random.normal(keys[1], (n, k), jnp.bfloat16) * k**-0.5
    a, a_scale = jax.jit(jax_deepgemm.per_token_cast_to_fp8)(x)
    b, b_scale = jax.jit(jax_deepgemm.per_block_cast_to_fp8)(w)
    ours, xla = jax.jit(_gemm), jax.jit(dequantise_and_dot)
    operands = (a, a_scale, b, b_scale)

    rows = np.unique(np.linspace(0, m - 1, ORACLE_ROWS).astype(int))
    d = np.asarray(ours(*operands))[rows].astype(np.float64)
    exact = _dequantised(a[rows], a_scale[rows], 1) @ _dequantised(b, b_scale, 128).T
    unquantised = np.asarray(x)[rows].astype(np.float64) @ np.asarray(w).astype(np.float64).T
    us, xla_us = _wall_us(ours, operands), _wall_us(xla, operands)
    return {
        "m": m,
        "n": n,
        "k": k,
        "error": _relative(d, exact),
        "error_bound": ERROR_BOUND,
        "quantisation_error": _relative(d, unquantised),
        "quantisation_bound": QUANTISATION_BOUND,
        "us": us,
        "xla_us": xla_us,
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What is over its bound in a row of the main job. NaN is over every bound."""
    size = f"{row['m']} x {row['n']} x {row['k']}"
    found = []
    for error, bound, against in (
        ("error", "error_bound", "float64 on the quantised operands"),
        ("quantisation_error", "quantisation_bound", "float64 on the BF16 input"),
    ):
        if not row[error] < row[bound]:
            found.append(f"{size}: error against {against} is {row[error]:.2e}, must be below {row[bound]:.0e}")
    return found


def examine() -> dict[str, Any]:
    """Everything that `python -m jax_deepgemm` shows; `faults` is empty if all is well."""
    chosen, why = target()
    cache, missing = compiler.cache_folder(), no_backend()
    devices = [] if missing else jax.devices()
    report: dict[str, Any] = {
        "versions": versions(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in devices],
        "target": None if chosen is None else dataclasses.asdict(chosen),
        "target_reason": why,
        "nvrtc": compiler.nvrtc_location(),
        "cache_folder": None if cache is None else str(cache),
        "operations": operations(),
        "main_job": [],
        "faults": [missing] if missing else [],
    }
    if missing:
        return report
    for sizes in GPU_SIZES if jax.default_backend() == "gpu" else CPU_SIZES:
        try:
            row = main_job(*sizes)
        except Exception as error:  # the report on the rest is what helps then
            report["faults"].append(f"{' x '.join(map(str, sizes))}: {type(error).__name__}: {error}")
        else:
            report["main_job"].append(row)
            report["faults"] += faults(row)
    return report
