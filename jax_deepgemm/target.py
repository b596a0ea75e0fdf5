"""What a kernel is compiled for. A `Target` is passed down; nothing below the lowering asks a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jax_deepgemm import checks, config
from jax_deepgemm.warn import warn_once

_ARCHES = {"9.0": "sm_90a"}  # compute capability -> the architecture of our kernels for it
_SHARED_MEMORY = {"sm_90a": 232448}


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU as the plans see it.

    Attributes:
      arch: a real architecture with its suffix, such as "sm_90a".
      num_sms: streaming multiprocessors.
      smem_bytes: shared memory that one block can opt in to, in bytes.
      name: for messages; two targets that differ only in it are equal.
    """

    arch: str
    num_sms: int
    smem_bytes: int
    name: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.arch, str) or not self.arch.startswith("sm_"):
            raise ValueError(f"`arch` must be a real architecture such as sm_90a, got {self.arch!r}")
        for name in ("num_sms", "smem_bytes"):
            checks.integer(name, getattr(self, name), "a positive integer", 1)

    @staticmethod
    def from_device(device: Any) -> Target | None:
        """The target of a JAX device, of a real one or of a topology's; None if there are no kernels for it."""
        arch = _ARCHES.get(getattr(device, "compute_capability", ""))
        if arch is None:
            return None
        shared_memory = getattr(device, "shared_memory_per_block_optin", _SHARED_MEMORY[arch])
        return Target(arch, device.core_count, shared_memory, device.device_kind)


H100 = Target("sm_90a", 132, _SHARED_MEMORY["sm_90a"], "NVIDIA H100 SXM")  # an H200 is the same to us


def lowering_target(ctx: Any) -> Target | None:
    """The target of a `jax.interpreters.mlir.LoweringRuleContext` for platform "cuda"; None means: use the reference.

    In this order: what `set_target` set; the devices that are lowered for, which under AOT are the topology's; the
    CUDA devices of this process (an export for cuda from the CPU). Several devices that are compiled for at once
    are one target, with the fewest SMs among them. Without a target, a warning tells once why.
    """
    chosen = config.current().target
    if chosen is not None:
        return chosen
    devices = _cuda_devices(ctx.module_context.backend)
    if not devices:
        warn_once(
            "jax_deepgemm lowers for cuda with no CUDA device to ask, so it takes its reference implementations. "
            "jax_deepgemm.set_target(...) names the GPU to compile kernels for."
        )
        return None
    target, why = common_target(devices)
    if target is None:
        warn_once(f"jax_deepgemm takes its reference implementations: {why}")
    return target


def common_target(devices: Sequence[Any]) -> tuple[Target | None, str]:
    """What code for all of these GPUs is compiled for, None where one of them has no kernels; and why that."""
    targets = []
    for device in devices:
        target = Target.from_device(device)
        said = f"{device.device_kind} (compute capability {getattr(device, 'compute_capability', 'unknown')})"
        if target is None:
            return None, f"there are no kernels for {said}"
        targets.append((target, said))
    target, said = min(targets, key=lambda found: found[0].num_sms)
    return target, f"there are kernels for {said}"


def _cuda_devices(backend: Any) -> list[Any]:
    if backend is not None and backend.platform in ("gpu", "cuda"):
        return list(backend.devices())
    try:
        return list(jax.devices("cuda"))
    except RuntimeError:  # no such backend
        return []
