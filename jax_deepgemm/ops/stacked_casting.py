"""Weights of a group each, quantised to FP8 by blocks of 128 x 128: as they lie, transposed, or both from one read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jax_deepgemm import checks
from jax_deepgemm.checks import Quantized
from jax_deepgemm.factors import Factors
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.ops import casting
from jax_deepgemm.ops.casting_plan import TILE, plan
from jax_deepgemm.primitive import make

_BLOCK = (TILE, TILE)


def quantise_stack(w: jax.Array, *, straight: bool, turned: bool) -> list[Quantized]:
    """Of w [G, R, C]: data [G, R, C] and scale [G, ceil(R / 128), ceil(C / 128)], and that transposed."""
    flat = _call(
        w,
        straight=_BLOCK if straight else None,
        turned=_BLOCK if turned else None,
        use_ue8m0=False,
        smallest_amax=casting.SMALLEST_AMAX,
    )
    return [Quantized(*flat[i : i + 2]) for i in range(0, len(flat), 2)]


def _abstract_eval(avals: Avals, *, straight: Any, turned: Any, **_: Any) -> list[jax.ShapeDtypeStruct]:
    groups, *shape = avals[0].shape
    results = []
    for wanted, step in ((straight, 1), (turned, -1)):
        if wanted:
            results.append(jax.ShapeDtypeStruct((groups, *shape[::step]), jnp.float8_e4m3fn))
            results.append(
                jax.ShapeDtypeStruct((groups, *checks.scale_shape(shape, _BLOCK)[::step]), jnp.dtype(jnp.float32))
            )
    return results


def _reference(w: jax.Array, **params: Any) -> list[jax.Array]:
    return jax.vmap(lambda x: casting.reference(x, **params))(w)


def _factors(avals: Avals, params: Params) -> Factors:
    results = [f"g {data}, g {scale}" for data, scale in (("r c", "s d"), ("c r", "d s"))]
    kept = [r for r, wanted in zip(results, (params["straight"], params["turned"]), strict=True) if wanted]
    return Factors(f"g r c -> {', '.join(kept)}", whole=("r", "c", "s", "d"))


_call: Any = make(
    Op(
        name="cast_stack_to_fp8",
        abstract_eval=_abstract_eval,
        reference=_reference,
        plan=plan,
        factors=_factors,
    )
)
