"""Inside a CUDA graph (XLA's command buffers) with buffers that move between replays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_deepgemm import fp8_gemm_nt, set_pdl
from tests.gpu.configurations import FEW, name
from tests.gpu.native import native
from tests.gpu.problems import Problem, problem, same_bits

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
