"""Tile configurations of the FP8 GEMM with a scale for each row of both operands, on Hopper.

As in `sm90.py` every candidate is priced by a model and the cheapest is taken. The constants were fitted to some 250
measured (shape, configuration) pairs on an H200, those of tiles of 64 rows and of splits to earlier ones on an H100.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import BLOCK_K
from jax_deepgemm.heuristics.sm90 import ceil_div, resident_clusters

# A block of K, in microseconds: the same for any tile, and for each column. By rows of the tile; in runs, one by one,
# as with 1D2D; and from the last product of a tile to the first of the next, for 128 x 128.
RUN_US = {64: (0.2, 0.0011), 128: (0.138, 0.003)}
ONE_US = {64: (0.17, 0.0018), 128: (0.2635, 0.0021), 192: (0.1767, 0.00431), 256: (0.2445, 0.0054)}
ALONE_US = (0.25, 0.0035)
WIDE_US = (0.3293, 0.00223)  # alone, beyond the columns that leave registers for the others
BORDER_US = {"run": 2.5, "one": 2.0, "wide": 2.2, "waves": 3.25, "three": 2.75, "alone": 3.6, "alone wide": 1.97}
SPLIT_US = 4.4  # the partial tiles' exchange
SPLIT_STORE_US = 1.2  # the same, for a tile of 128 x 128
LAUNCH_US = 3.2
DRAM_BYTES_PER_US = 3.73e6


@functools.lru_cache(maxsize=4096)
def fp8_gemm(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> GemmConfig1d1d:
    """The configuration for D[m, n] = A[m, k] B[n, k]^T on `num_sms` processors with `smem_bytes` a block."""
    return ranked(m, n, k, out_bytes, num_sms, smem_bytes)[0]


def ranked(m: int, n: int, k: int, out_bytes: int, num_sms: int, smem_bytes: int) -> list[GemmConfig1d1d]:
    """All candidates for that problem, the cheapest first; never none."""
    fitting = (c for c in candidates(m, n, k, num_sms) if c.stages(out_bytes, smem_bytes) >= 3)
    return sorted(fitting, key=lambda c: estimate_us(c, m, n, k, out_bytes, num_sms))


def candidates(m: int, n: int, k: int, num_sms: int) -> Iterator[GemmConfig1d1d]:
    """The configurations worth pricing for a problem; never none."""
    blocks = ceil_div(k, BLOCK_K)
    for rows in (64, 128):
        if rows > 64 and m <= rows // 2:
            continue
        for columns in (16, 32, 64, 96, 128, 160, 192):
            if columns in (128, 160):
                yield GemmConfig1d1d(rows, columns, ahead=1)
            if columns == 160:
                continue
            yield GemmConfig1d1d(rows, columns, ahead=4 if columns == 128 else 2 if columns < 128 else 0)
            tiles = ceil_div(m, rows) * ceil_div(n, columns)
            for split in range(2, 9):
                if blocks >= 2 * split and split <= num_sms and tiles <= resident_clusters(split, num_sms):
                    yield GemmConfig1d1d(rows, columns, split_k=split)
    if m > 128:
        yield GemmConfig1d1d(192, 96, ahead=1)
        yield GemmConfig1d1d(256, 128, ahead=1)


def estimate_us(c: GemmConfig1d1d, m: int, n: int, k: int, out_bytes: int, num_sms: int) -> float:
    """The model's time in microseconds, with a C to add."""
    tiles = ceil_div(m, c.rows) * ceil_div(n, c.columns)
    waves = ceil_div(tiles, resident_clusters(c.split_k, num_sms))
    blocks = ceil_div(ceil_div(k, BLOCK_K), c.split_k)
    area = c.rows * c.columns / (128 * 128)
    if c.ahead:
        once, column = (ONE_US if c.ahead == 1 else RUN_US)[c.rows]
        if c.rows > 128:
            kind = "waves" if c.waves > 1 else "three"
        else:
            kind = "run" if c.ahead > 1 else "wide" if c.columns > 128 else "one"
    else:
        wide = c.rows > 64 and c.columns > 128
        once, column, kind = (*WIDE_US, "alone wide") if wide else (*ALONE_US, "alone")
    border = BORDER_US[kind] * area
    if c.split_k > 1:
        border += SPLIT_US + SPLIT_STORE_US * area
    work = waves * (blocks * (once + column * c.columns) + border)
    memory = ((m + n) * k + 2 * m * n * out_bytes) / DRAM_BYTES_PER_US
    return LAUNCH_US + (work**6 + memory**6) ** (1 / 6)
