"""`python -m benchmarks.all [SUITE ...]`: the suites one after the other, each in a process of its own.

What a release needs: every file of `benchmarks/results/<gpu>/` anew, from one machine. The peers' compile caches are
filled first, while nothing is timed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks import environment
from benchmarks.environment import ROOT, gpu_folder, warn

if TYPE_CHECKING:
    from benchmarks.suite import Suite

_PROCESSES = 8  # of each suite that is warmed up


_RUN = (sys.executable, "-m", "benchmarks")


def warming(suites: Mapping[str, Suite]) -> list[list[str]]:
    """What may run at once, before anything is timed."""
    compiled = [name for name, suite in suites.items() if any(peer.name == "deep_gemm" for peer in suite.peers)]
    return [[*_RUN, name, "--warm-peers", "--processes", str(_PROCESSES)] for name in compiled]


def timing(names: Sequence[str], folder: str, extra: Sequence[str], peers: bool) -> list[list[str]]:
    """What runs one after the other."""
    beside = ["--peers"] if peers else []
    return [
        [*_RUN, name, *(beside if name != "jit" else []), "--json", f"{folder}/{name}.json", *extra] for name in names
    ]


def main(arguments: list[str] | None = None) -> int:
    environment.prepare()
    from benchmarks.suites import SUITES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="all of them, if none is named")
    parser.add_argument("--folder", help="of the results; benchmarks/results/<gpu> by default")
    parser.add_argument("--commit", metavar="TEXT", help="where there is no git: as for python -m benchmarks")
    parser.add_argument("--no-peers", action="store_true", help="time ours alone")
    args = parser.parse_args(arguments)
    known = [*SUITES, "jit"]
    unknown = [suite for suite in args.suites if suite not in known]
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(known)}")
    folder = args.folder or f"benchmarks/results/{_gpu()}"
    extra = ["--commit", args.commit] if args.commit else []
    names = args.suites or known
    if not args.no_peers:
        chosen = {name: SUITES[name] for name in names if name in SUITES}
        for child in [subprocess.Popen(command, cwd=ROOT) for command in warming(chosen)]:
            child.wait()  # one that fails has said why
    failed = []
    for command in timing(names, folder, extra, not args.no_peers):
        start = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        warn(f"{command[3]}: status {status} after {time.monotonic() - start:.0f} s")
        if status:
            failed.append(command[3])
    if failed:
        warn(f"not all cases were timed: {', '.join(failed)}")
    return 1 if failed else 0


def _gpu() -> str:
    """Asked of a process of its own: one that holds the GPU would be in the way of the timings."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    return gpu_folder(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
