"""A tile configuration of the FP8 GEMM with a scale for each row of both operands, on Hopper."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, Store, align, ceil_div

MOST_COLUMNS_ALONE = 160  # of a block whose scales are all in registers beside sums and product


@dataclasses.dataclass(frozen=True)
class GemmConfig1d1d(GemmConfig):
    """`GemmConfig` of a kernel that scales each accumulator by a product of its own: M lies along wgmma's rows.

    Here `ahead` may be 1, also with 192 and 256 rows: blocks of K one by one, scales read before the product is issued.
    """

    LEAST_AHEAD: ClassVar[int] = 1
    MOST_COLUMNS: ClassVar[dict[int, int]] = {64: 192, 128: 192, 192: 96, 256: 128}

    def __post_init__(self) -> None:
        if self.swap:
            raise ValueError(f"`swap` must be False, got {self}")
        if self.ahead == 1 and self.columns > MOST_COLUMNS_ALONE:
            raise ValueError(f"`columns` must be at most {MOST_COLUMNS_ALONE} where `ahead` is 1, got {self}")
        super().__post_init__()

    def store(self, out_bytes: int, smem_bytes: int) -> Store:
        """Through the ring of stages, without buffers, where whole boxes of 128 bytes do; else as `GemmConfig`."""
        boxes, rest = divmod(self.columns * out_bytes, 128)
        in_stage = self.stage_blocks * (self.rows + self.columns) // self.rows
        needed = ceil_div(boxes, in_stage) + (2 if self.ahead and self.waves == 1 else 0)
        if self.stores_by_tma and not rest and self._stages(0, smem_bytes) >= needed:
            return Store(128, 0)
        return super().store(out_bytes, smem_bytes)

    @property
    def most_registers(self) -> int:
        return {1: 224, 2: 192, 3: 128}[self.math_groups]

    def block_bytes(self) -> int:
        pitch = align(self.columns // 4 - 4, 8) + 4  # of the scales that a thread reads, four at once
        return (self.rows + self.columns) * BLOCK_K + (self.rows + 4 * pitch) * 4
