"""A suite of kernel timings, and how one runs. `benchmarks/dense.py` is the example to follow."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import capture, results, roofline
from benchmarks.environment import header, warn
from benchmarks.peers import Peer, Prepared
from benchmarks.preparation import Ready, prepare
from benchmarks.timing import Flush, measure_all

TOGETHER = 7  # cases that are prepared, then recorded, in one go


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


def time_cases(
    suite: Suite, cases: Sequence[Ready], options: Options, source: capture.EventSource, flush: Flush
) -> None:
    """Adds the timings of each case by name ("ours" and the peers that ran), none where ours did not, and faults."""
    peers = {peer.name: peer for peer in suite.peers}

    def counts(name: str, event: capture.Event) -> bool:
        return name not in peers or peers[name].counts(event)

    timed = [case for case in cases if "ours" in case.calls]
    try:
        found = measure_all([case.calls for case in timed], options.reps, source, flush, counts)
        for case, timings in zip(timed, found, strict=True):
            case.timings = timings
    except Exception as reason:
        if len(cases) > 1:  # CUPTI drops events when its buffers run full
            warn(f"{type(reason).__name__}: {reason}; once more, each case in a recording of its own")
            for case in timed:
                time_cases(suite, [case], options, source, flush)
            return
        timed[0].faults.append(f"{timed[0].case.sizes}: {type(reason).__name__}: {reason}")
    for case in timed:
        sizes, ours = case.case.sizes, case.timings.get("ours")
        case.faults += [f"{name} {sizes}: no kernel was recorded" for name in case.calls if name not in case.timings]
        if suite.one_kernel and ours and ours.kernels != 1:
            case.faults.append(f"ours {sizes}: {ours.kernels} kernels, must be 1: {ours.names}")


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
    for first in range(0, len(cases), TOGETHER):
        if time.monotonic() > deadline:
            warn(f"out of time: {len(cases) - first} cases left out")
            missing += len(cases) - first
            break
        together = prepare(suite, cases[first : first + TOGETHER], options.peers)
        time_cases(suite, together, options, source, flush)
        for ready in together:
            for fault in ready.faults:
                warn(fault)
            if "ours" not in ready.timings:
                missing += 1
                continue
            case, us = ready.case, {name: timing.us for name, timing in ready.timings.items()}
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
