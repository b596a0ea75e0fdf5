"""A tile configuration of the Hopper GEMM of few tokens with FP4 weights, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from jax_deepgemm.heuristics.fp4_config import FLOAT_BY_32, UE8M0_BY_32, Scales
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, align

UNIT_BLOCKS = 2  # of K in a stage: 128 bytes of a row of weights
MAX_STAGES = 32
MAX_WARPGROUPS = 4
ROWS_A_TOKEN = 4  # in a tile, from where on decoding saves more than copying tokens by fours of bytes takes


class SwappedLayout(NamedTuple):
    """How a configuration fills shared memory."""

    stages: int
    shared_memory: int  # bytes


@dataclasses.dataclass(frozen=True)
class Fp4SwappedConfig:
    """Weights along wgmma's rows, tokens along its columns.

    A warpgroup multiplies 64 rows by every `k_groups`-th unit of K.
    """

    rows: int  # of weights in a tile: a multiple of 64
    columns: int  # tokens in a tile: a multiple of 8
    k_groups: int = 1
    split_k: int = 1  # CTAs of a cluster that split K
    group: int = 8  # row tiles walked together, for L2
    scale_warps: int = 1  # that write the scales of the same 64 rows in turns

    def __post_init__(self) -> None:
        for name in ("split_k", "k_groups", "group", "scale_warps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.rows % 64 or not 0 < self.warpgroups <= MAX_WARPGROUPS:
            raise ValueError(f"`rows` must be a multiple of 64, and 64 of them by `k_groups` at most 4, got {self}")
        if self.columns % 8 or not 0 < self.columns <= self.most_columns:
            raise ValueError(f"`columns` must be a multiple of 8 up to {self.most_columns}, got {self}")
        if self.split_k > 8:
            raise ValueError(f"`split_k` must be at most 8, got {self.split_k}")

    @property
    def cluster(self) -> int:
        return self.split_k

    @property
    def tile_m(self) -> int:
        return self.columns

    @property
    def tile_n(self) -> int:
        return self.rows

    @property
    def warpgroups(self) -> int:
        return self.rows // 64 * self.k_groups

    @property
    def most_columns(self) -> int:
        """As registers allow."""
        if self.rows == 256:
            return 48 if self.split_k == 1 else 40
        return 64 if self.warpgroups > 2 else 128 if self.threads <= 384 else 96

    def groups_by_lanes(self, scales: Scales) -> bool:
        """Whether a lane decodes a K32 group of its own, which takes tokens whose bytes have changed places.

        Float scales by 32 have no table to fold into: all lanes of an instruction share a group.
        """
        return ROWS_A_TOKEN * self.columns <= self.rows and scales != FLOAT_BY_32

    @property
    def threads(self) -> int:
        """Of the warpgroups, of one warp that loads, and of those that write scales."""
        return 128 * self.warpgroups + 32 + self.rows // 2 * self.scale_warps

    def stages(self, out_bytes: int, smem_bytes: int) -> int:
        """For the scales that take most room."""
        return self.layout(smem_bytes, FLOAT_BY_32).stages

    def layout(self, smem_bytes: int, scales: Scales) -> SwappedLayout:
        """The layout in a block of `smem_bytes`: what the partial tiles leave is stages."""
        fold = {UE8M0_BY_32: 8, FLOAT_BY_32: 16}.get(scales, 4)
        ahead = (2 if scales == FLOAT_BY_32 else 4) * UNIT_BLOCKS * scales.row_bytes * self.scale_warps
        tiles = self.rows * BLOCK_K // 2 + self.columns * BLOCK_K
        scale_bytes = self.rows * fold + self.columns * 4 + align(self.rows // 64 * 4, 16)
        stage = UNIT_BLOCKS * (tiles + scale_bytes) + 16
        used = self.k_groups * self.columns * (self.rows + 4) * 4 + self.rows * ahead + 16
        stages = max(0, min(MAX_STAGES, (smem_bytes - used) // stage))
        # Who takes turns keeps to stages of its own, and so is never two rounds of a barrier ahead.
        stages -= stages % math.lcm(self.k_groups, self.scale_warps)
        return SwappedLayout(stages, used + stages * stage)
