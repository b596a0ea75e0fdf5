"""Inside a CUDA graph (XLA's command buffers) with buffers that move between replays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_deepgemm as jd
from jax_deepgemm import fp8_gemm_nt, set_pdl
from tests import m_grouped, moe
from tests.gpu.configurations import FEW, name
from tests.gpu.native import native
from tests.gpu.problems import Problem, problem, same_bits
from tests.gpu.test_m_grouped import problem as grouped_problem
from tests.helpers import assert_close
from tests.linear import ABOVE

pytestmark = pytest.mark.gpu

CALLS = 6  # XLA makes a graph of 5 commands or more
NO_GRAPHS = {"xla_gpu_graph_min_graph_size": 1000}


def chain(a, b, c):
    for _ in range(CALLS):
        c = fp8_gemm_nt(a, b, c=c, out_dtype=jnp.float32)
    return c


def moved(p: Problem, seed: int) -> tuple:
    """Operands of other values at other addresses: rows in another order."""
    order = np.random.default_rng(seed).permutation(p.a.data.shape[0])
    a = jax.tree.map(lambda x: jax.device_put(np.asarray(x)[order]), p.a)
    b = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), p.b)
    return a, b, p.c(jnp.float32, seed)


@pytest.mark.parametrize("pdl", [True, False])
@pytest.mark.parametrize("config", [None, *FEW], ids=name)
def test_replays(config, pdl, tmp_path):
    p = problem(77, 576, 1040)
    operands = [moved(p, seed) for seed in range(4)]
    runs = []
    for kind, options in (("plain", NO_GRAPHS), ("graph", {})):
        options = options | {"xla_dump_to": str(tmp_path / kind)}
        with set_pdl(pdl):
            runs.append(native(chain, *operands[0], calls=CALLS, config=config, options=options))
        thunks = [file.read_text() for file in (tmp_path / kind).glob("*.thunk_sequence_after_thunk_passes.txt")]
        assert any("kCommandBuffer" in text for text in thunks) == (kind == "graph")
    plain, graph = runs
    wanted = [np.asarray(plain(*given)) for given in operands]
    p.check(plain(p.a, *operands[0][1:]), operands[0][2], copies=CALLS)
    kept = []  # so that results are new memory each time; their arguments' poison comes and goes
    for turn in range(3):
        kept += [(i, graph(*operands[i])) for i in np.random.default_rng(turn).permutation(len(operands))]
    assert all(same_bits(d, wanted[i]) for i, d in kept)


def test_replays_with_donation():
    """Each result is the next replay's donated c."""
    p = problem(77, 576, 1040)
    c = p.c(jnp.float32)
    wanted = native(chain, p.a, p.b, c, calls=CALLS, options=NO_GRAPHS)
    graph = jax.jit(chain, donate_argnums=2)
    d, expected = jax.device_put(np.asarray(c)), c
    for _ in range(5):
        d, expected = graph(p.a, p.b, d), wanted(p.a, p.b, expected)
        elsewhere = np.asarray(d)
        assert same_bits(elsewhere, expected)
        d = jax.device_put(elsewhere)


def test_a_loop():
    p = problem(64, 576, 1040)
    c = p.c(jnp.float32)

    def scan(a, b, c):
        return jax.lax.scan(lambda total, _: (chain(a, b, total), None), c, length=4)[0]

    d = native(scan, p.a, p.b, c, calls=CALLS)(p.a, p.b, c)
    p.check(d, c, copies=4 * CALLS)


# --- groups whose sizes change between replays -----------------------------------------------------------------------

ROWS, GROUPS = 700, 4
ENDS = ((100, 300, 300, 700), (0, 0, 0, 0), (700,) * 4, (1, 2, 130, 131), (-5, 500, 2**31 - 1, -(2**31)))
COPIES = 6  # of the rows, other ones each time: XLA would compute equal products once


def index_of(ends):
    clamped = np.maximum.accumulate(np.clip(ends, 0, ROWS))
    return m_grouped.index_of(np.diff(clamped, prepend=0), ROWS - clamped[-1])


def in_a_graph(function, *args, folder, calls):
    """`function`, compiled, which is a command buffer with all its launches."""
    run = native(function, *args, calls=calls, options={"xla_dump_to": str(folder)})
    thunks = [file.read_text() for file in folder.glob("*.thunk_sequence_after_thunk_passes.txt")]
    assert sum(text.count("kCommandBuffer") for text in thunks) == 1
    return run


@pytest.mark.parametrize("kind", ["fp8", "bf16"])
@pytest.mark.parametrize("form", ["ends", "index"])
def test_groups_of_rows(kind, form, tmp_path):
    a, b, rows, weights = grouped_problem(kind, ROWS, GROUPS, 264, 400)
    shifts = range(0, 7 * COPIES, 7)
    many = [jax.tree.map(functools.partial(np.roll, shift=s, axis=0), jax.device_get(a)) for s in shifts]
    many = jax.device_put(many)
    gemm = getattr(jd, f"m_grouped_{kind}_gemm_nt_contiguous")

    def products(many, b, layout):
        return [gemm(x, b, layout, use_psum_layout=form == "ends") for x in many]

    index = np.random.default_rng(0).integers(-1, GROUPS, ROWS).astype(np.int32)  # in any order
    layouts = [jnp.asarray(e if form == "ends" else index_of(e), jnp.int32) for e in ENDS]
    groups = [index_of(e) for e in ENDS]
    if form == "index":
        layouts.append(jnp.asarray(index))
        groups.append(index)
    run = in_a_graph(products, many, b, layouts[0], folder=tmp_path, calls=COPIES)
    for turn in np.random.default_rng(1).permutation(len(layouts) * 2) % len(layouts):
        for d, shift in zip(run(many, b, layouts[turn]), shifts, strict=True):
            wanted = m_grouped.oracle(np.roll(rows, shift, 0), weights, groups[turn])
            if wanted.any():
                assert_close(d, wanted)
            assert not np.any(np.asarray(d)[groups[turn] < 0])


@pytest.mark.parametrize("kind", ["fp8", "bf16"])
def test_masked_groups(kind, tmp_path):
    most = ROWS // GROUPS
    a, b, rows, weights = grouped_problem(kind, ROWS, GROUPS, 264, 400)
    rows = rows.reshape(GROUPS, most, -1)
    shifts = range(COPIES)
    a = jax.tree.map(lambda x: np.asarray(x).reshape(GROUPS, most, -1), a)
    many = jax.device_put([jax.tree.map(functools.partial(np.roll, shift=s, axis=1), a) for s in shifts])
    gemm = getattr(jd, f"m_grouped_{kind}_gemm_nt_masked")

    def products(many, b, masked_m):
        return [gemm(x, b, masked_m, 40) for x in many]

    run = in_a_graph(products, many, b, jnp.zeros(GROUPS, jnp.int32), folder=tmp_path, calls=COPIES)
    for masked_m in ((0, 5, most, 17), (most,) * GROUPS, (0, 0, 0, 0), (-3, 1000, 2**31 - 1, 1)) * 2:
        inside = np.arange(most) < np.asarray(masked_m)[:, None]
        for d, shift in zip(run(many, b, jnp.asarray(masked_m, jnp.int32)), shifts, strict=True):
            wanted = np.einsum("gmk,gnk->gmn", np.roll(rows, shift, 1), weights)
            if inside.any():
                assert_close(np.asarray(d)[inside], wanted[inside])


@pytest.mark.parametrize("recipe", [None, moe.FP8])
def test_training_steps_of_ragged_dot(recipe, tmp_path):
    """Groups of rows and groups of K in one graph, which is replayed while the sizes go from step to step."""
    lhs, rhs, dy = (
        jnp.asarray(moe.normal(i, *s), jnp.bfloat16)
        for i, s in enumerate(((ROWS, 264), (GROUPS, 264, 392), (ROWS, 392)))
    )

    def steps(lhs, rhs, sizes, dy):
        product = functools.partial(jd.ragged_dot, group_sizes=sizes, recipe=recipe)
        return moe.step_of(product, lhs, rhs, dy), moe.step_of(product, 2 * lhs[::-1], rhs, dy)

    args = lhs, rhs, jnp.zeros(GROUPS, jnp.int32), dy
    run = in_a_graph(steps, *args, folder=tmp_path, calls=None)
    for sizes in ((100, 200, 300, 100), (0, 0, 700, 0), (1, 2, 3, 4), (-7, 2**31 - 1, 5, 5), (0, 0, 0, 0)) * 2:
        got = run(lhs, rhs, jnp.asarray(sizes, jnp.int32), dy)
        for mine, x in zip(got, (lhs, 2 * lhs[::-1]), strict=True):
            for i, (g, wanted) in enumerate(zip(mine, moe.ragged_dot(x, rhs, sizes, dy), strict=True)):
                error = np.linalg.norm(np.asarray(g, np.float64) - wanted)
                bound = ABOVE if recipe and i < 2 else 5e-3
                assert error <= bound * np.linalg.norm(wanted)
