"""Tile configurations of the Hopper GEMM of few tokens with FP4 weights: what could pay, and a model of its time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jax_deepgemm.heuristics.fp4_config import Scales
from jax_deepgemm.heuristics.fp4_swapped_config import UNIT_BLOCKS, Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import BLOCK_K
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

MAX_TOKENS = 128  # beyond which weights had better be decoded once for many of them
COLUMNS = (8, 16, 32, 48, 64, 96, 128)

CLOCK_MHZ = 1700
L2_BYTES_PER_US = 7.48e6
LAUNCH_US = 3.46
TILE_US = 1.1  # the sums' way to memory
SPLIT_US = 1.48


class Costs(NamedTuple):
    """In cycles of a unit: for any tile, and for each of its tokens."""

    latency: tuple[float, float]  # from its arrival to its sums, for a warpgroup alone
    issue: tuple[float, float]  # by which units of 64 rows follow each other, whichever warpgroup takes them
    scales: tuple[float, float]  # of a warp that writes them
    copies: tuple[float, float]  # of the warp that copies tokens by fours of bytes
    bytes_per_us: float  # from memory


# Fitted to 700 measured (problem, configuration) pairs on an H200: 24 dense problems, 38 of groups.
IN_ORDER = Costs((1024, 12.2), (488, 4.9), (1194, 7.8), (0, 0), 3.81e6)
REORDERED = Costs((1349, 0), (420, 7.7), (500, 0), (56, 39), 3.55e6)

# Rows, groups of K and warps of scales, of which some cost no registers: these are handed out to four warps at once.
SHAPES = ((64, 4, 3), (64, 3, 3), (64, 2, 3), (128, 2, 1), (128, 1, 2), (192, 1, 1), (192, 1, 2), (256, 1, 1))


def candidates(m: int, n: int, k: int, num_sms: int) -> Iterator[Fp4SwappedConfig]:
    """The configurations worth pricing for a problem."""
    units = ceil_div(k, UNIT_BLOCKS * BLOCK_K)
    columns = next((c for c in COLUMNS if c >= m), 0)
    for rows, k_groups, scale_warps in SHAPES:
        for width in sorted({columns, min(columns, 64)} - {0}):
            for split in range(1, min(8, num_sms, units) + 1):
                if split > 1 and ceil_div(n, rows) * ceil_div(m, width) > resident_clusters(split, num_sms):
                    continue
                try:
                    yield Fp4SwappedConfig(rows, width, k_groups, split_k=split, scale_warps=scale_warps)
                except ValueError:  # more registers than there are
                    continue


def estimate_us(
    c: Fp4SwappedConfig,
    tokens: Sequence[int],
    n: int,
    k: int,
    scales: Scales,
    out_bytes: int,
    num_sms: int,
    groups: int = 1,
) -> float:
    """The model's time in microseconds, of `groups` groups of n rows of weights, each with one of these `tokens`."""
    cost = REORDERED if c.groups_by_lanes(scales) else IN_ORDER
    across = [ceil_div(m, c.columns) for m in tokens]  # tiles of a group's tokens
    row_tiles, resident = ceil_div(n, c.rows), resident_clusters(c.split_k, num_sms)
    tiles = groups * row_tiles * statistics.mean(across)
    spread = math.sqrt(groups) * row_tiles * statistics.pstdev(across)
    waves = statistics.mean(max(1, math.ceil((tiles + by * spread) / resident)) for by in (-1, 0, 1))
    units = ceil_div(ceil_div(k, UNIT_BLOCKS * BLOCK_K), c.split_k)

    def cycles(of: tuple[float, float], tokens: float = c.columns) -> float:
        return of[0] + of[1] * tokens

    busiest = max(
        cycles(cost.latency) * ceil_div(units, c.k_groups),
        cycles(cost.issue) * units * c.rows / 64,
        cycles(cost.scales) * ceil_div(units, c.scale_warps),
        cycles(cost.copies, statistics.mean(min(m, c.columns) for m in tokens)) * units,
    )
    work = waves * (busiest / CLOCK_MHZ + TILE_US + SPLIT_US * (c.split_k > 1))
    weights = groups * n * (k // 2 + ceil_div(k, BLOCK_K) * scales.row_bytes)
    landed = weights * statistics.mean(across) + tiles * c.columns * k
    memory = (weights + groups * statistics.mean(tokens) * (k + n * out_bytes)) / cost.bytes_per_us
    return LAUNCH_US + (work**4 + max(memory, landed / L2_BYTES_PER_US) ** 4) ** 0.25
