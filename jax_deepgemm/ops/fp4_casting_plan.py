"""The launch that quantises a matrix to FP4: `cuda/kernels/sm90_cast_fp4.cuh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_deepgemm.launch import Kernel, Launch, Pointer, Scalar
from jax_deepgemm.ops.casting_plan import INPUTS, MAX_EXTENT, access

if TYPE_CHECKING:
    from jax_deepgemm.config import Config
    from jax_deepgemm.op import Shaped
    from jax_deepgemm.target import Target

SMALLEST_AMAX = 1e-4
_ROWS, _COLUMNS = 16, 256  # of a tile: 4 warps, each with rows of its own


def plan(
    avals: Sequence[Shaped], out_avals: Sequence[Shaped], params: Mapping[str, Any], target: Target, config: Config
) -> Launch | None:
    """The launch for the operand x, or None: where the columns are odd, two rows share a byte."""
    del out_avals
    (x,) = avals
    rows, columns = x.shape
    if target.arch != "sm_90a" or 0 in x.shape or columns % 2 or max(rows, columns) > MAX_EXTENT:
        return None
    grid = -(-rows // _ROWS) * -(-columns // _COLUMNS)
    if grid >= 2**31:
        return None
    dtype = np.dtype(x.dtype)
    template = (
        ("In", INPUTS[dtype.name]),
        ("Scale", "u8" if params["use_ue8m0"] else "float"),
        ("kTileRows", _ROWS),
        ("kScaleColumns", params["gran_k"]),
        ("kLoad", access(columns, 16 // dtype.itemsize)),
    )
    return Launch(
        kernel=Kernel("sm90_cast_fp4", template),
        grid=(grid, 1, 1),
        block=(_ROWS // 4 * 32, 1, 1),
        pdl=config.pdl,
        arguments=(
            *map(Pointer, range(3)),
            Scalar(rows, "uint32"),
            Scalar(columns, "uint32"),
            Scalar(SMALLEST_AMAX, "float32"),
        ),
    )
