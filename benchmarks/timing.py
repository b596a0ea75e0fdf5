"""Kernel time of several functions, side by side.

One step is: overwrite the L2 cache, wait, call one function, wait. The flush kernels then cut the recorded events into
steps. A call's time is that in which at least one of its kernels runs: a kernel that may be launched while another ends
(PDL) begins by waiting for it, and the sum of the two would count that wait twice. On a card that is limited by its
power, a function's time depends on what ran before it: in `balanced_order` each follows each other equally often, and a
drift of the clocks meets them all alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.capture import Event, EventSource, TimerError
from benchmarks.environment import warn

Call = Callable[[], object]  # launches once and returns when the GPU is done
FLUSH_BYTES = 256 * 1024 * 1024  # five times the largest Hopper L2


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median over the repetitions of the `busy_ns` of one call; `kernels` is how many events a call made."""

    us: float
    kernels: int
    names: tuple[str, ...] = ()


class Flush:
    """Overwrites the L2 cache, and knows its own kernel in a list of events."""

    def __init__(self, source: EventSource):
        import jax
        import jax.numpy as jnp

        # Named in the HLO, and an operation that no function under test uses, so named in the kernel too.
        def flush_l2(buffer, key):
            return buffer ^ key

        self._flush = jax.jit(flush_l2, donate_argnums=0)
        self._buffer = jnp.ones((FLUSH_BYTES // 4,), jnp.uint32)
        self._key = jnp.asarray(0x9E3779B9, jnp.uint32)
        self()
        source(self._thrice)  # the first recording of a process may miss events
        events = source(self._thrice)
        if len(events) != 3 or len({event.name for event in events}) != 1:
            raise TimerError(f"3 flushes should be 3 equal events, recorded {[event.name for event in events]}")
        self.name = events[0].name

    def __call__(self) -> None:
        self._buffer = self._flush(self._buffer, self._key)
        self._buffer.block_until_ready()

    def _thrice(self) -> None:
        for _ in range(3):
            self()

    def made(self, event: Event) -> bool:
        if event.module is not None:
            return "flush_l2" in event.module
        return event.name == self.name


def steps(events: Sequence[Event], is_flush: Callable[[Event], bool]) -> list[list[Event]]:
    """The events behind each flush, in order of time."""
    groups: list[list[Event]] = []
    for event in sorted(events, key=lambda event: event.start_ns):
        if is_flush(event):
            groups.append([])
        elif groups:
            groups[-1].append(event)
    return groups


def busy_ns(events: Iterable[Event]) -> float:
    """The time in which at least one of the events is under way."""
    busy, until = 0.0, -math.inf
    for event in sorted(events, key=lambda event: event.start_ns):
        end = event.start_ns + event.duration_ns
        busy += max(0.0, end - max(until, event.start_ns))
        until = max(until, end)
    return busy


def summarise(
    order: Sequence[str], groups: Sequence[Sequence[Event]], counts: Callable[[str, Event], bool] = lambda *_: True
) -> dict[str, Timing]:
    """The timing of each name, from the name and the events of each step. Names without any event are absent."""
    totals: dict[str, list[float]] = {}
    kernels: dict[str, tuple[str, ...]] = {}
    for name, events in zip(order, groups, strict=True):
        counted = [event for event in events if counts(name, event)]
        if counted:
            totals.setdefault(name, []).append(busy_ns(counted) / 1e3)
            kernels[name] = tuple(event.name for event in counted)
    return {name: Timing(statistics.median(us), len(kernels[name]), kernels[name]) for name, us in totals.items()}


def balanced_order(names: Sequence[str], reps: int, seed: int = 0) -> list[str]:
    """Each name at least `reps` times, never twice in a row, and equally often behind each of the others.

    Rounds are Euler circuits of the graph with an edge from every name to every other, each drawn at random: all
    ordered pairs once, the last of a round with the first of the next.
    """
    if len(names) == 1:
        return [*names] * reps
    generator = random.Random(seed)
    order: list[str] = []
    for _ in range(-(-reps // (len(names) - 1))):
        unused = {name: generator.sample(others := [n for n in names if n != name], len(others)) for name in names}
        path, circuit = [names[0]], []
        while path:  # Hierholzer: go on while an edge is left, else step back and keep what is behind
            if unused[path[-1]]:
                path.append(unused[path[-1]].pop())
            else:
                circuit.append(path.pop())
        order += circuit[:-1]  # it ends where it and the next one begin
    return order


def measure_all(
    cases: Sequence[Mapping[str, Call]],
    reps: int,
    source: EventSource,
    flush: Flush,
    counts: Callable[[str, Event], bool] = lambda *_: True,
) -> list[dict[str, Timing]]:
    """Times the calls of each case `reps` times or a few more, one case after the other, in one recording.

    Warm the calls up first: nothing here is left out.
    """
    orders = [balanced_order(list(calls), reps, seed) for seed, calls in enumerate(cases)]

    def run() -> None:
        for calls, order in zip(cases, orders, strict=True):
            for name in order:
                flush()
                calls[name]()

    groups = steps(source(run), flush.made)
    if len(groups) != sum(map(len, orders)):
        raise TimerError(f"{sum(map(len, orders))} steps ran, the events show {len(groups)}")
    rest = iter(groups)
    return [summarise(order, list(itertools.islice(rest, len(order))), counts) for order in orders]


def measure(
    calls: Mapping[str, Call],
    reps: int,
    source: EventSource,
    flush: Flush,
    counts: Callable[[str, Event], bool] = lambda *_: True,
) -> dict[str, Timing]:
    """`measure_all` of one case."""
    try:
        return measure_all([calls], reps, source, flush, counts)[0]
    except TimerError as error:  # CUPTI drops events when its buffers run full
        warn(f"{error}; once more")
        return measure_all([calls], reps, source, flush, counts)[0]
