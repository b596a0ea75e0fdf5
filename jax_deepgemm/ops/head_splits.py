"""How `fp8_gemm_nt_skip_head_mid` spreads the columns of a product: `cuda/common/head_splits.cuh` does the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax_deepgemm.heuristics.gemm_config import GemmConfig


@dataclasses.dataclass(frozen=True)
class HeadSplits:
    """Columns of a head. `left` and `right` come from the product; `mid` between them are kept, or made zero."""

    left: int
    mid: int
    right: int
    keeps: bool = False

    @property
    def parts(self) -> tuple[int, int, int]:
        return self.left, self.mid, self.right

    @property
    def product(self) -> int:
        """Columns of a head that are computed."""
        return self.left + self.right

    @property
    def functor(self) -> str:
        return f"HeadSplits<{self.left}, {self.mid}, {self.right}, {str(not self.keeps).lower()}>"

    def width(self, n: int) -> int:
        """Columns of the result where the product has `n`."""
        return n // self.product * sum(self.parts)

    def fits(self, tile: GemmConfig, out_bytes: int, smem_bytes: int) -> bool:
        """Whether no box of columns that the tile stores straddles a border; other stores take any of 16 bytes."""
        columns = tile.store(out_bytes, smem_bytes).atom_bytes // out_bytes
        return not tile.stores_by_tma or (self.left % columns == 0 and self.right % columns == 0)

    def check(self, tile: GemmConfig, out_bytes: int, smem_bytes: int) -> None:
        if not self.fits(tile, out_bytes, smem_bytes):
            columns = tile.store(out_bytes, smem_bytes).atom_bytes // out_bytes
            raise ValueError(
                f"`config` must store boxes of columns that divide the left and right parts of a head, {self.left} and "
                f"{self.right}, or use `swap` or `split_k`, got {tile}, which stores boxes of {columns} columns"
            )

    def among(self, ranked: Sequence[GemmConfig], out_bytes: int, smem_bytes: int) -> list[GemmConfig]:
        """Those of the configurations that fit, in their order, or a few that always do."""
        fitting = [tile for tile in ranked if self.fits(tile, out_bytes, smem_bytes)]
        return fitting or [GemmConfig(128, columns, swap=True) for columns in (128, 64)]
