"""moe_mlp with FP4 weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jax_deepgemm import Quantized, cast_back_from_fp4, moe_mlp, per_block_cast_to_fp8, per_token_cast_to_fp4
from tests import moe
from tests.fp4 import in_bytes
from tests.helpers import relative_error
from tests.test_moe_deviceless import IDX, WEIGHTS, H, X, aval, compiled, kernels, work
from tests.test_moe_deviceless import INNER as WIDE
from tests.test_moe_deviceless import G as GROUPS
from tests.test_moe_mlp import TOP_K, G, T, arrays

BOUND = 0.06  # activations are rounded to three bits of mantissa, twice


def quantised(w, gran_k=32, use_ue8m0=True):
    """In FP4, and the values."""
    pair = jax.vmap(lambda x: per_token_cast_to_fp4(x, use_ue8m0=use_ue8m0, gran_k=gran_k))(w)
    return pair, jax.vmap(lambda *p: cast_back_from_fp4(p, gran_k=gran_k))(*pair)


def problem(**how):
    x, w13, w2, _ = arrays()
    (w13, wide13), (w2, wide2) = quantised(w13, **how), quantised(w2, **how)
    idx, weights = moe.routed(0, T, TOP_K, G)
    return (x, idx, weights, w13, w2), np.asarray(moe.moe_mlp(x, idx, weights, wide13, wide2), np.float64)


@pytest.mark.parametrize("how", [{}, {"use_ue8m0": False}, {"gran_k": 128, "use_ue8m0": False}], ids=str)
def test_values(how):
    args, wanted = problem(**how)
    got = moe_mlp(*args)
    assert got.dtype == jnp.bfloat16 and 0.01 < relative_error(got, wanted) < BOUND
    packed = moe_mlp(*args[:3], *map(in_bytes, args[3:]))
    np.testing.assert_array_equal(np.asarray(packed), np.asarray(got))


def test_beside_fp8():
    (x, idx, weights, w13, _), _ = problem()
    *_, w2, _ = arrays()
    w2 = jax.vmap(per_block_cast_to_fp8)(w2)
    wide = jax.vmap(lambda *p: cast_back_from_fp4(p))(*w13), arrays()[2]
    wanted = np.asarray(moe.moe_mlp(x, idx, weights, *wide), np.float64)
    assert relative_error(moe_mlp(x, idx, weights, w13, w2), wanted) < BOUND


def test_experts_shared_out():
    (x, idx, weights, *w), wanted = problem()
    w = jax.tree.map(lambda v: jnp.concatenate([v, v[:1]]), w)  # six, of which the last is nobody's

    def local(x, weights, w13, w2):
        return jax.lax.psum(moe_mlp(x, idx - 3 * jax.lax.axis_index("e"), weights, w13, w2).astype(jnp.float32), "e")

    mesh = jax.make_mesh((2,), ("e",), axis_types=(jax.sharding.AxisType.Auto,))
    idx = jnp.where(idx >= G, -100, idx)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(), P("e"), P("e")), out_specs=P())
    assert relative_error(jax.jit(mapped)(x, weights, *w), wanted) < BOUND


def test_no_gradients():
    (x, idx, weights, w13, w2), _ = problem(use_ue8m0=False)

    def total(x, weights, scale):
        return moe_mlp(x, idx, weights, Quantized(w13.data, scale), w2).astype(jnp.float32).sum()

    for argument in range(3):
        with pytest.raises(NotImplementedError, match="moe_mlp with FP4 weights is for inference"):
            jax.grad(total, argument)(x, weights, w13.scale)


def test_block_is_six_kernels_and_nothing_between():
    u8, e8m0 = jnp.uint8, jnp.float8_e8m0fnu
    w13 = aval(u8, GROUPS, 2 * WIDE, H // 2), aval(e8m0, GROUPS, 2 * WIDE, H // 32)
    w2 = aval(u8, GROUPS, H, WIDE // 2), aval(e8m0, GROUPS, H, WIDE // 32)
    program = compiled(moe_mlp, X, IDX, WEIGHTS, w13, w2)
    found = kernels(program)
    assert sum(count for name, count in found.items() if "m_grouped_fp8_fp4_gemm" in name) == 2
    assert sum(found.values()) == 6 and work(program) == {"custom-call"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"recipe": moe.FP8}, "`recipe` must be None with FP4 weights"),
        ({"w13": lambda w: (w[0], w[1][:, :, :-1])}, r"`w13.scale` must be .* of shape \(5, 320, 5\)"),
        ({"w2": lambda w: (w[0][:, :-1], w[1][:, :-1])}, r"`w2` must be of shape \(5, 144, 160\) with the G and I of"),
    ],
)
def test_errors(change, message):
    (x, idx, weights, w13, w2), _ = problem()
    w13, w2 = (change.get(name, lambda w: w)(w) for name, w in (("w13", w13), ("w2", w2)))
    with pytest.raises(ValueError, match=message):
        moe_mlp(x, idx, weights, w13, w2, recipe=change.get("recipe"))
