"""`python -m benchmarks.all [SUITE ...]`: the suites one after the other, each in a process of its own.

What a release needs: every file of `benchmarks/results/<gpu>/` anew, from one machine. The peers' compile caches are
filled first, while nothing is timed. With `--gpus 0,1` each of these GPUs, which must be alike, takes the next suite
when it is free. A suite that is cut off leaves the cases that it has timed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import queue
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks import environment
from benchmarks.environment import ROOT, gpu_folder, warn

if TYPE_CHECKING:
    from benchmarks.suite import Suite

_PROCESSES = 8  # of each suite that is warmed up ...
_AT_ONCE = 3  # ... and suites at a time: each process holds a context on the GPU


_RUN = (sys.executable, "-m", "benchmarks")


def warming(suites: Mapping[str, Suite]) -> list[list[str]]:
    """What may run at once, before anything is timed."""
    compiled = [name for name, suite in suites.items() if any(peer.name == "deep_gemm" for peer in suite.peers)]
    return [[*_RUN, name, "--warm-peers", "--processes", str(_PROCESSES)] for name in compiled]


def timing(
    names: Sequence[str], folder: str, extra: Sequence[str], peers: bool, skipped: Sequence[str] = ()
) -> list[list[str]]:
    """What runs one after the other on a GPU."""
    beside = ["--peers", *(part for peer in skipped for part in ("--skip-peer", peer))] if peers else []
    return [
        [*_RUN, name, *(beside if name != "jit" else []), "--json", f"{folder}/{name}.json", *extra] for name in names
    ]


def run(commands: Sequence[list[str]], gpus: Sequence[str | None]) -> list[str]:
    """Each on a GPU that has nothing else to do. Returns the suites that failed."""
    free: queue.Queue[str | None] = queue.Queue()
    for gpu in gpus:
        free.put(gpu)

    def one(command: list[str]) -> str | None:
        gpu, start = free.get(), time.monotonic()
        environ = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        try:
            status = subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode
        finally:
            free.put(gpu)
        warn(f"{command[3]}: status {status} after {time.monotonic() - start:.0f} s")
        return command[3] if status else None

    with concurrent.futures.ThreadPoolExecutor(len(gpus)) as pool:
        return [suite for suite in pool.map(one, commands) if suite is not None]


def main(arguments: list[str] | None = None) -> int:
    environment.prepare()
    from benchmarks.suites import SUITES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="all of them, if none is named")
    parser.add_argument("--folder", help="of the results; benchmarks/results/<gpu> by default")
    parser.add_argument("--commit", metavar="TEXT", help="where there is no git: as for python -m benchmarks")
    parser.add_argument("--no-peers", action="store_true", help="time ours alone")
    parser.add_argument("--skip-peer", action="append", default=[], metavar="NAME", help="leave this peer out")
    parser.add_argument("--gpus", metavar="0,1", help="as CUDA_VISIBLE_DEVICES has them; by default one process's own")
    args = parser.parse_args(arguments)
    known = [*SUITES, "jit"]
    unknown = [suite for suite in args.suites if suite not in known]
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(known)}")
    folder = args.folder or f"benchmarks/results/{_gpu()}"
    extra = ["--commit", args.commit] if args.commit else []
    gpus = args.gpus.split(",") if args.gpus else [None]
    names = args.suites or known
    if not args.no_peers:
        chosen = {name: SUITES[name] for name in names if name in SUITES}
        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:  # one that fails has said why
            list(pool.map(lambda command: subprocess.run(command, cwd=ROOT, check=False), warming(chosen)))
    failed = run(timing(names, folder, extra, not args.no_peers, args.skip_peer), gpus)
    if failed:
        warn(f"not all cases were timed: {', '.join(failed)}")
    return 1 if failed else 0


def _gpu() -> str:
    """Asked of a process of its own: one that holds the GPU would be in the way of the timings."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    return gpu_folder(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
