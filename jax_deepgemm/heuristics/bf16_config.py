"""A tile configuration of the BF16 GEMM on Hopper."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jax_deepgemm.heuristics.gemm_config import GemmConfig, Store

BLOCK_K = 64  # of K in a block: 128 bytes
SLAB = 64  # elements of M or N in a slab of an operand whose K is not contiguous
LAYOUTS = ("nt", "nn", "tn", "tt")  # transposed or not, of A and of B


@dataclasses.dataclass(frozen=True)
class Bf16GemmConfig(GemmConfig):
    """`GemmConfig` of a kernel that keeps accumulators only: its tiles are larger, and there are no scales.

    `layout` is part of it, since tiles of an operand with contiguous M or N come in slabs of 64.
    """

    layout: str = "nt"
    rows_loaded: int = 0  # the rows of a tile to load where the matrix has no more; 0: all
    least_stages: int = 4  # that the store's staging must leave, if it can
    eager: bool = False  # give a stage back as soon as its own products are done, not the next one's under way

    MOST_COLUMNS: ClassVar[dict[int, int]] = {64: 256, 128: 256, 192: 192, 256: 176}
    MOST_AHEAD: ClassVar[int] = 0  # nothing is promoted

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        for mn, sharing in ((self.mn_rows, self.cluster_columns), (self.mn_columns, self.cluster_rows)):
            if mn and BLOCK_K % (8 * sharing):
                raise ValueError(f"CTAs that share slabs must be 1, 2, 4 or 8, each with a part of K, got {self}")
        if self.rows_loaded and (
            self.rows_loaded % 8 or not 0 < self.rows_loaded <= self.rows or self.multicast > 1 or self.mn_rows
        ):
            raise ValueError(f"`rows_loaded` must be a multiple of 8 up to `rows`, and K contiguous, got {self}")

    STAGE_BARRIERS = 2  # no scales

    @property
    def enough_stages(self) -> int:
        return self.least_stages

    @property
    def mn_rows(self) -> bool:
        """Whether M or N, not K, is contiguous in the operand along wgmma's rows."""
        return self.layout[1] == "n" if self.swap else self.layout[0] == "t"

    @property
    def mn_columns(self) -> bool:
        return self.layout[0] == "t" if self.swap else self.layout[1] == "n"

    def epilogue_bytes(self, out_bytes: int, smem_bytes: int) -> int:
        return 0 if self.split_k > 1 else super().epilogue_bytes(out_bytes, smem_bytes)

    def stages(self, out_bytes: int, smem_bytes: int) -> int:
        """0 if the partial tile of a split K, which is left in the ring, has no room there."""
        stages = super().stages(out_bytes, smem_bytes)
        room = stages * self.stage_blocks * self.block_bytes()
        return 0 if self.split_k > 1 and super().epilogue_bytes(out_bytes, smem_bytes) > room else stages

    def _stores(self, out_bytes: int) -> list[Store]:
        row_bytes = self.columns * out_bytes
        widest = next(b for b in (128, 64, 32) if row_bytes % b == 0)
        whole = row_bytes // widest * self.waves
        rings = ((widest, whole), (widest, 4), (widest, 3), (widest, 2), (widest // 2, 2))
        return [Store(b, n) for b, n in rings if n <= whole and b >= 16 * out_bytes]

    def registers(self) -> int:
        return self.columns // 2 * self.waves

    def block_bytes(self) -> int:
        columns = -(-self.columns // SLAB) * SLAB if self.mn_columns else self.columns
        return (self.rows + columns) * 2 * BLOCK_K
