"""`python -m jax_deepgemm [--json]`: demo and doctor. Exit status 1, with the reason, if a result is wrong."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any


def families(operations: Mapping[str, str]) -> dict[str, str]:
    """Operations that differ in layout alone and run alike as one: `bf16_gemm_{nt,nn,tn,tt}`."""
    layouts: dict[tuple[str, str, str], list[str]] = {}
    for name, how in operations.items():
        start, gemm, rest = name.partition("_gemm_")
        layouts.setdefault((start + gemm, rest[2:], how), []).append(rest[:2])
    spelled = {key: found[0] if len(found) == 1 else f"{{{','.join(found)}}}" for key, found in layouts.items()}
    return {f"{start}{layout}{end}": how for (start, end, how), layout in spelled.items()}


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    facts = {name: version or "not found" for name, version in report["versions"].items()}
    facts["jax_deepgemm"] = report["versions"]["jax_deepgemm"] or "not installed, run from its sources"
    target = report["target"]
    described = f"{target['arch']}, {target['num_sms']} SMs" if target else "none"
    facts |= {
        "devices": ", ".join(report["devices"]),
        "target": f"{described}: {report['target_reason']}",
        "NVRTC": report["nvrtc"] or "not found: pip install 'jax_deepgemm[cuda13]'",
        "cache folder": report["cache_folder"] or "off",
    }
    for name, value in facts.items():
        yield f"{name:<18} {value}"
    yield ""
    operations = families(report["operations"])
    width = max(map(len, operations))
    yield f"{'operation':<{width}} runs as"
    for name, how in operations.items():
        yield f"{name:<{width}} {how}"
    yield ""
    yield "BF16 in, quantised to FP8 by (1,128) and (128,128), jax.jit(fp8_gemm_nt), BF16 out"
    yield f"{'M':>6} {'N':>6} {'K':>6} {'error':>9} {'from BF16':>10} {'us':>10} {'XLA us':>10} {'XLA/us':>7}"
    for row in report["main_job"]:
        yield (
            f"{row['m']:>6} {row['n']:>6} {row['k']:>6} {row['error']:>9.1e} {row['quantisation_error']:>10.1e} "
            f"{row['us']:>10.1f} {row['xla_us']:>10.1f} {row['xla_us'] / row['us']:>6.2f}x"
        )
    yield "error: ||d - ref|| / ||ref||, ref in float64 from the FP8 operands; from BF16: from the input before it was"
    yield "quantised. us: wall time per call, several in flight; XLA: the same operands dequantised to BF16, then dot."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jax_deepgemm", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(arguments)

    from jax_deepgemm import doctor  # after the arguments: JAX takes seconds to start

    report = doctor.examine()
    print(json.dumps(report, indent=1) if args.json else "\n".join(lines(report)))
    for fault in report["faults"]:
        print(f"FAILED {fault}", file=sys.stderr)
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
