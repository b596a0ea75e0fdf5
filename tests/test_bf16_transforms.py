"""The BF16 GEMMs and their gradients under vmap, jit over eight devices, shard_map, control flow and export."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import bf16_gemm_nt
from tests.bf16 import GEMMS, matrices, oracle
from tests.helpers import assert_close, relative_error
from tests.test_transforms import BOTH, SUM, collectives, mapped, mesh_of, put, stack, turned

F32 = jnp.float32
EVERY = pytest.mark.parametrize("layout", GEMMS)
M, N, K = 64, 256, 512


def specs(layout, of_a, of_b):
    """Of operands [M, K] and [N, K], as `GEMMS[layout]` takes them."""
    return (of_a if layout[0] == "n" else turned(of_a)), (of_b if layout[1] == "t" else turned(of_b))


def calls(function, *args):
    """Shapes of the results of our primitives, wherever they stand at the top of the program."""
    jaxpr = jax.make_jaxpr(function)(*args)
    return [e.outvars[0].aval.shape for e in jaxpr.eqns if e.primitive.name.startswith("jax_deepgemm_")]


@EVERY
@pytest.mark.parametrize(
    "axes, shape",
    [
        ((0, None, None), (120, 64)),
        ((None, 0, None), (40, 192)),
        ((0, None, 0), (120, 64)),
        ((0, 0, None), (3, 40, 64)),
    ],
)
def test_vmap(layout, axes, shape):
    """A batch folds into M or N where only one operand has it; else it is a batched GEMM."""
    pairs = [matrices(layout, 40, 64, 72, seed=s) for s in range(3)]
    cs = [jax.random.normal(jax.random.key(s), (40, 64)).astype(jnp.bfloat16) for s in range(3)]
    columns = [[p[0] for p in pairs], [p[1] for p in pairs], cs]
    args = [stack(xs) if axis == 0 else xs[0] for xs, axis in zip(columns, axes, strict=True)]
    function = jax.vmap(lambda a, b, c: GEMMS[layout](a, b, c=c), axes)
    d = function(*args)
    for i in range(3):
        a, b, c = (xs[i if axis == 0 else 0] for xs, axis in zip(columns, axes, strict=True))
        assert_close(d[i], oracle(layout, a, b, c))
    assert calls(function, *args) == [shape]


@EVERY
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_of_the_gradient(layout, axes):
    pairs = [matrices(layout, 16, 24, 32, seed=s) for s in range(2)]
    args = [stack([p[i] for p in pairs]) if axis == 0 else pairs[0][i] for i, axis in enumerate(axes)]

    def gradient(a, b):
        return jax.grad(lambda a, b: jnp.sum(GEMMS[layout](a, b, out_dtype=F32) ** 2), (0, 1))(a, b)

    batched = jax.vmap(gradient, axes)(*args)
    alone = gradient(*(pairs[1][i] if axis == 0 else pairs[0][i] for i, axis in enumerate(axes)))
    for got, wanted in zip(batched, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(got[1]), np.asarray(wanted))


# name: mesh, sharding of A [M, K] and of B [N, K], collectives, sharding of the result
SHARDED = {
    "m": ((8,), P("x"), P(), set(), P("x", None)),
    "n": ((8,), P(), P("x"), set(), P(None, "x")),
    "m and n": ((4, 2), P("x"), P("y"), set(), P("x", "y")),
    "k": ((8,), P(None, "x"), P(None, "x"), SUM, P(None, None)),
    "m and k": ((4, 2), P("x", "y"), P(None, "y"), SUM, P("x", None)),
}


@EVERY
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_jit(layout, kind, name):
    shape, of_a, of_b, wanted, result = SHARDED[name]
    mesh = mesh_of(kind, *shape)
    a, b = matrices(layout, M, N, K)
    sharded = [put(x, mesh, s) for x, s in zip((a, b), specs(layout, of_a, of_b), strict=True)]
    assert collectives(GEMMS[layout], *sharded) == wanted
    d = jax.jit(GEMMS[layout])(*sharded)
    assert_close(d, oracle(layout, a, b))
    assert d.sharding.is_equivalent_to(NamedSharding(mesh, result), 2)


@EVERY
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", ["m", "n", "m and k"])
def test_sharded_gradients(layout, kind, name):
    shape, of_a, of_b, _, _ = SHARDED[name]
    mesh = mesh_of(kind, *shape)
    given = matrices(layout, M, N, K)
    placed = specs(layout, of_a, of_b)
    sharded = [put(x, mesh, s) for x, s in zip(given, placed, strict=True)]

    def gradient(a, b):
        return jax.grad(lambda a, b: jnp.sum(GEMMS[layout](a, b, out_dtype=F32) ** 2), (0, 1))(a, b)

    shardings = tuple(NamedSharding(mesh, s) for s in placed)
    got = jax.jit(gradient, out_shardings=shardings)(*sharded)
    for g, wanted in zip(got, gradient(*given), strict=True):
        assert relative_error(jax.device_get(g), np.asarray(wanted).astype(np.float64)) < 6e-3


def test_sharded_k_sums_in_float32():
    """A partial result that is rounded to bfloat16 before the sum would show: it is far larger than the result."""
    a, b = matrices("nt", 16, 128, K)
    a = a.at[:, K // 2 :].set(-a[:, : K // 2])
    b = b.at[:, K // 2 :].set(b[:, : K // 2])
    mesh = mesh_of(AxisType.Auto, 8)
    c = jnp.ones((16, 128), jnp.bfloat16)
    sharded = put(a, mesh, P(None, "x")), put(b, mesh, P(None, "x")), put(c, mesh, P())
    d = jax.jit(lambda a, b, c: bf16_gemm_nt(a, b, c=c))(*sharded)
    np.testing.assert_allclose(np.asarray(d).astype(np.float32), 1, rtol=1e-2)


@EVERY
def test_shard_map(layout):
    a, b = matrices(layout, M, N, K)
    function = mapped(GEMMS[layout], specs(layout, P("x"), P("y")), P("x", "y"))
    assert_close(function(a, b), oracle(layout, a, b))


@EVERY
def test_shard_map_sums_the_gradient_of_shared_weights(layout):
    given = matrices(layout, M, N, K)
    placed = specs(layout, P("x"), P())

    def loss(a, b):
        return jnp.sum(GEMMS[layout](a, b, out_dtype=F32) ** 2)

    def local(a, b):
        return jax.grad(lambda a, b: jax.lax.psum(loss(a, b), "x"), (0, 1))(a, b)

    got = mapped(local, placed, placed)(*given)
    for g, wanted in zip(got, jax.grad(loss, (0, 1))(*given), strict=True):
        assert relative_error(jax.device_get(g), np.asarray(wanted).astype(np.float64)) < 6e-3


@pytest.mark.parametrize("spec", [(P("x"), P()), (P(), P("x"))])
def test_shard_map_refuses_wrong_out_specs(spec):
    with pytest.raises(ValueError, match="out_specs"):
        mapped(bf16_gemm_nt, spec, P())(*matrices("nt", M, N, K))


@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")])
@pytest.mark.filterwarnings("ignore:jax_deepgemm lowers for cuda")
def test_export_of_every_layout_and_its_gradient(platforms):
    given = {layout: matrices(layout, 16, 128, 144) for layout in GEMMS}

    def products(pairs):
        return {layout: jax.vjp(GEMMS[layout], *pair) for layout, pair in pairs.items()}

    def values(pairs):
        return {layout: (d, pull(d)) for layout, (d, pull) in products(pairs).items()}

    exported = jax.export.export(jax.jit(values), platforms=platforms)(given)
    again = jax.export.deserialize(exported.serialize())
    for layout, (d, gradients) in again.call(given).items():
        assert_close(d, oracle(layout, *given[layout]))
        assert [g.shape for g in gradients] == [x.shape for x in given[layout]]
