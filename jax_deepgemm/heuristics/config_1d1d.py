"""A tile configuration of the FP8 GEMM with a scale for each row of both operands, on Hopper."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, align


@dataclasses.dataclass(frozen=True)
class GemmConfig1d1d(GemmConfig):
    """`GemmConfig` of a kernel that scales each accumulator by a product of its own: M lies along wgmma's rows."""

    MOST_COLUMNS: ClassVar[dict[int, int]] = {64: 192, 128: 192, 256: 128}

    def __post_init__(self) -> None:
        if self.swap:
            raise ValueError(f"`swap` must be False, got {self}")
        super().__post_init__()

    @property
    def most_registers(self) -> int:
        return {1: 224, 2: 192}[self.math_groups]

    def block_bytes(self) -> int:
        pitch = align(self.columns // 4 - 4, 8) + 4  # of the scales that a thread reads, four at once
        return (self.rows + self.columns) * BLOCK_K + (self.rows + 4 * pitch) * 4
