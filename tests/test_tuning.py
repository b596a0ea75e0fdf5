"""Configurations by the caller and by `tune`: the way of a choice, with no GPU to measure on."""

from __future__ import annotations

import dataclasses
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jax_deepgemm
from jax_deepgemm import (
    H100,
    Bf16GemmConfig,
    GemmConfig,
    GemmConfig1d1d,
    KGroupedBf16Config,
    cache,
    compile,
    config,
    fp8_gemm_nt,
    fp8_linear,
    race,
    set_cache_folder,
    set_num_sms,
    set_pdl,
    set_target,
    tune,
    tuning,
)
from jax_deepgemm.calls import calls
from jax_deepgemm.config import current
from jax_deepgemm.primitive import OPS
from tests.helpers import GEMMS, ROWS, assert_close, laid_out, operands, oracle

A, B = operands(64, 384, 256)
OTHER = GemmConfig(64, 48, stage_blocks=2)  # which the heuristics do not choose
OP = next(op for op in OPS.values() if op.name == "fp8_gemm_nt")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A folder of this test's own, a count of tunings that other tests do not see, and no compiler."""
    monkeypatch.setattr(config, "_tunings", 0)
    monkeypatch.setattr(compile, "compile_kernel", lambda *_: compile.Binary(b"cubin", "gemm", 1, 0, 0, ""))
    with set_cache_folder(tmp_path):
        yield tmp_path
    monkeypatch.undo()
    config._set_global()


def rows_and_columns(function, *args):
    """Of the tiles that the kernels of `function` have on an H100."""
    with set_target(H100):
        text = jax.jit(lambda *xs: function(*xs)).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "@jax_deepgemm.launch(" in line and "kRows=" in line]
    return [tuple(int(c.split(f"{name}=")[1].split(",")[0]) for name in ("kRows", "kColumns")) for c in calls]


def tiles(c):
    return [(c.rows, c.columns)]


# --- by the caller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", GEMMS)
def test_config_of_the_caller(layout):
    gemm, (a, b) = GEMMS[layout], laid_out(layout, A, B)
    assert rows_and_columns(gemm, a, b) != tiles(OTHER)
    assert rows_and_columns(lambda a, b: gemm(a, b, config=OTHER), a, b) == tiles(OTHER)
    assert_close(gemm(a, b, config=OTHER), oracle(A, B))  # by reference, which needs none


def test_config_is_part_of_the_trace():
    def step(a, b, config):
        return fp8_gemm_nt(a, b, config=config)

    jitted = jax.jit(step, static_argnames="config")
    assert_close(jitted(A, B, config=OTHER), np.asarray(jitted(A, B, config=None)))
    assert "GemmConfig(rows=64, columns=48" in str(jax.make_jaxpr(lambda a, b: step(a, b, OTHER))(A, B))


def test_config_under_vmap_and_shard_map():
    batched = jax.vmap(lambda a, b: fp8_gemm_nt(a, b, config=OTHER), (0, None))
    a = jax.tree.map(lambda x: jnp.stack([x, x]), A)
    assert rows_and_columns(batched, a, B) == tiles(OTHER)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        lambda a, b: fp8_gemm_nt(a, b, config=OTHER), mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x")
    )
    assert_close(mapped(A, B), oracle(A, B))


BF16 = {name: getattr(jax_deepgemm, f"bf16_gemm_{name}") for name in ("nt", "nn", "tn", "tt")}


@pytest.mark.parametrize("layout", BF16)
def test_bf16(layout, measuring):
    a, b = laid_out(layout, jnp.ones((64, 256), jnp.bfloat16), jnp.ones((384, 256), jnp.bfloat16))
    config = Bf16GemmConfig(64, 64, stage_blocks=2, layout=layout)
    assert rows_and_columns(lambda a, b: BF16[layout](a, b, config=config), a, b) == tiles(config)
    other = "nt" if layout == "nn" else "nn"
    with pytest.raises(ValueError, match=f"`config` must be of layout {other}, got Bf16GemmConfig"):
        BF16[other](jnp.ones((256, 256), a.dtype), jnp.ones((256, 256), a.dtype), config=config)
    with pytest.raises(TypeError, match="`config` must be a Bf16GemmConfig or None, got GemmConfig"):
        BF16[layout](a, b, config=OTHER)
    (found,) = tune(BF16[layout], a, b)
    assert found.config.layout == layout and rows_and_columns(BF16[layout], a, b) == tiles(found.config)
    # The gradients are GEMMs of other layouts, with a choice of their own.
    gradients = jax.grad(lambda a, b: BF16[layout](a, b, config=config, out_dtype=jnp.float32).sum(), (0, 1))
    assert len(rows_and_columns(gradients, a, b)) >= 2 and len(tune(gradients, a, b)) == 2


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ((64, 48), TypeError, "`config` must be a GemmConfig or ResidentConfig or None, got tuple"),
        (
            Bf16GemmConfig(64, 48),
            TypeError,
            "`config` must be a GemmConfig or ResidentConfig or None, got Bf16GemmConfig",
        ),
        (GemmConfig(128, 192, stage_blocks=1), None, ""),
        (
            GemmConfig1d1d(64, 48),
            TypeError,
            "`config` must be a GemmConfig or ResidentConfig or None, got GemmConfig1d1d",
        ),
        (
            GemmConfig(256, 48, stage_blocks=4),
            ValueError,
            r"`config` must be of tiles that fit into 232448 bytes .*got",
        ),
    ],
)
def test_errors_of_config(bad, error, message):
    if error is None:
        fp8_gemm_nt(A, B, config=bad)
        return
    with pytest.raises(error, match=message):
        fp8_gemm_nt(A, B, config=bad)


# --- by tune ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def measuring(monkeypatch):
    """A machine where the third candidate is the fastest."""
    seen = []

    def fastest(op, bind, avals, params, configs):
        seen.append(configs)
        bind(*(jnp.zeros(a.shape, a.dtype) for a in avals), config=configs[2])
        return 2, 10.0, 12.5

    monkeypatch.setattr(tuning, "fastest", fastest)
    monkeypatch.setattr(tuning, "_target", lambda: H100)
    return seen


def test_without_a_gpu_tune_says_so():
    with pytest.raises(RuntimeError, match=r"`tune` measures on a GPU that there are kernels for .*, got cpu"):
        tune(fp8_gemm_nt, A, B)


def test_errors_of_tune(measuring):
    with pytest.raises(ValueError, match="`candidates` must be a positive integer, got 0"):
        tune(fp8_gemm_nt, A, B, candidates=0)
    with set_target(dataclasses.replace(H100, num_sms=100)), pytest.raises(ValueError, match="`set_target` must name"):
        tune(fp8_gemm_nt, A, B)
    with set_cache_folder(""), pytest.raises(RuntimeError, match="the cache folder, which is turned off"):
        tune(fp8_gemm_nt, A, B)
    with pytest.raises(ValueError, match="with the K of `a`"):
        tune(fp8_gemm_nt, A, operands(64, 384, 512)[1])


def test_what_tune_finds_is_taken_from_then_on(measuring, cache_folder, monkeypatch):
    before = rows_and_columns(fp8_gemm_nt, A, B)
    jitted = jax.jit(lambda a, b: fp8_gemm_nt(a, b))  # a function of its own, with a cache of its own
    jitted(A, B)
    (found,) = tune(fp8_gemm_nt, A, B)
    assert len(measuring[0]) == 16 and found.config == measuring[0][2] and found.heuristic == measuring[0][0]
    assert str(found) == (
        "fp8_gemm_nt(float8_e4m3fn[64,256], float32[64,2], float8_e4m3fn[384,256], float32[3,2]) -> bfloat16[64,384]: "
        f"{found.config}, 10.0 us, the heuristics' choice 12.5 us"
    )
    assert current().tunings == 1
    jitted(A, B)
    assert jitted._cache_size() == 2  # lowered anew
    after = rows_and_columns(fp8_gemm_nt, A, B)
    assert before == tiles(found.heuristic) and after == tiles(found.config)
    assert rows_and_columns(lambda a, b: fp8_gemm_nt(a, b, config=OTHER), A, B) == tiles(OTHER)
    monkeypatch.setenv("JAX_DEEPGEMM_USE_TUNED", "0")
    assert rows_and_columns(fp8_gemm_nt, A, B) == before
    assert len(list(cache_folder.glob("tuned-fp8_gemm_nt-*.json"))) == 1


def test_tune_measures_once(measuring):
    first, again, anew = (tune(fp8_gemm_nt, A, B, again=again)[0] for again in (False, False, True))
    assert len(measuring) == 2
    assert (first.measured, again.measured, anew.measured) == (True, False, True)
    assert dataclasses.replace(again, measured=True) == first
    assert str(again).endswith("12.5 us (stored)")


def test_printed_configurations_say_who_chose(monkeypatch, capsys):
    monkeypatch.setenv("JAX_DEEPGEMM_PRINT_CONFIGS", "1")
    rows_and_columns(fp8_gemm_nt, A, B)
    rows_and_columns(lambda a, b: fp8_gemm_nt(a, b, config=OTHER), A, B)
    heuristics, caller = capsys.readouterr().err.splitlines()
    assert heuristics.endswith("chosen by the heuristics") and caller.endswith("chosen by the caller")


def test_operands_may_be_described(measuring):
    described = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x) for x in (A, B)]
    (found,) = tune(fp8_gemm_nt, *described)
    assert rows_and_columns(fp8_gemm_nt, A, B) == tiles(found.config)


def test_scales_by_rows(measuring):
    a, b = operands(64, 384, 256, recipe=ROWS)
    gemm = functools.partial(fp8_gemm_nt, recipe=ROWS)
    assert rows_and_columns(lambda a, b: gemm(a, b, config=GemmConfig1d1d(64, 48)), a, b) == [(64, 48)]
    with pytest.raises(TypeError, match="`config` must be a GemmConfig1d1d or None, got GemmConfig"):
        gemm(a, b, config=OTHER)
    (found,) = tune(gemm, a, b)
    assert type(found.config) is GemmConfig1d1d and rows_and_columns(gemm, a, b) == tiles(found.config)


ROWS_OF_GROUPS = jax.ShapeDtypeStruct((64, 256), jnp.bfloat16)
WEIGHTS = jax.ShapeDtypeStruct((2, 128, 256), jnp.bfloat16)
ENDS, INDEX = (jax.ShapeDtypeStruct((size,), jnp.int32) for size in (2, 64))


def in_fp8(gemm, x, w, layout, **options):
    scales = (*x.shape[:-1], 2), (2, 1, 2)
    operands = [(v.astype(jnp.float8_e4m3fn), jnp.ones(s)) for v, s in zip((x, w), scales, strict=True)]
    return gemm(*operands, layout, **options)


def k_grouped_in_fp8(x, ks, **options):
    pair = jax_deepgemm.k_grouped_cast_to_fp8(x, ks)
    return jax_deepgemm.k_grouped_fp8_gemm_tn_contiguous(pair, pair, ks, **options)


def ends(**options):
    return functools.partial(jax_deepgemm.m_grouped_bf16_gemm_nt_contiguous, use_psum_layout=True, **options)


# The function and its operands, a configuration, and what the device tells of the groups while it is measured.
GROUPED = {
    "ends": (ends(), (ROWS_OF_GROUPS, WEIGHTS, ENDS), Bf16GemmConfig(64, 48), [32, 64]),
    "nn": (
        jax_deepgemm.m_grouped_bf16_gemm_nn_contiguous,
        (ROWS_OF_GROUPS, jax.ShapeDtypeStruct((2, 256, 128), jnp.bfloat16), INDEX),
        Bf16GemmConfig(64, 48, layout="nn"),
        [0] * 32 + [1] * 32,
    ),
    "masked": (
        functools.partial(jax_deepgemm.m_grouped_bf16_gemm_nt_masked, expected_m=5),
        (jax.ShapeDtypeStruct((2, 32, 256), jnp.bfloat16), WEIGHTS, ENDS),
        Bf16GemmConfig(64, 48),
        [5, 5],
    ),
    "FP8": (
        functools.partial(in_fp8, jax_deepgemm.m_grouped_fp8_gemm_nt_contiguous),
        (ROWS_OF_GROUPS, WEIGHTS, INDEX),
        OTHER,
        [0] * 32 + [1] * 32,
    ),
    "masked FP8": (
        functools.partial(in_fp8, functools.partial(jax_deepgemm.m_grouped_fp8_gemm_nt_masked, expected_m=50)),
        (jax.ShapeDtypeStruct((2, 32, 256), jnp.bfloat16), WEIGHTS, ENDS),
        OTHER,
        [32, 32],
    ),
    "of K": (
        lambda x, ks, **options: jax_deepgemm.k_grouped_bf16_gemm_tn_contiguous(x, x, ks, **options),
        (ROWS_OF_GROUPS, ENDS),
        KGroupedBf16Config(64, 64),
        [32, 32],
    ),
    "of K in FP8": (k_grouped_in_fp8, (ROWS_OF_GROUPS, ENDS), GemmConfig1d1d(64, 48), [128, 128]),
}


@pytest.mark.parametrize("name", GROUPED)
def test_grouped(name, measuring):
    gemm, args, own, groups = GROUPED[name]
    assert rows_and_columns(functools.partial(gemm, config=own), *args) == tiles(own)
    (found,) = tune(gemm, *args)
    assert type(found.config) is type(own) and rows_and_columns(gemm, *args) == tiles(found.config)
    (call,) = (call for call in calls(jax.make_jaxpr(gemm)(*args).jaxpr) if call.op.typical)
    avals, _ = call.avals()
    ((_, said),) = call.op.typical(avals, dict(call.params)).items()
    assert said.tolist() == groups and said.dtype == np.int32


@pytest.mark.parametrize("config", [Bf16GemmConfig(64, 48, layout="nn"), Bf16GemmConfig(64, 64, cluster_rows=2)])
def test_errors_of_grouped_configs(config):
    x, w = (jnp.zeros(v.shape, v.dtype) for v in (ROWS_OF_GROUPS, WEIGHTS))
    with pytest.raises(ValueError, match="`config` must be of layout nt, and share no operand, got Bf16GemmConfig"):
        ends(config=config)(x, w, jnp.zeros(2, jnp.int32))


def test_only_what_has_a_choice_is_measured(measuring):
    def model(a, b):
        empty = fp8_gemm_nt((a[0][:0], a[1][:0]), b)
        return fp8_gemm_nt(a, b, config=OTHER), empty

    assert tune(model, A, B) == [] and current().tunings == 0


X, W = jnp.ones((64, 256), jnp.bfloat16), jnp.ones((256, 256), jnp.bfloat16)


def loss(x, w):
    return fp8_linear(x, w).sum()


def scanned(x, w):
    body = jax.checkpoint(lambda x, _: (fp8_linear(x, w), None))
    return jax.lax.scan(body, x, None, length=3)[0].sum()


MODELS = {
    "jit": (jax.jit(loss), 1),
    "gradient": (jax.grad(loss, (0, 1)), 2),  # dx has the sizes of the forward pass; dw
    "scan and remat": (jax.grad(scanned), 2),
    "cond": (lambda x, w: jax.lax.cond(x[0, 0] > 0, loss, lambda x, w: 2.0 * loss(x[:32], w).astype(x.dtype), x, w), 2),
    "vmap": (jax.vmap(loss, (None, 0)), 1),
    "vmap of both": (lambda x, w: jax.vmap(loss)(jnp.stack([x, x]), jnp.stack([w, w])), 1),
    "settings": (lambda x, w: (loss(x, w), with_few(x, w)), 2),
}


def with_few(x, w):
    with set_num_sms(100):
        return loss(x, w)


@pytest.mark.parametrize("name", MODELS)
def test_gemms_are_found_wherever_they_are(name, measuring):
    model, count = MODELS[name]
    w = jnp.stack([W, W]) if name == "vmap" else W
    found = tune(model, X, w)
    assert len(found) == len(measuring) == count, found


def test_shard_map_is_tuned_for_one_device(measuring):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    (found,) = tune(jax.shard_map(fp8_gemm_nt, mesh=mesh, in_specs=(P("x"), P()), out_specs=P("x")), A, B)
    assert "float8_e4m3fn[32,256]" in found.call


def entries(folder):
    return sorted(folder.glob("tuned-*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["config"]["fields"].update(rows=100),
        lambda said: said["config"]["fields"].update(colour=1),
        lambda said: said["config"].update(kind="OtherConfig"),
        lambda said: said["config"].update(fields={"rows": 256, "columns": 48, "stage_blocks": 4}),  # too large
        lambda said: said.pop("us"),
        lambda said: said.update(us="fast"),
    ],
)
def test_entries_that_make_no_sense_are_ignored(change, measuring, cache_folder):
    before = rows_and_columns(fp8_gemm_nt, A, B)
    tune(fp8_gemm_nt, A, B)
    (path,) = entries(cache_folder)
    said = json.loads(cache.load(path.name))
    change(said)
    cache.store(path.name, json.dumps(said).encode())
    assert rows_and_columns(fp8_gemm_nt, A, B) == before


@pytest.mark.parametrize("content", [b"", b"not an entry", b"\xff" * 100], ids=len)
def test_damaged_entries_are_ignored(content, measuring, cache_folder):
    before = rows_and_columns(fp8_gemm_nt, A, B)
    tune(fp8_gemm_nt, A, B)
    (path,) = entries(cache_folder)
    path.write_bytes(content)
    assert rows_and_columns(fp8_gemm_nt, A, B) == before
    cache.store(path.name, content)  # with a checksum that is right
    assert rows_and_columns(fp8_gemm_nt, A, B) == before
    (found,) = tune(fp8_gemm_nt, A, B)
    assert found.measured and rows_and_columns(fp8_gemm_nt, A, B) == tiles(found.config)


def test_an_entry_holds_for_its_problem_and_source_alone(measuring, cache_folder, monkeypatch):
    c = jnp.zeros((64, 384), jnp.bfloat16)

    def problems():
        tune(fp8_gemm_nt, A, B)
        tune(lambda a, b: fp8_gemm_nt(a, b, out_dtype=jnp.float32), A, B)
        tune(lambda a, b, c: fp8_gemm_nt(a, b, c=c), A, B, c)
        tune(fp8_gemm_nt, (A[0][:32], A[1][:32]), B)
        for setting in (set_num_sms(100), set_pdl(False)):
            with setting:
                tune(fp8_gemm_nt, A, B)

    problems()
    assert len(entries(cache_folder)) == len(measuring) == 6
    with set_num_sms(132), set_target(dataclasses.replace(H100, name="another name")):  # which change nothing
        tune(fp8_gemm_nt, A, B)
    assert len(measuring) == 6
    monkeypatch.setattr(compile, "sources_digest", lambda stem: "other sources")
    problems()
    assert len(entries(cache_folder)) == 12


# --- the measurement -------------------------------------------------------------------------------------------------


class Card:
    """A GPU whose batches take the time that they are told to, the slower the longer it runs."""

    def __init__(self, *seconds, noise=0.0):
        self.now, self.seconds, self.noise, self.order = 0.0, seconds, noise, []
        self.random = random.Random(1)

    def batches(self):
        return [lambda i=i: self.run(i) for i in range(len(self.seconds))]

    def run(self, index):
        self.order.append(index)
        took = self.seconds[index] * (1 + 0.3 * min(self.now, 1)) * (1 + self.noise * self.random.random())
        self.now += took
        return took

    def winner(self):
        return race.winner(self.batches())


def test_the_fastest_wins_though_clocks_drift():
    card = Card(1.3e-3, 1.2e-3, 1.1e-3, 1.0e-3, 1.25e-3, noise=0.05)
    best, seconds, first = card.winner()
    assert best == 3 and first / seconds == pytest.approx(1.3, rel=0.04)


def test_rounds_go_through_all_in_changing_order():
    card = Card(*[1e-3] * 5)
    race.race(card.batches(), 4)
    rounds = [tuple(card.order[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(r) == list(range(5)) for r in rounds) and len(set(rounds)) > 1


def test_the_first_stays_unless_it_is_beaten():
    assert Card(1.0e-3, 0.995e-3, 1.0e-3).winner()[0] == 0
    assert Card(1.0e-3).winner()[0] == 0
    assert Card(1.0e-3, 0.95e-3).winner()[0] == 1


def test_one_disturbed_round_does_not_count():
    card = Card(1.0e-3, 0.9e-3)
    card.random.random = lambda: 100.0 if len(card.order) == 3 else 0.0
    card.noise = 1.0
    assert card.winner()[0] == 1
