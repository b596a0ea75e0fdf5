"""Results as Markdown: a table of all suites, the dense suite by shape, any suite case by case."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks import results
from benchmarks.suites import SUITES

Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class About:
    """What a suite measures, in words, and those of its groups of cases that have a line of their own."""

    text: str
    groups: tuple[str, ...] = ()


# In this order; a suite that is not here comes behind, told by its operations alone.
ABOUT = {
    "dense": About("`fp8_gemm_nt`, projections of DeepSeek-V3", ("all", "M<=128", "M=4096")),
    "dgrad": About("`fp8_gemm_nt`, the same of a backward pass, M = 4096"),
    "wgrad": About("`fp8_gemm_nt` with the recipe 1D1D, added to float32 gradients of weights"),
    "linear": About("`fp8_linear`, forward and back with all casts, beside the layer in BF16"),
    "bf16": About("`bf16_gemm_*`", ("M<=128", "M=1024", "M=4096")),
    "cast": About("`per_*_cast_to_*` of BF16"),
    "fp8_fp4": About("`fp8_fp4_gemm_nt`", ("M<=64", "M=4096")),
    "contiguous": About("`m_grouped_fp8_gemm_nt_contiguous`", ("equal groups", "random sizes")),
    "masked": About("`m_grouped_fp8_gemm_nt_masked`"),
    "fp8_fp4_masked": About("`m_grouped_fp8_fp4_gemm_nt_masked`, 20 rows a group on average"),
    "bf16_contiguous": About("`m_grouped_bf16_gemm_nt_contiguous`", ("equal groups", "random sizes")),
    "bf16_masked": About("`m_grouped_bf16_gemm_nt_masked`"),
    "k_grouped": About("`k_grouped_*_gemm_tn_contiguous`, added to float32", ("FP8", "BF16")),
    "ragged_dot": About("`ragged_dot`, in FP8 with quantisation inside", ("BF16", "FP8")),
    "moe_mlp": About("`moe_mlp` in FP8, the whole block"),
    "jit": About("compiling, and what the host spends on a launch"),
}
LABELS = {
    "deep_gemm": "DeepGEMM",
    "cublaslt": "cuBLASLt",
    "xla": "XLA",
    "fp8": "our FP8 GEMM",
    "grouped_gemms": "its two grouped GEMMs",
}
COLUMNS = ("deep_gemm", "cublaslt", "xla")  # of the summary; all other peers share one
NO_PEER, ABSENT = "-", "did not run"


def ordered(names: Sequence[str]) -> list[str]:
    return [*(name for name in ABOUT if name in names), *sorted(set(names) - set(ABOUT))]


def about(name: str, result: Result) -> str:
    return ABOUT[name].text if name in ABOUT else ", ".join(dict.fromkeys(f"`{row['op']}`" for row in result["rows"]))


def peers_of(name: str, rows: Sequence[results.Row]) -> list[str]:
    """Those that the suite has, whether they ran or not, and any other that a row has."""
    defined = [peer.name for peer in SUITES[name].peers] if name in SUITES else []
    return list(dict.fromkeys((*defined, *results.peer_names(rows))))


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    said = ["| " + " | ".join(line) + " |" for line in (head, *lines)]
    return "\n".join([said[0], "|---" * len(head) + "|", *said[1:]])


def summary(found: dict[str, Result]) -> str:
    """The suites of kernels, `found` by name: a line each, or one for each of the groups that `ABOUT` names."""
    lines = []
    for name in ordered([name for name in found if name in SUITES]):
        groups = dict(SUITES[name].groups)
        for group in (ABOUT[name].groups if name in ABOUT else ()) or (None,):
            rows = [row for row in found[name]["rows"] if group is None or groups[group](row)]
            if rows:
                label = f"[`{name}`](docs/benchmarks.md#{name})" + f", {group}" * (group is not None)
                lines.append([label, about(name, found[name]), str(len(rows)), share(rows), *ratios(name, rows)])
    return table(["suite", "what", "cases", "of the limit", *(LABELS[peer] for peer in COLUMNS), "others"], lines)


def share(rows: Sequence[results.Row]) -> str:
    shares = [row["limit_us"] / row["us"] for row in rows if row["limit_us"]]
    return f"{results.geomean(shares):.0%} ({min(shares):.0%})" if shares else "unknown"


def ratios(name: str, rows: Sequence[results.Row]) -> list[str]:
    """A cell for each of `COLUMNS`, and one of all other peers."""
    peers = peers_of(name, rows)
    cells = [ratio(rows, peer) if peer in peers else NO_PEER for peer in COLUMNS]
    others = [f"{LABELS.get(peer, peer)} {ratio(rows, peer)}" for peer in peers if peer not in COLUMNS]
    return [*cells, "; ".join(others) or NO_PEER]


def ratio(rows: Sequence[results.Row], peer: str) -> str:
    found = results.ratios(rows, peer)
    if not found:
        return ABSENT
    some = f", {len(found)} of {len(rows)}" if len(found) < len(rows) else ""
    return f"{results.geomean(found):.2f}x ({min(found):.2f}x){some}"


def shapes(result: Result) -> str:
    """A dense result: a line for each N x K, a column for each M."""
    rows = result["rows"]
    columns = sorted({row["case"]["m"] for row in rows})
    lines = list(dict.fromkeys((row["case"]["n"], row["case"]["k"]) for row in rows))
    cells = {tuple(row["case"].values()): cell(row) for row in rows}
    text = f"`{rows[0]['op']}`, kernel time in us; in brackets DeepGEMM's time over ours:\n\n"
    body = [[f"{n} x {k}", *(cells.get((m, n, k), "") for m in columns)] for n, k in lines]
    return text + table(["N x K", *(f"M={m}" for m in columns)], body)


def cell(row: results.Row) -> str:
    return f"{row['us']:.1f}" + "".join(f" ({found:.2f}x)" for found in results.ratios([row], "deep_gemm"))


def cases(name: str, result: Result) -> str:
    """A line for each case, and which peers did not run."""
    rows = result["rows"]
    peers = peers_of(name, rows)
    ran = results.peer_names(rows)
    shown = [peer for peer in peers if peer in ran]
    sizes = list(dict.fromkeys(size for row in rows for size in row["case"]))
    limits = any(row["limit_us"] for row in rows)
    head = ["operation", *sizes, "us", *["of the limit"] * limits, *(LABELS.get(peer, peer) for peer in shown)]
    lines = []
    for row in rows:
        limit = f"{row['limit_us'] / row['us']:.0%}" if row["limit_us"] else NO_PEER
        found = [f"{row['peer_us'][peer] / row['us']:.2f}x" if peer in row["peer_us"] else ABSENT for peer in shown]
        case = [str(row["case"].get(size, "")) for size in sizes]
        lines.append([f"`{row['op']}`", *case, f"{row['us']:.1f}", *[limit] * limits, *found])
    missing = [LABELS.get(peer, peer) for peer in peers if peer not in ran]
    note = f"\n\n{' and '.join(missing)} did not run." if missing else ""
    return table(head, lines) + note


def run_of(result: Result) -> str:
    """Where and when it was measured."""
    parts = [f"{result['gpu']}, driver {result['driver']}, JAX {result['jax']}, {result['date']}"]
    parts.append(f"commit {str(result['commit'])[:10]}" + " with changes" * bool(result["dirty"]))
    if result["peak_tflops"]:
        parts.append(f"peak {result['peak_tflops']:.0f} TFLOP/s")
    if result["copy_gbs"]:
        parts.append(f"copy {result['copy_gbs']:.0f} GB/s")
    return ", ".join(parts)
