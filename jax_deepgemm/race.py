"""Which of several programs is fastest.

What drifts, clocks above all, meets all alike, since they take turns, in another order each round; and the median of
the rounds leaves out what disturbs one of them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

ROUNDS = 7
FINAL_ROUNDS = 15
FINALISTS = 4
MARGIN = 0.01  # what the first must be beaten by: less is noise

Timed = Callable[[], float]  # runs a program, returns its seconds


def race(programs: Sequence[Timed], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each: the median over rounds that go through all of them."""
    times: list[list[float]] = [[] for _ in programs]
    order = list(range(len(programs)))
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for index in order:
            times[index].append(programs[index]())
    return [statistics.median(t) for t in times]


def winner(programs: Sequence[Timed]) -> tuple[int, float, float]:
    """The index of the fastest, its seconds, and those of the first, measured beside it.

    The first is the one to beat: it stays unless another is faster by more than noise.
    """
    heats = race(programs)
    finalists = sorted(range(1, len(programs)), key=lambda i: heats[i])[: FINALISTS - 1]
    first, *others = race([programs[i] for i in (0, *finalists)], FINAL_ROUNDS)
    best = min(range(len(others)), key=lambda i: others[i], default=None)
    if best is None or others[best] > first * (1 - MARGIN):
        return 0, first, first
    return finalists[best], others[best], first
