"""Tile configurations of the m-grouped GEMM with FP4 weights on Hopper, by the dense kernels' models.

As in `sm90_m_grouped`, a candidate is priced for some numbers of rows about the mean. Of few rows, those of all groups
together: how many tiles there will be, and so how many rounds of the grid.
"""

from __future__ import annotations

import functools
import statistics

from jax_deepgemm.heuristics import sm90_fp4, sm90_fp4_swapped
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig, Scales
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.sm90_m_grouped import EXPECTED, about, width_of

# Of the mean, where nothing is known: quantiles of shares drawn from a gamma distribution of shape 4.
UNKNOWN = (0.3, 0.55, 0.73, 0.92, 1.13, 1.4, 2.1)
MOST_COLUMNS = {64: 128, 128: 64, 192: 64, 256: 32}  # of swapped tiles, by rows: beyond, kernels spill
MOST_SPLIT_COLUMNS = 48  # of those of 128 rows


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
    sizes = about(rows, EXPECTED if expected else UNKNOWN)
    found = dict.fromkeys(c for m in sizes for c in sm90_fp4.candidates(m, groups * n, k, scales, num_sms))

    def price(c: Fp4GemmConfig | Fp4SwappedConfig) -> float:
        if isinstance(c, Fp4SwappedConfig):
            return sm90_fp4_swapped.estimate_us(c, sizes, n, k, scales, out_bytes, num_sms, groups)
        width = width_of(c, groups, n)
        return statistics.mean(sm90_fp4.estimate_us(c, m, width, k, scales, out_bytes, num_sms) for m in sizes)

    fitting = (c for c in found if sm90_fp4.fits(c, scales, out_bytes, smem_bytes) and _is_kernel(c))
    return sorted(fitting, key=price)


def _is_kernel(c: Fp4GemmConfig | Fp4SwappedConfig) -> bool:
    """Whether there is one, which does not spill."""
    if isinstance(c, Fp4GemmConfig):
        return c.multicast == 1
    return c.columns <= MOST_COLUMNS[c.rows] and (c.rows != 128 or c.split_k == 1 or c.columns <= MOST_SPLIT_COLUMNS)
