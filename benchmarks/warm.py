"""Fills the peers' compile caches: each case once, in several processes, before anything is timed.

`python -m benchmarks SUITE --warm-peers` starts `python -m benchmarks.warm SUITE INDEX PROCESSES` so many times.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.environment import ROOT, warn


def warm(name: str, processes: int) -> int:
    """Returns how many of the processes failed; each has said why on stderr."""
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.warm", name]
    children = [
        subprocess.Popen([*command, str(index), str(processes)], cwd=ROOT, stdout=sys.stderr)
        for index in range(processes)
    ]
    failed = sum(child.wait() != 0 for child in children)
    warn(f"peers of {name} warmed up in {time.monotonic() - start:.0f} s, {failed} of {processes} processes failed")
    return failed


def main(name: str, index: int, processes: int) -> int:
    from benchmarks.suites import SUITES

    suite = SUITES[name]
    failed = 0
    for case in suite.cases[index::processes]:
        try:
            suite.warm(case)
        except Exception as error:
            warn(f"warm-up {case.sizes}: {type(error).__name__}: {error}")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
