"""What a call draws from the card: power, clock and energy, by NVML, while it is repeated."""

# pyright: reportMissingImports=false
# nvidia-ml-py is optional, and imported only where it is used.

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

WARM_SECONDS = 0.3  # until the clock has settled
SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Power:
    """Averages over some thousand calls in a row, L2 as the call before left it.

    Each call is waited for, and the card idles until the next: up to 0.2 ms in JAX, less in PyTorch. So figures of ours
    and of a peer's compare only where kernels are much longer than that.
    """

    us: float  # of the host's clock, so with the gaps between calls
    watts: float
    mhz: float
    calls: int

    def __str__(self) -> str:
        kilocycles = self.us * self.mhz / 1e3
        joules = self.watts * self.us / 1e3
        return (
            f"{self.us:>8.1f} us {self.watts:>4.0f} W {self.mhz:>5.0f} MHz {kilocycles:>6.0f} kcycles {joules:>7.1f} mJ"
        )


def measure(call: Callable[[], object], seconds: float = SECONDS) -> Power:
    """`call` returns when the GPU is done. Raises ImportError without nvidia-ml-py."""
    import pynvml

    pynvml.nvmlInit()
    try:
        handle = _handle(pynvml)
        _repeat(call, WARM_SECONDS, lambda: None)
        clocks: list[int] = []
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # millijoules
        calls, elapsed = _repeat(
            call, seconds, lambda: clocks.append(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))
        )
        millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before
    finally:
        pynvml.nvmlShutdown()
    return Power(elapsed * 1e6 / calls, millijoules / 1e3 / elapsed, statistics.mean(clocks), calls)


def _handle(pynvml: Any) -> Any:
    """That of the process's first device: NVML counts all of the machine's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    if visible.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible))
    return pynvml.nvmlDeviceGetHandleByUUID(visible)


def _repeat(call: Callable[[], object], seconds: float, look: Callable[[], object]) -> tuple[int, float]:
    """How many calls there were, and the seconds that they took; `look` is called some times meanwhile."""
    start, calls, looks = time.perf_counter(), 0, 0
    while (elapsed := time.perf_counter() - start) < seconds:
        call()
        calls += 1
        if elapsed >= looks * seconds / 20:
            look()
            looks += 1
    return calls, elapsed
