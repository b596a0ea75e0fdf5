"""A tile configuration of the Hopper GEMM with FP4 weights, and what follows from it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

from jax_deepgemm.heuristics.gemm_config import BLOCK_K, GemmConfig, Store

TASK_BLOCKS = 2  # of K, that a box of packed weights holds
MAX_PACKED_STAGES = 16


class Scales(NamedTuple):
    """A kind of weight scales: its name in the kernel; bytes of those of a row's 128 values; how many these can be."""

    name: str
    row_bytes: int
    sets: int


UE8M0_BY_32 = Scales("Ue8m0By32", 4, 4)
FLOAT_BY_32 = Scales("FloatBy32", 16, 4)
FLOAT_BY_128 = Scales("FloatBy128", 4, 1)


class Fp4Layout(NamedTuple):
    """How a configuration fills shared memory."""

    packed_stages: int
    store: Store
    shared_memory: int  # bytes


@dataclasses.dataclass(frozen=True)
class Fp4GemmConfig(GemmConfig):
    """A `GemmConfig` whose weights pass through a ring of packed stages in front of the ring of decoded ones.

    Two CTAs with neighbouring row tiles (`cluster_rows`) share the decoding, where scales are left for the tile's end.
    """

    decoded_stages: int = 3
    feed_groups: int = 1  # warpgroups that decode
    tile_scales: bool = False  # scales of weights that are alike in all of K are applied at its end: UE8M0 only

    MOST_COLUMNS: ClassVar[dict[int, int]] = {64: 192, 128: 192, 256: 128}
    MOST_AHEAD: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.swap:
            raise ValueError(f"`swap` must be False: `Fp4SwappedConfig` is for few tokens, got {self}")
        if self.multicast > 1 and not (self.pairs and self.multicast == self.cluster_rows == 2):
            raise ValueError(
                "only two CTAs share decoding, by `cluster_rows` = 2, of tiles of 256 x 128 with `tile_scales`, one "
                f"block a stage and one feeding warpgroup: else a cluster must split K, got {self}"
            )
        if self.tile_scales and self.split_k > 1:
            raise ValueError(f"`tile_scales` must be False where a cluster splits K, got {self}")
        if self.feed_groups not in (1, 2):
            raise ValueError(f"`feed_groups` must be 1 or 2, got {self.feed_groups}")
        accumulators = self.columns // 2 * (self.waves + self.stage_blocks)
        if self.feed_groups == 2 and self.math_groups == 1 and accumulators > 128:
            raise ValueError(f"{self} keeps {accumulators} accumulators a thread, more than there are registers")
        if self.decoded_stages < 2:
            raise ValueError(f"`decoded_stages` must be at least 2, got {self.decoded_stages}")
        tasks = self.decoded_rows // self.task_rows * self.unit_blocks // TASK_BLOCKS
        if self.tile_n % self.task_rows or self.unit_blocks % TASK_BLOCKS or tasks % self.feed_warps:
            raise ValueError(f"every feeding warp must have as many rows by 256 of K to decode at once, got {self}")

    @property
    def unit_blocks(self) -> int:
        """Blocks of K in a packed stage."""
        return max(self.stage_blocks, TASK_BLOCKS)

    @property
    def decoded_rows(self) -> int:
        """Rows of weights of a tile that a CTA decodes: a cluster shares them."""
        return self.tile_n // self.cluster_rows

    @property
    def task_rows(self) -> int:
        """Rows of weights that a warp decodes at once: 32, or where that would leave warps idle 16."""
        return 16 if self.decoded_rows * self.unit_blocks // TASK_BLOCKS < 32 * self.feed_warps else 32

    @property
    def feed_warps(self) -> int:
        return 4 * self.feed_groups

    @property
    def pairs(self) -> bool:
        """Whether tiles whose scales come at their end have a loop of their own, fed by pairs of blocks of K."""
        large = (self.rows, self.columns, self.stage_blocks, self.feed_groups) == (256, 128, 1, 1)
        return self.tile_scales and large

    @property
    def least_packed_stages(self) -> int:
        return 2 if self.pairs else 3

    @property
    def enough_packed_stages(self) -> int:
        """Beyond which shared memory serves the store better."""
        return 2 if self.pairs else 4

    def for_scales(self, scales: Scales) -> Fp4GemmConfig:
        """What it is with them: nobody shares decoding if they are not left for the tile's end."""
        return self if scales == UE8M0_BY_32 else dataclasses.replace(self, cluster_rows=1)

    def stages(self, out_bytes: int, smem_bytes: int) -> int:
        """Packed stages, for the scales that take most room."""
        return self.fp4_layout(out_bytes, smem_bytes, UE8M0_BY_32).packed_stages

    def fp4_layout(self, out_bytes: int, smem_bytes: int, scales: Scales) -> Fp4Layout:
        """The layout in a block of `smem_bytes`: what the decoded stages and the epilogue leave is packed stages."""
        decoded = self.decoded_stages * self._decoded_bytes(scales) + 16
        packed = self.unit_blocks * self.decoded_rows * BLOCK_K // 2 + 8 * self.feed_warps

        def with_store(store: Store) -> Fp4Layout:
            used = decoded + self._epilogue(store)
            stages = min(MAX_PACKED_STAGES, (smem_bytes - used) // packed)
            return Fp4Layout(stages, store, used + stages * packed)

        layouts = [with_store(store) for store in self._stores(out_bytes)]
        return next((x for x in layouts if x.packed_stages >= self.enough_packed_stages), layouts[-1])

    def _decoded_bytes(self, scales: Scales) -> int:
        """Of a stage: its tiles, their scales, what tells of each task's rows, two barriers."""
        tiles = (self.rows + self.columns) * BLOCK_K
        scale_bytes = _align(self.tile_m * 4) + scales.sets * self.tile_n * 4
        flags = _align(self.tile_n // self.task_rows * 4)
        return self.stage_blocks * (tiles + scale_bytes + flags) + 16

    def _stores(self, out_bytes: int) -> list[Store]:
        """How a warp may stage its rows for the TMA store, the best first."""
        if not self.stores_by_tma:
            return [Store(32, 1)]
        row_bytes = self.columns * out_bytes
        widest = next(b for b in (128, 64, 32) if row_bytes % b == 0)
        whole = row_bytes // widest * self.waves
        narrow = Store(widest // 2, 2) if widest // 2 >= 16 * out_bytes else Store(widest, 1)
        return [Store(widest, whole), *([Store(widest, 2)] if whole % 2 == 0 else []), narrow]

    def _epilogue(self, store: Store) -> int:
        if self.stores_by_tma:
            return self._staging(store)
        return -(-self.tile_m * (self.tile_n + 8) * 4 // 1024) * 1024


def _align(value: int) -> int:
    return -(-value // 16) * 16
