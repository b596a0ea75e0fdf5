"""The tables of README.md and docs/benchmarks.md, written from the committed results between two markers."""

from __future__ import annotations

import json
from collections.abc import Callable

from benchmarks import tables
from benchmarks.environment import ROOT, warn
from benchmarks.suites import SUITES

BEGIN = "<!-- benchmarks: begin (python -m benchmarks render) -->"
END = "<!-- benchmarks: end -->"
NOTHING = "No results are committed yet."


def committed() -> list[dict[str, tables.Result]]:
    """For each GPU, the results by suite."""
    folders = sorted((ROOT / "benchmarks" / "results").glob("*/"))
    return [{path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))} for folder in folders]


def overview() -> str:
    """What README has: a table of all suites, and the dense one by shape."""
    parts = []
    for found in filter(None, committed()):
        gpus = dict.fromkeys(result["gpu"] for result in found.values())
        dates = sorted({result["date"] for result in found.values()})
        parts.append(f"On {', '.join(gpus)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}:")
        parts.append(tables.summary(found))
        never = [f"`{name}`" for name in tables.ordered(list(SUITES)) if name not in found]
        parts += [f"No figures of this GPU: {', '.join(never)}."] if never else []
        parts += [tables.shapes(found["dense"])] if "dense" in found else []
    return "\n\n".join(parts) or NOTHING


def details() -> str:
    """What docs/benchmarks.md has: every case of every suite, on each GPU, and the run that it is from."""
    everything = committed()
    parts = []
    for name in tables.ordered(list({name: None for found in everything for name in found})):
        parts.append(f"## {name}")
        for result in (found[name] for found in everything if name in found):
            parts.append(f"{tables.about(name, result)}. {tables.run_of(result)}.")
            parts.append(tables.cases(name, result))
    return "\n\n".join(parts) or NOTHING


FILES: dict[str, Callable[[], str]] = {"README.md": overview, "docs/benchmarks.md": details}


def replaced(name: str, text: str) -> str:
    """The file's text with its section renewed. ValueError without markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{name} must hold {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{FILES[name]()}\n{END}{tail}"


def main(check: bool = False) -> int:
    """Writes the files, or says which of them differ from the results."""
    stale = []
    for name in FILES:
        path = ROOT / name
        old = path.read_text()
        new = replaced(name, old)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new)
    if check and stale:
        warn(f"{' and '.join(stale)} differ from benchmarks/results: run python -m benchmarks render")
        return 1
    return 0
