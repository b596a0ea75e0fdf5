"""Tile configurations of the k-grouped GEMMs on Hopper: those of the dense kernels, of which some are left out."""

from __future__ import annotations

import dataclasses

from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig

MOST_GROUPS = 1024  # whose table has room beside two stages, and is soon sorted


@dataclasses.dataclass(frozen=True)
class KGroupedBf16Config(Bf16GemmConfig):
    """`Bf16GemmConfig` of operands whose M and N are contiguous, in tiles that each have a K of their own."""

    layout: str = "tn"

    STAGE_BARRIERS = 3  # the third: landed, but with rows that are to be cleared

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout != "tn":
            raise ValueError(f"`layout` must be 'tn', got {self}")
        check(self)


def check(config: GemmConfig) -> None:
    """Tiles differ in K, so no two of them share anything but their operands' cache lines."""
    if config.swap or config.cluster > 1 or config.stage_blocks > 1:
        raise ValueError(f"`swap` must be False, clusters of one CTA and stages of one block of K, got {config}")


def table_bytes(groups: int) -> int:
    """Of shared memory, for the groups' parts of K and their order: `KGroupTable` in cuda/common/k_group_walk.cuh."""
    return 8 + 8 * groups + 2 * (groups + groups % 2)
