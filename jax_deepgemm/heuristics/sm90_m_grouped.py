"""Tile configurations of the m-grouped GEMM kernels on Hopper, by the dense kernels' models.

Groups of r rows, each with weights of N rows, cost what a dense product of r rows with all the weights does. How many
rows each has is known to the device alone, so a candidate is priced for some numbers of rows about the mean: closer to
it where the caller has said what to expect.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from jax_deepgemm.heuristics import sm90, sm90_bf16
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, ceil_div

Tile = TypeVar("Tile", bound=GemmConfig)

EXPECTED = (0.7, 0.85, 1.0, 1.15, 1.3)  # of the mean
UNKNOWN = (0.3, 0.6, 0.9, 1.2, 2.0)
STEP = 8  # columns of wgmma
MOST_AHEAD_COLUMNS = 128  # wider runs of blocks spill
# Rows to expect of groups, within 30 % of it, of which all but a few take one tile of so many.
ONE_TILE = {128: 100, 192: 150, 256: 200}
SEVERAL_TILES = 416  # rows to expect, beyond which BF16 tiles of 192 x 192 are better
TILE_OF_256 = 1.38  # what a tile of 256 x 128 takes of the time of one of 128 x 192
FEW_ROWS = 48  # on average, of groups of any size, beyond which too many would need a second small or swapped tile
SOME_ROWS = 80  # the same, beyond which tiles of 192 rows are better than tiles of 128
MANY_ROWS = 1800  # of a group, beyond which what a tile of 256 has beyond them is little
LEAST_N = 1024  # of a group's columns, for what was measured in BF16 and with tiles of 192 columns
PAIRED_K = 1280  # from which on the two column tiles of a pair gain by sharing A what they lose by waiting
# Of a group, from which on tiles are handed over to a warp that stores: of fewer, many must be stored one by one.
HANDED_OVER_ROWS = {"fp8": 512, "bf16": 2048}


@functools.lru_cache(maxsize=4096)
def fp8_gemm(
    rows: int, expected: bool, groups: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int
) -> GemmConfig:
    """The configuration for `groups` groups of about `rows` rows; whether the caller has said so."""
    return ranked(rows, expected, groups, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(
    rows: int, expected: bool, groups: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int
) -> list[GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    sizes = about(rows, EXPECTED if expected else UNKNOWN)
    found = [c for c in _candidates(rows, sizes, groups * n, k, num_sms) if c.rows < 256 or out_bytes == 2]  # no spills
    best = _measured(rows, expected, groups, n, k, num_sms, wide=out_bytes > 2)
    if best is not None and max(best.stage_blocks, best.ahead) * BLOCK_K <= k and best not in found:
        found.append(best)
    fitting = _whole_groups([c for c in found if c.stages(out_bytes, smem_bytes) >= 3], rows, expected)

    def price(c: GemmConfig) -> float:
        return sum(sm90.estimate_us(c, m, width_of(c, groups, n), k, out_bytes, num_sms) for m in sizes)

    return sorted(fitting, key=lambda c: (c != best, price(c), -c.stage_blocks))


def _measured(rows: int, expected: bool, groups: int, n: int, k: int, num_sms: int, wide: bool) -> GemmConfig | None:
    """What was fastest on an H200, of 6 rows and fewer on an H100, where the model does not see it.

    wide: the result is of float32, for which tiles of 256 rows spill.
    """
    columns = ceil_div(n, 128)
    paired = 2 if num_sms > 1 and k >= PAIRED_K and (columns % 2 == 0 or columns >= 8) else 1
    if rows > MANY_ROWS and not wide:
        return GemmConfig(256, 128, cluster_columns=paired)
    if expected:
        if ONE_TILE[192] < rows <= ONE_TILE[256] and not wide:
            whole, low = GemmConfig(256, 128, cluster_columns=paired), GemmConfig(128, 192)
            rounds = [_rounds(c, rows, groups, n, num_sms) for c in (whole, low)]
            return low if n >= LEAST_N and rounds[1] < rounds[0] * TILE_OF_256 else whole
        if rows > ONE_TILE[128]:
            return GemmConfig(192, 128)
        return GemmConfig(64, 32, swap=True, stage_blocks=4) if 16 < rows <= 24 else None
    if rows > SOME_ROWS:
        return GemmConfig(192, 128, cluster_columns=paired)
    if rows > FEW_ROWS:
        return GemmConfig(128, 192) if n >= LEAST_N else None
    if rows > 6:
        return GemmConfig(64, 128, ahead=2)
    return GemmConfig(128, 16, swap=True, stage_blocks=2) if rows > 2 else None


def _rounds(c: GemmConfig, rows: int, groups: int, n: int, num_sms: int) -> int:
    """Of the grid, for the tiles to expect of groups of about `rows` rows."""
    of_groups = groups * sum(ceil_div(m, c.rows) for m in about(rows, EXPECTED))
    return ceil_div(of_groups * ceil_div(n, c.columns), len(EXPECTED) * num_sms)


def _whole_groups(some: list[Tile], rows: int, expected: bool) -> list[Tile]:
    """Those of which most groups are one tile, if any: else weights are read again, which the model takes for cheap."""
    if expected or rows <= FEW_ROWS:
        return some
    return [c for c in some if not c.swap and c.rows >= 128] or some


@functools.lru_cache(maxsize=4096)
def bf16_gemm(
    layout: str, rows: int, expected: bool, groups: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int
) -> Bf16GemmConfig:
    """As `fp8_gemm`, of operands in `layout`, nt or nn."""
    return ranked_bf16(layout, rows, expected, groups, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked_bf16(
    layout: str, rows: int, expected: bool, groups: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int
) -> list[Bf16GemmConfig]:
    """All candidates for that problem, the cheapest first; never none."""
    sizes = about(rows, EXPECTED if expected else UNKNOWN)
    found: dict[Bf16GemmConfig, None] = {}
    for m in sizes:
        for c in sm90_bf16.candidates(layout, m, groups * n, k, num_sms):
            if c.swap or c.stage_blocks == 1:  # ptxas would serialise the others' products
                found[dataclasses.replace(c, rows_loaded=0)] = None
    best = _measured_bf16(layout, rows, expected, n)
    if best is not None:
        found[best] = None
    fitting = [c for c in found if c.stages(out_bytes, smem_bytes) >= sm90_bf16.least_stages(c)]
    fitting = _whole_groups(fitting, rows, expected)

    def price(c: Bf16GemmConfig) -> float:
        width = width_of(c, groups, n)
        return sum(sm90_bf16.estimate_us(c, m, width, k, out_bytes, num_sms, smem_bytes) for m in sizes)

    return sorted(fitting, key=lambda c: (c != best, price(c), -c.stage_blocks))


def _measured_bf16(layout: str, rows: int, expected: bool, n: int) -> Bf16GemmConfig | None:
    """As `_measured`, all on an H200."""
    eager = layout[1] == "t"
    if n < LEAST_N:
        return None
    if expected:
        if rows > SEVERAL_TILES:
            return Bf16GemmConfig(192, 192, layout=layout, eager=eager)
        if ONE_TILE[128] < rows <= ONE_TILE[192]:
            return Bf16GemmConfig(192, 128, layout=layout, eager=eager)
        if 16 < rows <= 24:
            return Bf16GemmConfig(64, 32, swap=True, stage_blocks=2, layout=layout)
        return Bf16GemmConfig(128, 128, layout=layout) if FEW_ROWS < rows <= ONE_TILE[128] else None
    if rows > ONE_TILE[128]:
        return None
    if rows > FEW_ROWS:
        return Bf16GemmConfig(128, 128, layout=layout)
    if rows > 6:
        return Bf16GemmConfig(64, 128, layout=layout)
    return Bf16GemmConfig(128, 8, swap=True, layout=layout) if rows > 2 else None


def about(rows: int, shares: Sequence[float]) -> list[int]:
    """Numbers of rows that a group may have: these shares of the mean."""
    return [max(1, round(rows * share)) for share in shares]


def width_of(c: GemmConfig, groups: int, n: int) -> int:
    """Columns of all groups' tiles."""
    return groups * ceil_div(n, c.tile_n) * c.tile_n


def _candidates(rows: int, sizes: Sequence[int], n: int, k: int, num_sms: int) -> Iterator[GemmConfig]:
    """Those of the dense kernels that need no clusters of several tiles, and swapped ones as wide as a group is."""
    found: dict[GemmConfig, None] = {}

    def add(some: Iterable[GemmConfig]) -> None:
        found.update(dict.fromkeys(some))

    for m in sizes:
        add(sm90.candidates(m, n, k, num_sms))
    if rows <= 128:
        for columns in {min(128, ceil_div(m, STEP) * STEP) for m in sizes}:
            for height in (64, 128):
                add(sm90.variants(height, columns, True, rows, n, ceil_div(k, BLOCK_K), num_sms))
    yield from (c for c in found if c.multicast == 1 and (not c.ahead or c.columns <= MOST_AHEAD_COLUMNS))
