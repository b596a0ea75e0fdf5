"""A tile configuration of the Hopper GEMM kernels, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

BLOCK_K = 128  # of K in a pipeline stage
SCALE_BLOCK = 128  # rows of B under one scale, unless each has its own
STORE_BARRIERS = 6  # a warpgroup's, where a warp of its own stores: up to three slots, each staged and read


class Store(NamedTuple):
    """A warp's ring of boxes for the TMA store: 16 rows of `atom_bytes` each."""

    atom_bytes: int
    buffers: int


@dataclasses.dataclass(frozen=True)
class GemmConfig:
    """The choices that the heuristics make for one GEMM. "Rows" and "columns" are those of wgmma.

    With `swap` the weights (N) lie along wgmma's rows and the tokens (M) along its columns; otherwise M is rows.
    """

    rows: int  # of a tile: 64 for one math warpgroup, 128 for two, 192 for three, 256 for two in two waves
    columns: int  # of a tile: a multiple of 8 (swap) or 16
    swap: bool = False
    split_k: int = 1  # CTAs of a cluster that split K
    cluster_rows: int = 1  # CTAs of a cluster with neighbouring row tiles: they share the columns operand
    cluster_columns: int = 1  # CTAs of a cluster with neighbouring column tiles: they share the rows operand
    group: int = 8  # row tiles walked together, for L2
    stage_blocks: int = 1  # blocks of 128 of K in a pipeline stage, multiplied together
    ahead: int = 0  # blocks of K in a run: while one is promoted, the product of the next is under way; 0: no runs

    MOST_COLUMNS: ClassVar[dict[int, int]] = {64: 192, 128: 192, 192: 128, 256: 128}  # by rows
    LEAST_AHEAD: ClassVar[int] = 2
    MOST_AHEAD: ClassVar[int] = 8  # a run is straight code
    STAGE_BARRIERS: ClassVar[int] = 3  # tiles are there, scales are there, both are read

    def __post_init__(self) -> None:
        for name in ("split_k", "cluster_rows", "cluster_columns", "group", "stage_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.rows not in self.MOST_COLUMNS:
            *first, last = self.MOST_COLUMNS
            raise ValueError(f"`rows` must be {', '.join(map(str, first))} or {last}, got {self.rows}")
        step, most = (8 if self.swap else 16), self.MOST_COLUMNS[self.rows]
        if self.columns % step or not 0 < self.columns <= most:
            raise ValueError(f"`columns` must be a multiple of {step} up to {most}, got {self.columns}")
        if sum(size > 1 for size in (self.split_k, self.cluster_rows, self.cluster_columns)) > 1:
            raise ValueError(f"a cluster either splits K or shares one operand, got {self}")
        if self.cluster > 8:
            raise ValueError(f"a cluster must be of at most 8 CTAs, got {self.cluster}")
        if self.ahead and not self.LEAST_AHEAD <= self.ahead <= self.MOST_AHEAD:
            allowed = f"0 or {self.LEAST_AHEAD} to {self.MOST_AHEAD}" if self.MOST_AHEAD else "0"
            raise ValueError(f"`ahead` must be {allowed}, got {self}")
        if self.ahead and (
            self.swap or (self.rows > 128 and self.ahead > 1) or self.stage_blocks > 1 or self.split_k > 1
        ):
            raise ValueError(
                "`ahead` must be 0 with swapped operands, more than 128 rows, several blocks a stage or a split K, "
                f"got {self}"
            )
        registers = self.registers()
        if registers > self.most_registers:
            raise ValueError(
                f"{self} keeps {registers} accumulators and scales a thread, more than there are registers"
            )
        if self.columns % (8 * self.cluster_rows) or self.rows % (8 * self.cluster_columns):
            raise ValueError("a shared operand's tile must split into parts of 8 rows, one for each CTA")

    @property
    def most_registers(self) -> int:
        """Accumulators and scales that leave a thread enough for the rest."""
        return 216 if self.ahead else {1: 224, 2: 192, 3: 128}[self.math_groups]

    def registers(self) -> int:
        """Accumulators and scales of a thread."""
        registers = self.columns // 2 * (self.waves + (2 if self.ahead > 1 else self.stage_blocks))
        if self.swap:  # each column has a scale
            registers += self.columns // 4 * self.stage_blocks
        return registers

    @property
    def multicast(self) -> int:
        return self.cluster_rows * self.cluster_columns

    @property
    def cluster(self) -> int:
        return self.multicast * self.split_k

    @property
    def math_groups(self) -> int:
        return {64: 1, 192: 3}.get(self.rows, 2)

    @property
    def waves(self) -> int:
        return self.rows // 64 // self.math_groups

    @property
    def tile_m(self) -> int:
        return self.columns if self.swap else self.rows

    @property
    def tile_n(self) -> int:
        return self.rows if self.swap else self.columns

    @property
    def stores_by_tma(self) -> bool:
        return not self.swap and self.split_k == 1

    def store(self, out_bytes: int, smem_bytes: int) -> Store:
        """How a warp stages its rows for the TMA store: all of them, unless less buys stages for a short pipeline."""
        if not self.stores_by_tma:
            return Store(32, 1)
        choices = self._stores(out_bytes)
        stages = [self._stages(self._staging(s), smem_bytes) for s in choices]
        enough = min(self.enough_stages, max(stages))
        return next(s for s, n in zip(choices, stages, strict=True) if n >= enough)

    @property
    def enough_stages(self) -> int:
        """Beyond this shared memory serves the store better: a round of the store's ring costs some 400 cycles."""
        return min(5, ceil_div(128 * 1024, self.stage_bytes()))

    def _stores(self, out_bytes: int) -> list[Store]:
        """The most shared memory first."""
        row_bytes = self.columns * out_bytes
        widest = next(b for b in (128, 64, 32) if row_bytes % b == 0)
        whole = row_bytes // widest * self.waves
        rings = ((widest, whole), (widest, whole // 2), (widest, 4), (widest, 2), (widest // 2, 4), (widest // 2, 2))
        choices = [Store(b, n) for b, n in rings if b >= 16 * out_bytes and 0 < n <= whole]
        return [s for s in choices if row_bytes // s.atom_bytes * self.waves % s.buffers == 0]

    def stage_bytes(self) -> int:
        """Of a stage: its tiles, their scales, its barriers."""
        return self.stage_blocks * self.block_bytes() + 8 * self.STAGE_BARRIERS

    def block_bytes(self) -> int:
        """Of a block of K: its tiles and their scales."""
        return (self.rows + self.columns) * BLOCK_K + align(self.tile_m * 4 + 16, 16)

    def epilogue_bytes(self, out_bytes: int, smem_bytes: int) -> int:
        if self.stores_by_tma:
            return self._staging(self.store(out_bytes, smem_bytes))
        pitch = self.tile_n + (4 if self.swap else 8)
        return align(self.tile_m * pitch * 4, 1024)

    def stages(self, out_bytes: int, smem_bytes: int) -> int:
        return self._stages(self.epilogue_bytes(out_bytes, smem_bytes), smem_bytes)

    def shared_memory(self, out_bytes: int, smem_bytes: int) -> int:
        epilogue = self.epilogue_bytes(out_bytes, smem_bytes)
        return self._total(self._stages(epilogue, smem_bytes), epilogue)

    def _staging(self, store: Store) -> int:
        return self.math_groups * 4 * store.buffers * 16 * store.atom_bytes

    def _total(self, stages: int, epilogue: int) -> int:
        return stages * self.stage_bytes() + epilogue + self._single_barriers(epilogue)

    def _stages(self, epilogue: int, smem_bytes: int) -> int:
        return min(32, (smem_bytes - epilogue - self._single_barriers(epilogue)) // self.stage_bytes())

    def _single_barriers(self, epilogue: int) -> int:
        """Bytes of those that are not a stage's: of a split K, and of the warp that stores."""
        return 16 + 8 * STORE_BARRIERS * self.math_groups * (self.stores_by_tma and epilogue > 0)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def align(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
