"""Weights of a group each, quantised to FP8 by blocks of 128 x 128: as they lie, transposed, or both from one read."""

from __future__ import annotations

import functools

import jax

from jax_deepgemm.checks import Quantized
from jax_deepgemm.ops.casting import quantise
from jax_deepgemm.ops.casting_plan import TILE

_BLOCK = (TILE, TILE)


def quantise_stack(w: jax.Array, *, straight: bool, turned: bool) -> list[Quantized]:
    """Of w [G, R, C]: data [G, R, C] and scale [G, ceil(R / 128), ceil(C / 128)], and that transposed."""
    return jax.vmap(
        functools.partial(quantise, straight=_BLOCK if straight else None, turned=_BLOCK if turned else None)
    )(w)
