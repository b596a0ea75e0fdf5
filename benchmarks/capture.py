"""GPU events of a stretch of code, through CUPTI.

Both sources see every kernel of the process, whoever launched it, so our kernels and our peers' go through the same
clock. Only one of them may subscribe to CUPTI in a process.
"""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable

EventSource = Callable[[Callable[[], None]], "list[Event]"]


class TimerError(RuntimeError):
    """The events do not show what was run."""


@dataclasses.dataclass(frozen=True)
class Event:
    """A kernel, copy or memset on the GPU. `module` is its HLO module; None for what XLA did not launch."""

    name: str
    start_ns: float
    duration_ns: float
    module: str | None = None


def parse_xplane(data) -> list[Event]:
    """The events of the first GPU in a `jax.profiler.ProfileData`, in order of their start."""
    plane = data.find_plane_with_name("/device:GPU:0")
    if plane is None:
        raise TimerError("jax.profiler recorded no plane /device:GPU:0; is CUPTI (nvidia-cuda-cupti) installed?")
    events = []
    for line in plane.lines:
        if not line.name.startswith("Stream"):  # the other lines summarise these
            continue
        for event in line.events:
            module = next((str(value) for key, value in event.stats if key == "hlo_module"), None)
            events.append(Event(event.name, event.start_ns, event.duration_ns, module))
    return sorted(events, key=lambda event: event.start_ns)


def capture_jax(run: Callable[[], None]) -> list[Event]:
    """The GPU events of `run`, by jax.profiler. `run` returns when its work is done."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = 0
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            run()
        finally:
            jax.profiler.stop_trace()
        files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
        if not files:
            raise TimerError("jax.profiler wrote no xplane.pb")
        return parse_xplane(jax.profiler.ProfileData.from_file(str(files[-1])))


def parse_torch(events) -> list[Event]:
    """The GPU events among `torch.profiler.profile.events()`, in order of their start."""
    found = [
        Event(event.name, event.time_range.start * 1e3, event.time_range.elapsed_us() * 1e3)
        for event in events
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    return sorted(found, key=lambda event: event.start_ns)


def capture_torch(run: Callable[[], None]) -> list[Event]:
    """The GPU events of `run`, by torch.profiler. `run` returns when its work is done."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return parse_torch(profile.events())


def sees_torch(source: EventSource) -> bool:
    """Whether `source` records PyTorch's kernels; where there is no PyTorch, there is nothing to miss."""
    try:
        import torch

        operand = torch.ones(1 << 20, device="cuda")
    except Exception:  # not installed, or without CUDA
        return True

    def run() -> None:
        operand.add(1.0)
        torch.cuda.synchronize()

    source(run)
    return bool(source(run))


SOURCES: dict[str, EventSource] = {"jax": capture_jax, "torch": capture_torch}
