"""The suites of kernel timings. A new one is a file like dense.py, rows in tests/cases.py and a line here."""

from __future__ import annotations

from benchmarks import (
    bf16,
    cast,
    dense,
    dgrad,
    fp8_fp4,
    k_grouped,
    linear,
    m_grouped,
    m_grouped_fp8_fp4,
    moe_mlp,
    ragged_dot,
    wgrad,
)
from benchmarks.suite import Suite

SUITES: dict[str, Suite] = {
    "dense": dense.SUITE,
    "dgrad": dgrad.SUITE,
    "wgrad": wgrad.SUITE,
    "linear": linear.SUITE,
    "bf16": bf16.SUITE,
    "cast": cast.SUITE,
    "fp8_fp4": fp8_fp4.SUITE,
    "ragged_dot": ragged_dot.SUITE,
    "moe_mlp": moe_mlp.SUITE,
    **m_grouped.SUITES,
    "fp8_fp4_masked": m_grouped_fp8_fp4.SUITE,
    "k_grouped": k_grouped.SUITE,
}
