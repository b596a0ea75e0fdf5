"""Tile configurations of the m-grouped GEMM with FP4 weights on Hopper, by the dense kernels' models.

As in `sm90_m_grouped`, a candidate is priced for some numbers of rows about the mean.
"""

from __future__ import annotations

import functools

from jax_deepgemm.heuristics import sm90_fp4
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig, Scales
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.sm90_m_grouped import about, width_of

MOST_COLUMNS = {64: 128, 128: 64, 192: 64, 256: 32}  # of swapped tiles, by rows: beyond, kernels spill
MOST_SPLIT_COLUMNS = 48  # of those of 128 rows
FEW_WEIGHTS = 45_000  # rows of all groups, up to which narrow tiles of 64 rows fill the processors best ...
LONG_K = 4096  # ... with three groups of K from here on, two below


@functools.lru_cache(maxsize=4096)
def fp8_fp4_gemm(
    scales: Scales,
    rows: int,
    expected: bool,
    groups: int,
    n: int,
    k: int,
    out_bytes: int,
    num_sms: int,
    smem_bytes: int,
) -> Fp4GemmConfig | Fp4SwappedConfig:
    """The configuration for `groups` groups of about `rows` rows; whether the caller has said so."""
    return ranked(scales, rows, expected, groups, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(
    scales: Scales,
    rows: int,
    expected: bool,
    groups: int,
    n: int,
    k: int,
    out_bytes: int,
    num_sms: int,
    smem_bytes: int,
) -> list[Fp4GemmConfig | Fp4SwappedConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    sizes = about(rows, expected)
    found = dict.fromkeys(c for m in sizes for c in sm90_fp4.candidates(m, groups * n, k, scales, num_sms))

    def price(c: Fp4GemmConfig | Fp4SwappedConfig) -> float:
        width = width_of(c, groups, n)
        return sum(sm90_fp4.estimate_us(c, m, width, k, scales, out_bytes, num_sms) for m in sizes)

    best = _measured(rows, expected, groups * n, k)
    if best is not None:
        found.setdefault(best)
    fitting = (c for c in found if sm90_fp4.fits(c, scales, out_bytes, smem_bytes) and not _spills(c))
    return sorted(fitting, key=lambda c: (c != best, price(c)))


def _measured(rows: int, expected: bool, width: int, k: int) -> Fp4SwappedConfig | None:
    """What was fastest on an H100 for so many rows and `width` rows of all weights, where the model does not see it."""
    if expected and 16 < rows <= 24 and width <= FEW_WEIGHTS:
        return Fp4SwappedConfig(64, 32, k_groups=3 if k >= LONG_K else 2, scale_warps=3)
    return None


def _spills(c: Fp4GemmConfig | Fp4SwappedConfig) -> bool:
    if not isinstance(c, Fp4SwappedConfig):
        return False
    return c.columns > MOST_COLUMNS[c.rows] or (c.rows == 128 and c.split_k > 1 and c.columns > MOST_SPLIT_COLUMNS)
