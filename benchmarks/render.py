"""README's benchmark tables, written from the committed results between two markers."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from benchmarks import results
from benchmarks.environment import ROOT, warn

BEGIN = "<!-- benchmarks: begin (python -m benchmarks render) -->"
END = "<!-- benchmarks: end -->"
LISTED = (
    "cast",
    "dgrad",
    "wgrad",
    "fp8_fp4",
    "linear",
    "contiguous",
    "masked",
    "fp8_fp4_masked",
    "k_grouped",
    "ragged_dot",
    "moe_mlp",
)  # suites that are shown a line a case
LABELS = {"deep_gemm": "DeepGEMM", "cublaslt": "cuBLASLt without scales", "xla": "XLA, dequantise and dot"}


def committed(suite: str = "dense") -> list[pathlib.Path]:
    return sorted((ROOT / "benchmarks" / "results").glob(f"*/{suite}.json"))


def listing(result: dict[str, Any]) -> str:
    """A result as Markdown, a line for each case."""
    rows = result["rows"]
    peers = results.peer_names(rows)
    sizes = list(dict.fromkeys(name for row in rows for name in row["case"]))
    head = ["operation", *sizes, "us", "of the limit", *(f"{name} / ours" for name in peers)]
    text = [
        f"On {result['gpu']} (driver {result['driver']}, JAX {result['jax']}, {result['date']}), kernel time. The limit"
        " is the larger of operations over the measured peak and bytes over the measured copy rate:",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in rows:
        share = f"{row['limit_us'] / row['us']:.0%}" if row["limit_us"] else ""
        ratios = [f"{row['peer_us'][name] / row['us']:.2f}x" if name in row["peer_us"] else "" for name in peers]
        case = [str(row["case"].get(name, "")) for name in sizes]
        text.append("| " + " | ".join([f"`{row['op']}`", *case, f"{row['us']:.1f}", share, *ratios]) + " |")
    return "\n".join(text)


def table(result: dict[str, Any]) -> str:
    """A dense result as Markdown: a line for each N x K, a column for each M, and the means below."""
    rows = result["rows"]
    peers = results.peer_names(rows)
    first = peers[0] if peers else None
    columns = sorted({row["case"]["m"] for row in rows})
    lines = list(dict.fromkeys((row["case"]["n"], row["case"]["k"]) for row in rows))
    cells = {tuple(row["case"].values()): cell(row, first) for row in rows}
    ratio = f"; in brackets {LABELS.get(first, first)}'s time over ours" if first else ""
    text = [
        f"`{rows[0]['op']}` on {result['gpu']} (driver {result['driver']}, JAX {result['jax']}, {result['date']}), "
        f"kernel time in us{ratio}:",
        "",
        "| N x K | " + " | ".join(f"M={m}" for m in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    text += [f"| {n} x {k} | " + " | ".join(cells.get((m, n, k), "") for m in columns) + " |" for n, k in lines]
    text += ["", *summary(rows, peers, max(columns))]
    return "\n".join(text)


def cell(row: results.Row, peer: str | None) -> str:
    ratio = f" ({row['peer_us'][peer] / row['us']:.2f}x)" if peer in row["peer_us"] else ""
    return f"{row['us']:.1f}{ratio}"


def summary(rows: list[results.Row], peers: list[str], largest: int) -> list[str]:
    """For each peer, the geometric mean and the least ratio over all cases, and the mean at the largest M."""
    text = ["| peer's time over ours | geometric mean | least | cases | " + f"geometric mean, M={largest} |"]
    text.append("|---" * 5 + "|")
    for peer in peers:
        found = results.ratios(rows, peer)
        large = results.ratios([row for row in rows if row["case"]["m"] == largest], peer)
        mean = f"{results.geomean(large):.2f}x" if large else ""
        text.append(
            f"| {LABELS.get(peer, peer)} | {results.geomean(found):.2f}x | {min(found):.2f}x | {len(found)} | {mean} |"
        )
    return text if peers else []


def section() -> str:
    """What stands between the markers."""
    tables = [table(json.loads(path.read_text())) for path in committed()]
    tables += [listing(json.loads(path.read_text())) for suite in LISTED for path in committed(suite)]
    return "\n\n".join(tables) if tables else "No results are committed yet."


def replaced(readme: str) -> str:
    """README with its section renewed. ValueError without markers."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must hold {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{section()}\n{END}{tail}"


def main(check: bool = False) -> int:
    path = ROOT / "README.md"
    old = path.read_text()
    new = replaced(old)
    if new == old:
        return 0
    if check:
        warn("README.md differs from benchmarks/results: run python -m benchmarks render")
        return 1
    path.write_text(new)
    return 0
