"""`python -m benchmarks.sweep SUITE --case m=256,n=2112,k=7168`: cases of a suite in many configurations, side by side.

For whoever works on a kernel or on heuristics. The candidates are the first of the heuristics' ranking, and whatever
`--config` names; the peers run beside them. With `--power` each call is repeated for a second: watts, clock and
millijoules say what a time does not where the card is at its power limit.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from benchmarks import environment
from benchmarks.environment import warn
from benchmarks.peers import Prepared


class Override(threading.local):
    """The configuration that operations lowered by this thread take instead of the heuristics' choice."""

    config: Any = None
    seen: dict[Any, None] | None = None  # collects what the heuristics rank, if it is there


@contextlib.contextmanager
def overriding() -> Iterator[Override]:
    """While it is open, what the yielded object says holds for each thread."""
    from jax_deepgemm import tuned

    override, original = Override(), tuned.plan

    def plan(op: Any, avals: Any, out_avals: Any, params: Any, target: Any, settings: Any) -> Any:
        if op.ranked is not None and override.seen is not None:
            override.seen |= dict.fromkeys(op.ranked(avals, out_avals, params, target, settings))
        if op.configs and isinstance(override.config, op.configs):
            params = {**params, "config": override.config}
        return original(op, avals, out_avals, params, target, settings)

    with mock.patch.object(tuned, "plan", plan):
        yield override


def parsed(text: str) -> Any:
    """The configuration that `text` spells, such as "GemmConfig(rows=128, columns=96)"."""
    from jax_deepgemm.primitive import OPS

    kinds = {kind.__name__: kind for op in OPS.values() for kind in op.configs}
    return eval(text, {"__builtins__": {}}, kinds)


def label(config: Any) -> str:
    """Its class and the fields that are not their defaults."""
    changed = [f for f in dataclasses.fields(config) if getattr(config, f.name) != f.default]
    return f"{type(config).__name__}({', '.join(f'{f.name}={getattr(config, f.name)}' for f in changed)})"


def prepare(suite: Any, case: Any, given: Any, configs: Sequence[Any], candidates: int) -> dict[str, Prepared]:
    """Our calls by label, the heuristics' choice first; those that are wrong or do not fit are left out."""
    wrong = suite.checker(case, given)

    def one(config: Any) -> Prepared | None:
        override.config, override.seen = config, None
        try:
            prepared = suite.ours(given)
            fault = wrong(prepared.result())
        except Exception as reason:
            prepared, fault = None, f"{type(reason).__name__}: {reason}"
        if fault:
            warn(f"{label(config)} {case.sizes}: {fault}")
        return None if fault else prepared

    with overriding() as override, concurrent.futures.ThreadPoolExecutor(8) as pool:
        override.config, override.seen = None, {}
        chosen = suite.ours(given)
        asked = list(dict.fromkeys([*configs, *list(override.seen)[:candidates]]))
        found = dict(zip(map(label, asked), pool.map(one, asked), strict=True))
    return {"as chosen": chosen, **{name: prepared for name, prepared in found.items() if prepared}}


def table(us: Mapping[str, float], power: Mapping[str, Any]) -> list[str]:
    """A line for each, the fastest first: microseconds, and their ratio to the first name's."""
    first = us[next(iter(us))]
    lines = []
    for name, time in sorted(us.items(), key=lambda item: item[1]):
        drawn = f"  {power[name]}" if name in power else ""
        lines.append(f"{time:>9.2f} us {first / time:>6.3f}x{drawn}  {name}")
    return lines


def parser() -> argparse.ArgumentParser:
    from benchmarks.capture import SOURCES
    from benchmarks.suite import Options
    from benchmarks.suites import SUITES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    add = parser.add_argument
    add("suite", choices=SUITES)
    add("--case", action="append", default=[], metavar="m=1,k=7168", help="only cases of these sizes; repeatable")
    add("--candidates", type=int, default=8, help="how many of the heuristics' ranking")
    add("--config", action="append", default=[], metavar="TEXT", help="e.g. 'GemmConfig(rows=128, columns=96)'")
    add("--peers", action="store_true", help="time the peers that can be imported beside us")
    add("--skip-peer", action="append", default=[], metavar="NAME", help="leave this peer out")
    add("--power", action="store_true", help="watts, clock and energy of each, repeated for a second")
    add("--reps", type=int, default=Options.reps)
    add("--timer", choices=["auto", *SOURCES], default=Options.timer)
    return parser


def main(arguments: list[str] | None = None) -> int:
    environment.prepare()
    args = parser().parse_args(arguments)
    from benchmarks import power, timing
    from benchmarks.suite import choose_timer, select
    from benchmarks.suites import SUITES

    suite = SUITES[args.suite]
    configs = [parsed(text) for text in args.config]
    peers = [peer for peer in suite.peers if args.peers and peer.name not in args.skip_peer]
    source, flush = choose_timer(args.timer, [peer.name for peer in peers])
    counting = {peer.name: peer for peer in peers}
    for case in select(suite.cases, args.case):
        given = suite.operands(case)
        calls = prepare(suite, case, given, configs, args.candidates)
        for peer in (peer for peer in peers if peer.takes(case)):
            try:
                calls[peer.name] = peer.prepare(given)
            except Exception as reason:
                warn(f"{peer.name} {case.sizes}: {type(reason).__name__}: {reason}")
        for prepared in calls.values():
            prepared.call()
        timings = timing.measure(
            {name: prepared.call for name, prepared in calls.items()},
            args.reps,
            source,
            flush,
            lambda name, event: name not in counting or counting[name].counts(event),
        )
        us = {name: timings[name].us for name in calls if name in timings}
        drawn = {name: power.measure(calls[name].call) for name in us} if args.power else {}
        print(" ".join(f"{name}={size}" for name, size in case.sizes.items()))
        print("\n".join(table(us, drawn)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
