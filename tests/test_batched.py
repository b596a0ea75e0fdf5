"""vmap of GEMMs whose operands are all batched: one launch of a grouped GEMM, and derivatives."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_deepgemm import (
    Bf16GemmConfig,
    bf16_gemm_nt,
    fp8_gemm_nt,
)
from jax_deepgemm.ops.m_grouped_plan import MOST_GROUPS
from tests.bf16 import GEMMS, matrices, oracle
from tests.helpers import assert_close, operands, relative_error
from tests.helpers import oracle as fp8_oracle
from tests.sharded import BOTH, SUM, collectives, mesh_of, put, stack
from tests.test_bf16_transforms import calls

F32 = jnp.float32
EVERY = pytest.mark.parametrize("layout", GEMMS)


def given(layout, batch=3, m=24, n=40, k=32):
    a, b = zip(*(matrices(layout, m, n, k, seed=s) for s in range(batch)), strict=True)
    return stack(a), stack(b), jnp.asarray(np.random.default_rng(9).standard_normal((batch, m, n)), F32)


def check(got, wanted, bound=6e-3):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert relative_error(g, np.asarray(w).astype(np.float64)) < bound


# --- derivatives ---------------------------------------------------------------------------------------------------


def value(layout, a, b, c):
    return jnp.sum(jnp.sin(GEMMS[layout](a, b, c=c, out_dtype=F32)))


@EVERY
def test_gradient_of_vmap_and_vmap_of_the_gradient(layout):
    args = given(layout)
    function = functools.partial(value, layout)
    gradient = jax.grad(function, (0, 1, 2))
    wanted = stack([gradient(*one) for one in zip(*args, strict=True)])
    check(jax.jit(jax.grad(lambda *args: jnp.sum(jax.vmap(function)(*args)), (0, 1, 2)))(*args), wanted)
    check(jax.jit(jax.vmap(gradient))(*args), wanted)


def test_forward_mode_and_second_derivatives():
    args = given("nt")
    function = functools.partial(value, "nt")

    def penalty(gradient, *args):
        return sum(jnp.sum(g.astype(F32) ** 2) for g in gradient(*args))

    def loop(*args):
        return sum(function(*(x[i] for x in args)) for i in range(3))

    def at_once(*args):
        return jnp.sum(jax.vmap(function)(*args))

    orders = [functools.partial(penalty, jax.grad(f, (0, 1, 2))) for f in (loop, at_once)]
    orders.append(functools.partial(penalty, jax.vmap(jax.grad(function, (0, 1, 2)))))
    wanted, *found = (jax.jit(jax.grad(f, (0, 1, 2)))(*args) for f in orders)
    for got in found:
        check(got, wanted)
    wanted, *found = (jax.jvp(f, args, (*args[:2], -args[2]))[1] for f in (loop, at_once))
    np.testing.assert_allclose(found, wanted, rtol=1e-2)


# --- axes ----------------------------------------------------------------------------------------------------------


@EVERY
def test_inner_axes_and_a_batch_of_batches(layout):
    a, b, _ = given(layout, batch=6)
    wanted = np.stack([oracle(layout, x, y) for x, y in zip(a, b, strict=True)])
    moved = jnp.moveaxis(a, 0, 1), jnp.moveaxis(b, 0, 2)
    function = jax.vmap(GEMMS[layout], (1, 2), 2)
    assert_close(jnp.moveaxis(function(*moved), 2, 0), wanted)
    assert calls(function, *moved) == [(6, 24, 40)]
    nested = jax.vmap(jax.vmap(GEMMS[layout]))
    split = a.reshape(2, 3, *a.shape[1:]), b.reshape(2, 3, *b.shape[1:])
    assert_close(nested(*split).reshape(wanted.shape), wanted)
    assert calls(nested, *split) == [(6, 24, 40)]


def test_a_batch_of_one_is_none():
    a, b, c = given("nt", batch=1)
    function = jax.vmap(lambda a, b, c: bf16_gemm_nt(a, b, c=c, out_dtype=F32))
    assert calls(function, a, b, c) == [(24, 40)]
    assert_close(function(a, b, c)[0], oracle("nt", a[0], b[0], c[0]))


def test_what_is_not_batched_is_repeated_if_it_is_small():
    a, b = (stack(x) for x in zip(*(operands(16, 136, 144, seed=s) for s in range(2)), strict=True))
    for one, loops in ((16, False), (400, True)):
        first = operands(one, 136, 144)[0]
        function = jax.vmap(lambda b, a=first: fp8_gemm_nt(a, b))  # N is in no whole blocks, so it does not fold
        assert ("scan[" in str(jax.make_jaxpr(function)(b))) == loops
        assert_close(function(b)[1], fp8_oracle(first, jax.tree.map(lambda x: x[1], b)))
    scale = a[1][0]
    function = jax.vmap(lambda x, b: fp8_gemm_nt((x, scale), b))
    assert "scan[" not in str(jax.make_jaxpr(function)(a[0], b))
    assert_close(function(a[0], b)[1], fp8_oracle((a[0][1], scale), jax.tree.map(lambda x: x[1], b)))


def test_what_stays_a_loop():
    a, b, _ = given("nt", m=8, n=8, k=16)
    config = Bf16GemmConfig(64, 64)
    assert calls(jax.vmap(lambda a, b: bf16_gemm_nt(a, b, config=config)), a, b) == []
    many = (jax.ShapeDtypeStruct((MOST_GROUPS + 1, *x.shape[1:]), x.dtype) for x in (a, b))
    assert calls(jax.vmap(bf16_gemm_nt), *many) == []


# --- several devices -----------------------------------------------------------------------------------------------

# name: mesh, sharding of A [B, M, K] and of B [B, N, K], collectives, sharding of the result
SHARDED = {
    "batch": ((8,), P("x"), P("x"), set(), P("x")),
    "batch, m and n": ((4, 2), P("x", "y"), P("x"), set(), P("x", "y")),
    "n": ((8,), P(), P(None, "x"), set(), P(None, None, "x")),
    "batch and k": ((4, 2), P("x", None, "y"), P("x", None, "y"), SUM, P("x")),
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_sharded_jit(dtype, name, kind):
    shape, of_a, of_b, wanted, result = SHARDED[name]
    mesh = mesh_of(kind, *shape)
    if dtype == "bf16":
        a, b, _ = given("nt", 8, 16, 1024, 256)
        function = jax.vmap(bf16_gemm_nt)
        expected = np.stack([oracle("nt", x, y) for x, y in zip(a, b, strict=True)])
    else:
        some = [operands(16, 1024, 256, seed=s) for s in range(8)]
        a, b = (stack(x) for x in zip(*some, strict=True))
        function = jax.vmap(fp8_gemm_nt)
        expected = np.stack(list(itertools.starmap(fp8_oracle, some)))
    sharded = put(a, mesh, of_a), put(b, mesh, of_b)
    assert collectives(function, *sharded) == wanted
    d = jax.jit(function)(*sharded)
    assert d.sharding.is_equivalent_to(NamedSharding(mesh, result), 3)
    assert_close(d, expected)


@pytest.mark.parametrize("kind", BOTH)
def test_sharded_gradients(kind):
    """Data parallel over tokens, and experts shared out: gradients of weights are summed, nothing is gathered."""
    args = given("nt", 4, 16, 32, 64)
    mesh = mesh_of(kind, 4, 2)
    specs = P("x", "y"), P("x"), P("x", "y")
    function = jax.grad(lambda a, b, c: jnp.sum(jax.vmap(functools.partial(value, "nt"))(a, b, c)), (0, 1))
    sharded = [put(x, mesh, s) for x, s in zip(args, specs, strict=True)]
    assert collectives(function, *sharded) == SUM
    check(jax.jit(function)(*sharded), function(*args))


def test_in_shard_map():
    args = given("nt", 8, 16, 32, 64)
    function = jax.grad(lambda a, b, c: jnp.sum(jax.vmap(functools.partial(value, "nt"))(a, b, c)), (0, 1))
    mesh = mesh_of(BOTH[0], 8)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    check(jax.jit(mapped)(*args), function(*args))
    with pytest.raises(ValueError, match="out_specs"):
        jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P("x"), out_specs=P()))(*args)
