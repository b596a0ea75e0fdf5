"""The launch of the GEMM with FP4 weights: `cuda/kernels/sm90_fp8_fp4_gemm.cuh`, with few tokens `..._swapped.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jax_deepgemm.heuristics import sm90_fp4
from jax_deepgemm.heuristics.fp4_config import (
    FLOAT_BY_32,
    FLOAT_BY_128,
    UE8M0_BY_32,
    Fp4GemmConfig,
    Scales,
)
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import BLOCK_K, Store
from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar, TensorMap
from jax_deepgemm.ops.fp8_gemm_plan import problem_of
from jax_deepgemm.ops.gemm_plan import store_map, template

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target


SCALE_ALIGNMENT = 16  # bytes, of a row of weight scales
TileConfig = Fp4GemmConfig | Fp4SwappedConfig
CONFIGS = (Fp4GemmConfig, Fp4SwappedConfig)


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for operands (a, a_scale, b packed, b_scale[, c]), or None where no kernel takes the problem."""
    problem = _problem(avals, out_avals, params, target, config)
    if problem is None:
        return None
    chosen = params.get("config") or sm90_fp4.fp8_fp4_gemm(*problem)
    return launch(chosen, *problem, has_c=len(avals) > 4, pdl=config.pdl)


def ranked(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> list[TileConfig]:
    """The configurations that `plan` may take, by the heuristics' price; none where no kernel takes the problem."""
    problem = _problem(avals, out_avals, params, target, config)
    return [] if problem is None else sm90_fp4.ranked(*problem)


def _problem(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> tuple[int, int, int, Scales, int, int, int] | None:
    """All that the heuristics ask for, or None where no kernel takes it."""
    sizes = problem_of(avals, out_avals, target, config)
    if sizes is None or sizes[2] % 32:
        return None
    m, n, k, *rest = sizes
    out_bytes, num_sms, smem_bytes = rest
    return m, n, k, scale_kind(avals[3].dtype, params["recipe"]), out_bytes, num_sms, smem_bytes


def scale_kind(dtype: Any, recipe: tuple[tuple[int, int], tuple[int, int]]) -> Scales:
    """Which scales of B those of this dtype are."""
    if recipe[1][1] == 128:
        return FLOAT_BY_128
    return FLOAT_BY_32 if np.dtype(dtype) == np.float32 else UE8M0_BY_32


def scale_row_bytes(k: int, scales: Scales) -> int:
    """Bytes of a row of weight scales as the kernel reads them, 16 at once."""
    return -(-k // BLOCK_K * scales.row_bytes // SCALE_ALIGNMENT) * SCALE_ALIGNMENT


def launch(
    tile: TileConfig,
    m: int,
    n: int,
    k: int,
    scales: Scales,
    out_bytes: int,
    num_sms: int,
    smem_bytes: int,
    *,
    has_c: bool = False,
    pdl: bool = False,
) -> Launch:
    """The launch of one configuration, whatever chose it. Raises ValueError where its pipeline does not fit."""
    if isinstance(tile, Fp4GemmConfig):
        tile = tile.for_scales(scales)
    parts = parts_of(tile, m, scales, out_bytes, smem_bytes, has_c=has_c)
    beside = tile.cluster // tile.split_k  # row tiles of a cluster
    clusters = -(-m // (beside * tile.tile_m)) * -(-n // tile.tile_n)
    a, a_scale, b, b_scale, c = range(5)
    d = 5 if has_c else 4
    return Launch(
        kernel=Kernel(f"sm90_fp8_fp4_gemm{parts.form}", parts.template),
        grid=(min(clusters, max(1, num_sms // tile.cluster)) * tile.cluster, 1, 1),
        block=(parts.threads, 1, 1),
        cluster=(tile.cluster, 1, 1),
        shared_memory=parts.shared_memory,
        pdl=pdl,
        arguments=(
            weights_map(b, n, k, parts.weight_rows),
            tokens_of(tile, a, m, k, scales),
            *(store_map(d, m, n, out_bytes, store) for store in parts.stores),
            Pointer(a_scale),
            Pointer(b_scale),
            Pointer(c if has_c else d),
            Pointer(d),
            Scalar(m, "uint32"),
            Scalar(n, "uint32"),
            Scalar(k, "uint32"),
            row_scales(k, scales),
        ),
    )


def weights_map(buffer: int, n: int, k: int, rows: int) -> TensorMap:
    """Of packed weights, `rows` of them in a box."""
    return TensorMap(buffer, "uint8", (k // 2, n), (k // 2,), (BLOCK_K, rows), swizzle=128)


def tokens_of(tile: TileConfig, buffer: int, m: int, k: int, scales: Scales) -> TensorMap | Pointer:
    """As the kernel loads them: by boxes, unless fours of their bytes change places."""
    if isinstance(tile, Fp4SwappedConfig) and tile.groups_by_lanes(scales):
        return Pointer(buffer)
    return TensorMap(buffer, "float8_e4m3fn", (k, m), (k,), (BLOCK_K, tile.tile_m), swizzle=128)


def row_scales(k: int, scales: Scales) -> Scalar:
    """Those of a row of weights, as many at once as the kernel reads."""
    return Scalar(scale_row_bytes(k, scales) // scales.row_bytes, "uint32")


class Parts(NamedTuple):
    """What a launch has from its kind of configuration."""

    form: str  # of the kernel: how its name ends
    template: tuple[tuple[str, int | bool | str], ...]
    threads: int
    shared_memory: int
    weight_rows: int  # of a box of packed weights
    stores: tuple[Store, ...]  # of the kernel that stores by TMA


def parts_of(
    tile: TileConfig, m: int, scales: Scales, out_bytes: int, smem_bytes: int, *, has_c: bool = False
) -> Parts:
    rest = m, scales, out_bytes, smem_bytes, has_c
    return _swapped(tile, *rest) if isinstance(tile, Fp4SwappedConfig) else _by_feeding_warps(tile, *rest)


def _by_feeding_warps(
    tile: Fp4GemmConfig, m: int, scales: Scales, out_bytes: int, smem_bytes: int, has_c: bool
) -> Parts:
    packed_stages, store, shared_memory = tile.fp4_layout(out_bytes, smem_bytes, scales)
    if packed_stages < 2:
        raise ValueError(
            f"{tile} must have room for two packed stages in {smem_bytes} bytes of shared memory, got {packed_stages}"
        )
    arguments: tuple[tuple[str, int | bool | str], ...] = (
        *template(tile, tile.decoded_stages, store, m <= tile.tile_m, out_bytes, has_c),
        ("kFeedGroups", tile.feed_groups),
        ("kPackedStages", packed_stages),
        ("kScaleN", 1),
        ("kTileScales", tile.tile_scales and scales == UE8M0_BY_32),
        ("Scales", scales.name),
    )
    threads = (tile.math_groups + tile.feed_groups) * 128
    return Parts("", arguments, threads, shared_memory, tile.task_rows, (store,))


def _swapped(tile: Fp4SwappedConfig, m: int, scales: Scales, out_bytes: int, smem_bytes: int, has_c: bool) -> Parts:
    stages, shared_memory = tile.layout(smem_bytes, scales)
    least = max(2, tile.k_groups)
    if stages < least:
        raise ValueError(
            f"{tile} must have room for {least} stages in {smem_bytes} bytes of shared memory, got {stages}"
        )
    arguments: tuple[tuple[str, int | bool | str], ...] = (
        ("kRows", tile.rows),
        ("kColumns", tile.columns),
        ("kKGroups", tile.k_groups),
        ("kScaleWarps", tile.scale_warps),
        ("kStages", stages),
        ("kSwap", True),
        ("kSplitK", tile.split_k),
        ("kClusterRows", 1),
        ("kClusterColumns", 1),
        ("kGroup", tile.group),
        ("kBLeavesFirst", m <= tile.columns),
        ("kGroupsByLanes", tile.groups_by_lanes(scales)),
        ("kHasC", has_c),
        ("Out", "bf16" if out_bytes == 2 else "float"),
        ("Scales", scales.name),
    )
    return Parts("_swapped", arguments, tile.threads, shared_memory, tile.rows, ())
