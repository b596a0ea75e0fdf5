"""The launch that quantises a matrix to FP8: `cuda/kernels/sm90_cast_fp8.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

Block = tuple[int, int]  # rows and columns that share a scale
TILE = 128  # rows and columns that share a scale, where more than one row does
GRANULARITIES = (32, 64, 128)  # columns of one row that share a scale
MAX_EXTENT = 2**31 - 256  # rows and columns are counted, also beyond the last tile, in 32 bits
_MOST_STACKED = 65535
_ROWS = 32  # of a tile that ends no scale: as many CTAs as can be, for few rows
INPUTS = {"bfloat16": "bf16", "float16": "f16", "float32": "float"}


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operand x, or None where the kernel does not have the blocks that `params` ask for.

    x: a matrix, or a stack of matrices that are scaled by blocks.
    """
    del out_avals
    (x,) = avals
    *stacked, rows, columns = x.shape
    straight, turned = params["straight"], params["turned"]
    scaled_by_block = (TILE, TILE) in (straight, turned)
    if scaled_by_block:
        supported = {straight, turned} <= {(TILE, TILE), None}
    else:
        granularities = GRANULARITIES if turned is None else (TILE,)
        supported = straight in (None, *((1, g) for g in granularities)) and turned in (None, (TILE, 1))
    if target.arch != "sm_90a" or not supported or 0 in x.shape or max(rows, columns) > MAX_EXTENT:
        return None
    if stacked and (not scaled_by_block or stacked[0] > _MOST_STACKED):
        return None
    tile_rows = TILE if scaled_by_block or turned else _ROWS
    grid = -(-rows // tile_rows) * -(-columns // TILE)
    if grid >= 2**31:
        return None
    template = cast_template(np.dtype(x.dtype), (rows, columns), straight, turned, params["use_ue8m0"])
    template += (("kBatched", True),) * len(stacked)
    # What is not asked for is not written: any pointer does.
    results = [1, 2, 1, 2] if straight is None or turned is None else [1, 2, 3, 4]
    return Launch(
        kernel=Kernel("sm90_cast_fp8", template),
        grid=(grid, stacked[0] if stacked else 1, 1),
        block=cast_block(template),
        pdl=config.pdl,
        arguments=(
            Pointer(0),
            *map(Pointer, results),
            Scalar(rows, "uint32"),
            Scalar(columns, "uint32"),
            Scalar(params["smallest_amax"], "float32"),
        ),
    )


def cast_template(
    dtype: np.dtype, shape: tuple[int, int], straight: Block | None, turned: Block | None, use_ue8m0: bool
) -> tuple[tuple[str, int | bool | str], ...]:
    """The template arguments, for `x` of `dtype` whose casts have as many rows and columns as `shape`."""
    rows, columns = shape
    scaled_by_block = (TILE, TILE) in (straight, turned)
    load, store = access(columns, 16 // dtype.itemsize), access(rows, 16) if turned else 1
    whole = (load, store) == (16 // dtype.itemsize, 16)
    thread_rows, ctas = _thread_rows_and_ctas(dtype, straight, turned, whole)
    return (
        ("In", INPUTS[dtype.name]),
        ("Scale", "u8" if use_ue8m0 else "float"),
        ("kTileRows", TILE if scaled_by_block or turned else _ROWS),
        ("kThreadRows", thread_rows),
        ("kMinCtas", ctas),
        ("kScaleColumns", straight[1] if straight else TILE),
        ("kBlock", scaled_by_block),
        ("kStraight", straight is not None),
        ("kTurned", turned is not None),
        ("kLoad", load),
        ("kStore", store),
    )


def cast_block(template: tuple[tuple[str, int | bool | str], ...]) -> tuple[int, int, int]:
    """The threads of a CTA: a half-warp for as many rows of the tile as a thread has."""
    sizes = dict(template)
    return int(sizes["kTileRows"]) // int(sizes["kThreadRows"]) * 16, 1, 1


def _thread_rows_and_ctas(
    dtype: np.dtype, straight: Block | None, turned: Block | None, whole: bool
) -> tuple[int, int]:
    """Rows of a thread, and CTAs that an SM is to hold at once, for which the compiler limits registers: as many bytes
    under way as can be without a spill.

    whole: all accesses are of 16 bytes; narrower ones take more registers.
    """
    wide = dtype.itemsize == 4
    if turned is None and straight != (TILE, TILE):
        return 4, 1  # of 128 threads: many, whatever the registers
    if wide:
        return 4, 1 if turned and straight == (1, TILE) else 2
    if straight is None and turned == (TILE, 1):
        return (8, 5) if whole else (4, 4)
    return (8, 4) if whole and straight and turned else (4, 2)


def access(extent: int, most: int) -> int:
    """Elements of one memory access: the largest power of two up to `most` that divides the row it is part of."""
    return min(most, extent & -extent)


def swiglu_plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operand x [M, 2 columns], whose SwiGLU is quantised by (1, 128)."""
    (x,), (rows, columns) = avals, out_avals[0].shape
    grid = -(-rows // _ROWS) * -(-columns // TILE)
    if target.arch != "sm_90a" or 0 in (rows, columns) or max(rows, columns) > MAX_EXTENT or grid >= 2**31:
        return None
    template = (*cast_template(np.dtype(x.dtype), (rows, columns), (1, TILE), None, False), ("kGated", True))
    return Launch(
        kernel=Kernel("sm90_cast_fp8", template),
        grid=(grid, 1, 1),
        block=cast_block(template),
        pdl=config.pdl,
        arguments=(
            *map(Pointer, (0, 1, 2, 1, 2)),
            Scalar(rows, "uint32"),
            Scalar(columns, "uint32"),
            Scalar(params["smallest_amax"], "float32"),
        ),
    )
