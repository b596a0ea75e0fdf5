"""What the launches of all m-grouped GEMM kernels share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig, ceil_div
from jax_deepgemm.ops.gemm_plan import MAX_EXTENT

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

MOST_GROUPS = 1024  # whose table leaves room for a pipeline


class Problem(NamedTuple):
    """`m`: rows of all groups together, and of none. `rows`: those that a group is expected to have; `expected`: by the
    caller."""

    m: int
    n: int
    k: int
    groups: int
    rows: int
    expected: bool
    kind: str  # how the device tells the groups' rows: cuda/common/group_table.cuh
    out_bytes: int
    num_sms: int
    smem_bytes: int  # beside the table of groups

    @property
    def heuristics(self) -> tuple[int, bool, int, int, int, int, int, int]:
        return (
            self.rows,
            self.expected,
            self.groups,
            self.n,
            self.k,
            self.out_bytes,
            self.num_sms,
            self.smem_bytes,
        )

    @property
    def table_bytes(self) -> int:
        return table_bytes(self.groups)

    def fits(self, tile: GemmConfig | Fp4SwappedConfig) -> bool:
        """Whether the kernel can count its tiles, whatever the device says; rows in any order make the most."""
        most = ceil_div(self.m, tile.tile_m) * (self.groups if self.kind == "IndexGroups" else 1) + self.groups
        return most * ceil_div(self.n, tile.tile_n) < 2**31

    def grid(self, tile: GemmConfig | Fp4SwappedConfig) -> int:
        """Blocks of the persistent grid: whole clusters, no more than there are processors or, mostly, tiles for."""
        tiles = (ceil_div(self.m, tile.tile_m) + self.groups) * ceil_div(self.n, tile.tile_n)
        return min(tiles, max(1, self.num_sms // tile.cluster)) * tile.cluster


def table_bytes(groups: int) -> int:
    """Of shared memory: a header, an entry for each group and one behind them, and what aligns them."""
    return 32 + 16 * (groups + 1) + 16


def problem_of(
    a: Shaped,
    b: Shaped,
    out: Shaped,
    params: Mapping[str, Any],
    target: Target,
    config: Config,
    multiple: int,
    *,
    k_last: bool = True,
) -> Problem | None:
    """None where no kernel takes them. Rows of operands are multiples of `multiple` elements.

    `b` is [G, N, K], or [G, K, N] without `k_last`.
    """
    (*lead, k), groups, n = a.shape, b.shape[0], b.shape[1 if k_last else 2]
    m = int(np.prod(lead, dtype=np.int64))
    if target.arch != "sm_90a" or 0 in (m, n, k, groups) or groups > MOST_GROUPS:
        return None
    if max(m, groups * n, k) > MAX_EXTENT:
        return None
    out_bytes = np.dtype(out.dtype).itemsize
    if k % multiple or n * out_bytes % 16:
        return None  # a shard may be so: TMA takes rows of 16 bytes
    if len(lead) == 2:
        kind, rows = "MaskedGroups", min(params["expected_m"], lead[1])
    else:
        kind = "PsumGroups" if params["use_psum_layout"] else "IndexGroups"
        rows = params.get("expected_m", ceil_div(m, groups))
    expected, rows = "expected_m" in params, max(1, rows)
    num_sms = min(target.num_sms, config.num_sms or target.num_sms)
    smem_bytes = target.smem_bytes - table_bytes(groups)
    return Problem(m, n, k, groups, rows, expected, kind, out_bytes, num_sms, smem_bytes)


def typical_groups(avals: Sequence[Shaped], params: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """`Op.typical` of all m-grouped GEMMs: groups with the rows that are expected, or that share them out evenly."""
    m, groups, last = avals[0].shape[-2], avals[-2].shape[0], len(avals) - 1
    if "use_psum_layout" not in params:
        layout = np.full(groups, min(params["expected_m"], m))
    elif params["use_psum_layout"]:
        layout = np.arange(1, groups + 1) * m // groups
    else:
        layout = np.arange(m) * groups // m
    return {last: layout.astype(np.int32)}
