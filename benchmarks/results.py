"""Result rows: the line on the screen, the means at the end, the file."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]


def row(op: str, case: dict[str, int], us: float, limit_us: float | None, peer_us: dict[str, float]) -> Row:
    return {
        "op": op,
        "case": case,
        "us": round(us, 3),
        "limit_us": None if limit_us is None else round(limit_us, 3),
        "peer_us": {name: round(value, 3) for name, value in peer_us.items()},
    }


def geomean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def ratios(rows: Sequence[Row], peer: str) -> list[float]:
    """The peer's time over ours in each row that has it: above 1 we are faster."""
    return [row["peer_us"][peer] / row["us"] for row in rows if peer in row["peer_us"]]


def peer_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["peer_us"]))


def heading(sizes: Sequence[str], peers: Sequence[str]) -> str:
    columns = [f"{name:>6}" for name in sizes]
    columns += [f"{'us':>9}", f"{'TFLOPS':>7}", f"{'GB/s':>6}", f"{'limit':>6}", *(f"{name:>10}" for name in peers)]
    return " ".join(columns)


def line(row: Row, flops: float, moved: float, peers: Sequence[str]) -> str:
    """One aligned line: sizes, us, TFLOPS, GB/s, share of the limit, ratio to each peer."""
    us = row["us"]
    columns = [f"{size:>6}" for size in row["case"].values()]
    columns += [f"{us:>9.2f}", f"{flops / us / 1e6:>7.0f}", f"{moved / us / 1e3:>6.0f}"]
    columns.append(f"{row['limit_us'] / us:>6.0%}" if row["limit_us"] else f"{'-':>6}")
    columns += [f"{row['peer_us'][name] / us:>9.2f}x" if name in row["peer_us"] else f"{'-':>10}" for name in peers]
    return " ".join(columns)


def means(rows: Sequence[Row], groups: Sequence[tuple[str, Callable[[Row], bool]]], peers: Sequence[str]) -> list[str]:
    """For each group of rows and each peer: geometric mean, least and count of the ratios."""
    lines = []
    for label, belongs in groups:
        chosen = [row for row in rows if belongs(row)]
        for peer in peers:
            found = ratios(chosen, peer)
            if found:
                text = f"geomean {geomean(found):.3f}x  least {min(found):.3f}x  of {len(found)}"
                lines.append(f"{label:<8} {peer:<10} {text}")
    return lines


def write(path: str | pathlib.Path, result: dict[str, Any]) -> None:
    """Written whole each time, so that a run cut short leaves what it had."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join("  " + json.dumps(row) for row in result["rows"])
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1).removesuffix("\n}")
    text = f'{head},\n "rows": [\n{rows}\n ]\n}}\n'
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)
