"""Tile configurations of every kind, whether or not the heuristics would choose them, for one awkward problem.

The problem ends inside tiles, scale blocks and TMA boxes in every direction. Its 9 blocks of K are no multiple of 2
or 4, so the last stage of several blocks is short. Its numbers of tiles are mostly odd, so some CTAs of clusters have
none.
"""

from __future__ import annotations

from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.gemm_config import GemmConfig

M, N, K = 300, 616, 1040

PLAIN = (
    GemmConfig(64, 16),
    GemmConfig(64, 48, stage_blocks=4),
    GemmConfig(64, 112, stage_blocks=2),
    GemmConfig(64, 192),
    GemmConfig(128, 16, stage_blocks=2),
    GemmConfig(128, 48, stage_blocks=4),
    GemmConfig(128, 112, stage_blocks=2),
    GemmConfig(128, 128, group=1),
    GemmConfig(128, 144),
    GemmConfig(128, 192, group=2),
    GemmConfig(192, 16, stage_blocks=2),
    GemmConfig(192, 128),
    GemmConfig(256, 16),
    GemmConfig(256, 96, stage_blocks=2),
    GemmConfig(256, 112),
    GemmConfig(256, 128),
)
AHEAD = (
    GemmConfig(64, 64, ahead=2),
    GemmConfig(128, 112, ahead=4),
    GemmConfig(128, 128, ahead=3, cluster_columns=2),
    GemmConfig(128, 144, ahead=2, cluster_rows=2),
)
SPLIT = (
    GemmConfig(64, 64, split_k=2),
    GemmConfig(64, 48, split_k=3, stage_blocks=2),
    GemmConfig(64, 192, split_k=8),
    GemmConfig(128, 112, split_k=8),
    GemmConfig(128, 144, split_k=2),
    GemmConfig(128, 16, split_k=2, stage_blocks=4),
    GemmConfig(192, 64, split_k=2),
    GemmConfig(256, 48, split_k=3),
)
MULTICAST = (
    GemmConfig(64, 64, cluster_rows=2),
    GemmConfig(64, 48, cluster_columns=2, stage_blocks=4),
    GemmConfig(128, 112, cluster_rows=2),
    GemmConfig(128, 144, cluster_columns=2),
    GemmConfig(128, 64, cluster_rows=2, stage_blocks=4),
    GemmConfig(128, 96, cluster_rows=4),
    GemmConfig(128, 192, cluster_columns=4),
    GemmConfig(192, 112, cluster_rows=2),
    GemmConfig(256, 128, cluster_rows=2),
    GemmConfig(256, 112, cluster_columns=2),
)
SWAP = (
    GemmConfig(64, 8, swap=True),
    GemmConfig(64, 24, swap=True, stage_blocks=4),
    GemmConfig(64, 128, swap=True),
    GemmConfig(128, 8, swap=True, stage_blocks=4),
    GemmConfig(128, 24, swap=True, stage_blocks=2),
    GemmConfig(128, 64, swap=True),
    GemmConfig(128, 128, swap=True),
    GemmConfig(192, 24, swap=True),
    GemmConfig(256, 40, swap=True),
)
SWAP_IN_CLUSTERS = (
    GemmConfig(64, 8, swap=True, split_k=8),
    GemmConfig(128, 24, swap=True, split_k=3),
    GemmConfig(128, 64, swap=True, split_k=2, stage_blocks=2),
    GemmConfig(256, 40, swap=True, split_k=2),
    GemmConfig(64, 16, swap=True, cluster_rows=2),
    GemmConfig(128, 32, swap=True, cluster_rows=4),
    GemmConfig(128, 64, swap=True, cluster_rows=2, stage_blocks=2),
    GemmConfig(64, 24, swap=True, cluster_columns=2),
    GemmConfig(128, 48, swap=True, cluster_columns=4, stage_blocks=2),
)
ALL = (*PLAIN, *AHEAD, *SPLIT, *MULTICAST, *SWAP, *SWAP_IN_CLUSTERS)

# With a scale for each row of both operands.
BY_ROWS = (
    GemmConfig1d1d(64, 16),
    GemmConfig1d1d(64, 48, ahead=2),
    GemmConfig1d1d(64, 96, stage_blocks=2),
    GemmConfig1d1d(64, 192),
    GemmConfig1d1d(128, 32, ahead=2),
    GemmConfig1d1d(128, 48, stage_blocks=4),
    GemmConfig1d1d(128, 112, ahead=2),
    GemmConfig1d1d(128, 128),
    GemmConfig1d1d(128, 128, ahead=2, group=1),
    GemmConfig1d1d(128, 160),
    GemmConfig1d1d(128, 192),
    GemmConfig1d1d(64, 112, ahead=1),
    GemmConfig1d1d(128, 128, ahead=1),
    GemmConfig1d1d(128, 160, ahead=1),
    GemmConfig1d1d(128, 128, ahead=4),
    GemmConfig1d1d(256, 128, ahead=1),
    GemmConfig1d1d(192, 96, ahead=1),
    GemmConfig1d1d(256, 64),
    GemmConfig1d1d(256, 128),
    GemmConfig1d1d(64, 64, split_k=2),
    GemmConfig1d1d(128, 144, split_k=3),
    GemmConfig1d1d(128, 128, ahead=2, cluster_rows=2),
    GemmConfig1d1d(128, 96, ahead=2, cluster_columns=2),
)

# One of each kind, for tests that need not see all.
FEW = (
    GemmConfig(192, 128),
    GemmConfig(128, 128, ahead=2),
    GemmConfig(128, 112, stage_blocks=2),
    GemmConfig(256, 112, cluster_columns=2),
    GemmConfig(128, 112, cluster_rows=2),
    GemmConfig(128, 144, split_k=2),
    GemmConfig(128, 24, swap=True, stage_blocks=2),
    GemmConfig(64, 8, swap=True, split_k=8),
    GemmConfig(128, 32, swap=True, cluster_rows=4),
)


def name(config: GemmConfig | None) -> str:
    """A pytest id."""
    if config is None:
        return "chosen"
    kinds = {"split_k": "split", "cluster_rows": "cr", "cluster_columns": "cc", "stage_blocks": "sb", "ahead": "ahead"}
    extra = [f"{short}{value}" for field, short in kinds.items() if (value := getattr(config, field, 1)) > 1]
    return "-".join((f"{config.rows}x{config.columns}", *["swap"][: config.swap], *extra))
