"""`python -m benchmarks SUITE [--peers] [--json FILE]`, and `render` for README's tables."""

from __future__ import annotations

import argparse
import sys

from benchmarks import environment


def parser() -> argparse.ArgumentParser:
    from benchmarks.capture import SOURCES
    from benchmarks.suite import Options
    from benchmarks.suites import SUITES

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("suite", choices=[*SUITES, "jit", "render"], help="jit: compile and host times; render: README from results")
    add("--peers", action="store_true", help="time the peers that can be imported beside us")
    add("--skip-peer", action="append", default=[], metavar="NAME", help="leave this peer out")
    add("--json", metavar="FILE", help="write the results as they come")
    add("--case", action="append", default=[], metavar="m=1,k=7168", help="only cases of these sizes; repeatable")
    add("--reps", type=int, default=Options.reps, help="repetitions of each case and function")
    add("--timer", choices=["auto", *SOURCES], default=Options.timer, help="which profiler reads CUPTI")
    add(
        "--budget",
        type=float,
        default=Options.budget,
        metavar="S",
        help="begin no further cases after so many seconds",
    )
    add("--commit", metavar="TEXT", help="where there is no git: output of git describe --always --abbrev=40 --dirty")
    add("--warm-peers", action="store_true", help="only let the peers compile what they need, in parallel")
    add("--processes", type=int, default=8, help="of --warm-peers")
    add("--check", action="store_true", help="render: fail if README would change, write nothing")
    return parser


def main(arguments: list[str] | None = None) -> int:
    environment.prepare()
    args = parser().parse_args(arguments)
    if args.reps < 10:
        environment.warn(f"--reps {args.reps}: a median of fewer than 10 is not worth committing")
    if args.suite == "render":
        from benchmarks import render

        return render.main(check=args.check)
    if args.suite == "jit":
        from benchmarks import jit

        return jit.run(args.json, args.commit)
    from benchmarks.capture import TimerError
    from benchmarks.suite import Options, run
    from benchmarks.suites import SUITES

    suite = SUITES[args.suite]
    if args.warm_peers:
        from benchmarks import warm

        return 1 if warm.warm(args.suite, args.processes) else 0
    peers = [peer.name for peer in suite.peers if args.peers and peer.name not in args.skip_peer]
    options = Options(peers, args.reps, args.timer, args.case, args.json, args.commit, args.budget)
    try:
        return 1 if run(suite, options) else 0
    except TimerError as error:
        environment.warn(f"nothing was timed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
