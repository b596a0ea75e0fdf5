"""What a suite does before it times: operands, compilation, a check of each result, a first call.

Several cases at once, in threads: most of it is XLA compiling. Nothing of it runs beside a timed step.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.peers import Peer
from benchmarks.timing import Call, Timing

if TYPE_CHECKING:
    from benchmarks.suite import Suite

T = TypeVar("T")


@dataclasses.dataclass
class Ready:
    """A case with what can be timed in it, "ours" and peers by name, what was wrong with the rest, and the timings."""

    case: Any
    calls: dict[str, Call] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)
    timings: dict[str, Timing] = dataclasses.field(default_factory=dict)
    operands: Any = None
    wrong: Callable[[Any], str | None] | None = None  # tells what is wrong with a result; None: no operands

    def make_operands(self, suite: Suite) -> None:
        try:
            self.operands = suite.operands(self.case)
            self.wrong = suite.checker(self.case, self.operands)
        except Exception as reason:
            self.faults.append(f"{self.case.sizes}: {type(reason).__name__}: {reason}")

    def add(self, candidate: Peer) -> None:
        """A candidate that is not there, or refuses this case, or is wrong, leaves a fault; who is not asked, none."""
        if self.wrong is None or not candidate.takes(self.case):
            return
        try:
            prepared = candidate.prepare(self.operands)
            fault = self.wrong(prepared.result()) if candidate.checked else None
            for _ in range(2):
                prepared.call()
            if not fault:
                self.calls[candidate.name] = prepared.call
        except Exception as reason:
            fault = f"{type(reason).__name__}: {reason}"
        if fault:
            self.faults.append(f"{candidate.name} {self.case.sizes}: {fault}")


def prepare(suite: Suite, cases: Sequence[Any], peers: Sequence[str]) -> list[Ready]:
    candidates = [Peer("ours", suite.ours)] + [peer for peer in suite.peers if peer.name in peers]
    ready = [Ready(case) for case in cases]

    def begin(case: Ready) -> None:
        case.make_operands(suite)
        for candidate in candidates:
            if not candidate.alone:
                case.add(candidate)

    with concurrent.futures.ThreadPoolExecutor(max(1, len(cases))) as pool:
        list(pool.map(begin, ready))
    for case in ready:
        for candidate in candidates:
            if candidate.alone:
                case.add(candidate)
        case.operands = None  # what the calls need, they hold
    return ready


def shared(function: Callable[..., T]) -> Callable[..., T]:
    """Remembers every result, and lets one thread make it while others wait."""
    made: dict[Any, tuple[threading.Lock, list[T]]] = {}

    def call(*key: Any) -> T:
        lock, results = made.setdefault(key, (threading.Lock(), []))
        with lock:
            if not results:
                results.append(function(*key))
        return results[0]

    return call
