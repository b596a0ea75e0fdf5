"""Which of several GPU programs is fastest, by the wall time of batches: neither CUPTI nor events are needed.

A batch is so long that enqueueing its first call and waiting for its last hardly count, and counts alike for all. What
drifts, clocks above all, meets all alike too, since they take turns, in another order each round; and the median of the
rounds leaves out what disturbs one of them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

ROUNDS = 7
FINAL_ROUNDS = 15
FINALISTS = 4
MARGIN = 0.01  # what the first must be beaten by: less is noise


def race(
    batches: Sequence[Callable[[], None]], *, rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each batch, which returns when the GPU is done: the median over rounds that go through all of them."""
    times: list[list[float]] = [[] for _ in batches]
    order = list(range(len(batches)))
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for index in order:
            start = clock()
            batches[index]()
            times[index].append(clock() - start)
    return [statistics.median(t) for t in times]


def winner(
    batches: Sequence[Callable[[], None]], *, clock: Callable[[], float] = time.perf_counter
) -> tuple[int, float, float]:
    """The index of the fastest, its seconds, and those of the first, measured beside it.

    The first is the one to beat: it stays unless another is faster by more than noise.
    """
    heats = race(batches, clock=clock)
    finalists = sorted(range(1, len(batches)), key=lambda i: heats[i])[: FINALISTS - 1]
    first, *others = race([batches[i] for i in (0, *finalists)], rounds=FINAL_ROUNDS, clock=clock)
    best = min(range(len(others)), key=lambda i: others[i], default=None)
    if best is None or others[best] > first * (1 - MARGIN):
        return 0, first, first
    return finalists[best], others[best], first
