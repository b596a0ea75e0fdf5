"""A suite of kernel timings, and how one runs. `benchmarks/dense.py` is the example to follow."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import capture, results, roofline
from benchmarks.environment import header, warn
from benchmarks.peers import Peer, Prepared
from benchmarks.timing import Flush, Timing, measure


@dataclasses.dataclass(frozen=True)
class Suite:
    """One operation over the rows of the case table. A case has `sizes`, its named dimensions."""

    op: str
    cases: Sequence[Any]
    operands: Callable[[Any], Any]  # random, on the GPU
    flops: Callable[[Any], float]
    moved_bytes: Callable[[Any], float]  # the least that must move
    checker: Callable[[Any, Any], Callable[[Any], str | None]]  # (case, operands): tells what is wrong with a result
    ours: Callable[[Any], Prepared]
    peers: Sequence[Peer]
    peak_operands: Callable[[], Any]  # of the FP8 product whose rate is the peak
    warm: Callable[[Any], None]  # makes the peers compile what a case needs
    groups: Sequence[tuple[str, Callable[[results.Row], bool]]]
    one_kernel: bool = True  # a call of ours launches nothing else
    peak: Callable[[capture.EventSource, Flush], float | None] | None = None  # in TFLOP/s; None: of `peak_operands`
    peak_of: str = "FP8"


@dataclasses.dataclass(frozen=True)
class Options:
    peers: Sequence[str] = ()
    reps: int = 15
    timer: str = "auto"
    case: Sequence[str] = ()
    json: str | None = None
    commit: str | None = None
    budget: float = float("inf")  # seconds; later cases are left out


def select(cases: Sequence[Any], filters: Sequence[str]) -> list[Any]:
    """The cases that match any filter; a filter such as "m=1,k=7168" matches if all its sizes do."""
    if not filters:
        return list(cases)
    wanted = [dict(part.split("=") for part in text.split(",")) for text in filters]
    return [
        case
        for case in cases
        if any(all(case.sizes.get(name) == int(size) for name, size in sizes.items()) for sizes in wanted)
    ]


def choose_timer(timer: str, peers: Sequence[str]) -> tuple[capture.EventSource, Flush]:
    """The event source asked for, or the first that sees both sides; a failed one leaves its reason on stderr."""
    names = list(capture.SOURCES) if timer == "auto" else [timer]
    for name in names:
        try:
            source = capture.SOURCES[name]
            flush = Flush(source)
            if peers and not capture.sees_torch(source):
                raise capture.TimerError("it does not record PyTorch's kernels")
            warn(f"timer: {name}")
            return source, flush
        except Exception as error:
            warn(f"timer {name}: {type(error).__name__}: {error}")
    raise capture.TimerError(f"no timer works: {', '.join(names)}")


def prepare(suite: Suite, case: Any, options: Options) -> tuple[dict[str, Prepared], list[str]]:
    """What can be timed in this case, each checked and warmed up, and what was wrong with the rest."""
    operands = suite.operands(case)
    error = suite.checker(case, operands)
    candidates = [Peer("ours", suite.ours)] + [peer for peer in suite.peers if peer.name in options.peers]
    ready: dict[str, Prepared] = {}
    faults: list[str] = []
    for candidate in candidates:
        try:
            prepared = candidate.prepare(operands)
            fault = error(prepared.result()) if candidate.checked else None
            for _ in range(2):
                prepared.call()
            if not fault:
                ready[candidate.name] = prepared
        except Exception as reason:  # a peer that is not there, or not for this case, leaves its column empty
            fault = f"{type(reason).__name__}: {reason}"
        if fault:
            faults.append(f"{candidate.name} {case.sizes}: {fault}")
    return ready, faults


def time_case(
    suite: Suite, case: Any, options: Options, source: capture.EventSource, flush: Flush
) -> tuple[dict[str, Timing], list[str]]:
    """The timings of one case by name ("ours" and the peers that ran), and what went wrong."""
    ready, faults = prepare(suite, case, options)
    if "ours" not in ready:
        return {}, faults
    peers = {peer.name: peer for peer in suite.peers}
    timings = measure(
        {name: prepared.call for name, prepared in ready.items()},
        options.reps,
        source,
        flush,
        lambda name, event: name not in peers or peers[name].counts(event),
    )
    faults += [f"{name} {case.sizes}: no kernel was recorded" for name in ready if name not in timings]
    if suite.one_kernel and "ours" in timings and timings["ours"].kernels != 1:
        faults.append(f"ours {case.sizes}: {timings['ours'].kernels} kernels, must be 1: {timings['ours'].names}")
    return timings, faults


def run(suite: Suite, options: Options) -> int:
    """Times the suite, prints its table, writes its file. Returns how many cases have no result of ours."""
    deadline = time.monotonic() + options.budget
    source, flush = choose_timer(options.timer, options.peers)
    result = header(options.commit)
    result["copy_gbs"] = round(roofline.copy_gbs(source, flush), 1)
    try:
        peak = suite.peak(source, flush) if suite.peak else roofline.fp8_tflops(suite.peak_operands(), source, flush)
        result["peak_tflops"] = peak and round(peak, 1)
    except Exception as error:  # the table without a matrix peak is still worth having
        warn(f"peak: {type(error).__name__}: {error}")
    cases = select(suite.cases, options.case)
    warn(f"{result['gpu']}, driver {result['driver']}, JAX {result['jax']}, {len(cases)} cases")
    ceilings = f"{suite.peak_of} peak {result['peak_tflops']} TFLOP/s, copy {result['copy_gbs']} GB/s"
    print(f"{ceilings}; ratio above 1x: we are faster")
    if cases:
        print(results.heading(list(cases[0].sizes), options.peers), flush=True)
    missing = 0
    for index, case in enumerate(cases):
        if time.monotonic() > deadline:
            warn(f"out of time: {len(cases) - index} cases left out")
            missing += len(cases) - index
            break
        try:
            timings, faults = time_case(suite, case, options, source, flush)
        except Exception as error:
            timings, faults = {}, [f"{case.sizes}: {type(error).__name__}: {error}"]
        for fault in faults:
            warn(fault)
        if "ours" not in timings:
            missing += 1
            continue
        us = {name: timing.us for name, timing in timings.items()}
        flops, moved = suite.flops(case), suite.moved_bytes(case)
        limit = roofline.limit_us(flops, moved, result["peak_tflops"], result["copy_gbs"])
        row = results.row(getattr(case, "op", suite.op), case.sizes, us.pop("ours"), limit, us)
        result["rows"].append(row)
        print(results.line(row, flops, moved, options.peers), flush=True)
        if options.json:
            results.write(options.json, result)
    for text in results.means(result["rows"], suite.groups, options.peers):
        print(text)
    return missing
