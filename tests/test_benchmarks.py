"""The benchmarks, as far as they run without a GPU: events in, tables and files out."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    bf16,
    capture,
    chain,
    dense,
    environment,
    fp8_fp4,
    host,
    jit,
    linear,
    roofline,
    suite,
    timing,
    wgrad,
)
from benchmarks.capture import Event, TimerError
from benchmarks.peers import Operands, Peer, Prepared
from tests.cases import DENSE, LAYOUTS, Bf16Gemm, Gemm
from tests.deviceless import LAUNCH, OPTIMISED, moves, sharding

XSPACE = """
planes { name: "/host:CPU" }
planes {
  name: "/device:GPU:0"
  event_metadata { key: 1 value { id: 1 name: "loop_xor_fusion" } }
  event_metadata { key: 2 value { id: 2 name: "void gemm<128>(float*)" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_module" } }
  stat_metadata { key: 2 value { id: 2 name: "jit_flush_l2" } }
  stat_metadata { key: 3 value { id: 3 name: "correlation_id" } }
  lines { id: 7 name: "Stream #7(Compute)" timestamp_ns: 1000
    events { metadata_id: 2 offset_ps: 5000000 duration_ps: 2500000 stats { metadata_id: 3 int64_value: 9 } }
    events { metadata_id: 1 offset_ps: 1000000 duration_ps: 3000000 stats { metadata_id: 1 ref_value: 2 } }
  }
  lines { id: 8 name: "XLA Modules" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 1000000 duration_ps: 3000000 }
  }
}
"""


def test_parse_xplane():
    events = capture.parse_xplane(jax.profiler.ProfileData.from_text_proto(XSPACE))
    assert events == [
        Event("loop_xor_fusion", 2000.0, 3000.0, "jit_flush_l2"),
        Event("void gemm<128>(float*)", 6000.0, 2500.0, None),
    ]


def test_parse_xplane_without_gpu():
    with pytest.raises(TimerError, match="no plane /device:GPU:0"):
        capture.parse_xplane(jax.profiler.ProfileData.from_text_proto('planes { name: "/host:CPU" }'))


def test_capture_jax_without_gpu_says_so():
    with pytest.raises(TimerError, match="/device:GPU:0"):
        capture.capture_jax(lambda: None)


def test_parse_torch():
    def event(name, start, us, device):
        span = types.SimpleNamespace(start=start, elapsed_us=lambda: us)
        return types.SimpleNamespace(name=name, time_range=span, device_type=types.SimpleNamespace(name=device))

    events = [event("gemm", 30.0, 2.5, "CUDA"), event("aten::mm", 1.0, 9.0, "CPU"), event("fill", 10.0, 1.0, "CUDA")]
    assert capture.parse_torch(events) == [Event("fill", 10e3, 1e3), Event("gemm", 30e3, 2.5e3)]


def is_flush(event):
    return event.name == "flush"


def test_steps_and_medians():
    # Two functions, three repetitions; "b" makes two kernels a call, one of which does not count.
    events, order = [], []
    for repetition in range(3):
        for name, kernels in (("a", [10.0]), ("b", [5.0, 100.0])):
            order.append(name)
            for kernel, us in (("flush", 80.0), *((f"{name}{i}", us + repetition) for i, us in enumerate(kernels))):
                events.append(Event(kernel, len(events) * 1e6, us * 1e3))
    groups = timing.steps(list(reversed(events)), is_flush)
    timings = timing.summarise(order, groups, lambda name, event: event.name != "b1")
    assert timings == {"a": timing.Timing(11.0, 1, ("a0",)), "b": timing.Timing(6.0, 1, ("b0",))}


@pytest.mark.parametrize(
    ("spans", "busy"),
    [
        ([], 0),
        ([(5, 3), (10, 2)], 5),  # what lies between does not count
        ([(0, 10), (8, 7)], 15),  # nor does what two kernels have in common count twice
        ([(8, 7), (0, 20), (19, 1)], 20),
    ],
)
def test_busy_time(spans, busy):
    assert timing.busy_ns([Event("kernel", start, duration) for start, duration in spans]) == busy


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_order_is_balanced(count):
    """Each function equally often behind each of the others, never behind itself, at least `reps` times."""
    names = list("abcde"[:count])
    order = timing.balanced_order(names, 15)
    following = collections.Counter(zip(order, [*order[1:], order[0]], strict=True))
    assert set(following) == set(itertools.permutations(names, 2)) and len(set(following.values())) == 1
    assert 15 <= min(collections.Counter(order).values()) == max(collections.Counter(order).values()) <= 16
    assert order == timing.balanced_order(names, 15)
    if count > 2:
        assert order != timing.balanced_order(names, 15, seed=1) and order[:count] != order[count : 2 * count]


def test_order_of_one():
    assert timing.balanced_order(["a"], 10) == ["a"] * 10


def test_dropped_events_are_recorded_once_more(capsys):
    card = Card()
    runs = []

    def source(run):
        runs.append(1)
        return card.source(run)[len(runs) < 2 :]  # the first recording lacks its first flush

    timings = timing.measure({"a": lambda: card.launch("a", 7.0)}, 10, source, card.flush())
    assert timings["a"].us == 7.0 and len(runs) == 2
    assert "10 steps ran, the events show 9" in capsys.readouterr().err


def test_a_step_without_kernels_is_no_timing():
    groups = timing.steps([Event("flush", 0, 1), Event("flush", 2, 1), Event("k", 4, 1000)], is_flush)
    assert set(timing.summarise(["a", "b"], groups)) == {"b"}


def test_flush_knows_its_kernel(monkeypatch):
    monkeypatch.setattr(timing, "FLUSH_BYTES", 1024)
    recorded = [Event("loop_xor_fusion", float(i), 1.0) for i in range(3)]
    flush = timing.Flush(lambda run: run() or recorded)
    assert flush.made(Event("loop_xor_fusion", 0, 1)) and not flush.made(Event("gemm", 0, 1))
    assert flush.made(Event("x", 0, 1, "jit_flush_l2")) and not flush.made(Event("loop_xor_fusion", 0, 1, "jit_f"))
    with pytest.raises(TimerError, match="3 flushes"):
        timing.Flush(lambda run: recorded[:2])


class Card:
    """A GPU whose kernels take the time that they are told to."""

    def __init__(self):
        self.events = []

    def launch(self, name, us):
        self.events.append(Event(name, len(self.events) * 1e9, us * 1e3))

    def source(self, run):
        self.events = []
        run()
        return self.events

    def flush(self):
        def call():
            self.launch("flush", 50.0)

        call.made = is_flush
        return call


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(suite, "choose_timer", lambda *_: (card.source, card.flush()))
    monkeypatch.setattr(roofline, "copy_gbs", lambda *_: 3000.0)
    monkeypatch.setattr(roofline, "fp8_tflops", lambda *_: 1400.0)
    return card


def synthetic(card, **changes):
    def implementation(name, kernels):
        return lambda operands: Prepared(
            lambda: [card.launch(f"{name}_{kernel}", us) for kernel, us in kernels], lambda: np.ones(1)
        )

    def broken(operands):
        raise RuntimeError("not on this machine")

    parts = {
        "op": "op",
        "cases": [Gemm(1, 128, 256), Gemm(64, 128, 256)],
        "operands": lambda case: None,
        "flops": dense.flops,
        "moved_bytes": dense.moved_bytes,
        "checker": lambda case, operands: lambda result: None,
        "ours": implementation("ours", [("gemm", 10.0)]),
        "peers": (
            Peer("deep_gemm", implementation("dg", [("transpose", 3.0), ("gemm", 8.0)]), kernel="gemm"),
            Peer("cublaslt", broken),
            Peer("xla", implementation("xla", [("dequantise", 20.0), ("dot", 30.0)])),
        ),
        "peak_operands": lambda: None,
        "warm": lambda case: None,
        "groups": (("all", lambda row: True), ("M<=1", lambda row: row["case"]["m"] <= 1)),
    }
    return suite.Suite(**(parts | changes))


FIELDS = ["gpu", "driver", "jax", "date", "commit", "dirty", "peak_tflops", "copy_gbs", "rows"]
ALL = ("deep_gemm", "cublaslt", "xla")


def test_run_writes_rows_and_names_what_failed(card, tmp_path, capsys):
    path = tmp_path / "new" / "dense.json"
    options = suite.Options(peers=ALL, reps=10, json=str(path), commit="abc-dirty")
    assert suite.run(synthetic(card), options) == 0
    result = json.loads(path.read_text())
    assert list(result) == FIELDS
    assert (result["commit"], result["dirty"]) == (("abc", True))
    assert [row["case"] for row in result["rows"]] == [{"m": 1, "n": 128, "k": 256}, {"m": 64, "n": 128, "k": 256}]
    for row in result["rows"]:
        assert list(row) == ["op", "case", "us", "limit_us", "peer_us"]
        assert row["us"] == 10.0 and row["peer_us"] == {"deep_gemm": 8.0, "xla": 50.0}
    output = capsys.readouterr()
    assert output.err.count("RuntimeError: not on this machine") == 2
    table = [line for line in output.out.splitlines() if line.rstrip().endswith(("x", "xla")) and "geomean" not in line]
    assert len(table) == 3 and len({len(line) for line in table}) == 1
    assert "0.80x" in table[1] and "5.00x" in table[1]
    assert "all      deep_gemm  geomean 0.800x  least 0.800x  of 2" in output.out


def test_wrong_results_are_not_timed(card, tmp_path, capsys):
    path = tmp_path / "dense.json"
    wrong = synthetic(card, checker=lambda case, _: lambda result: "error 1e+00" if case.m == 1 else None)
    assert suite.run(wrong, suite.Options(peers=(), json=str(path), commit="abc")) == 1
    assert [row["case"]["m"] for row in json.loads(path.read_text())["rows"]] == [64]
    assert "ours {'m': 1, 'n': 128, 'k': 256}: error 1e+00" in capsys.readouterr().err


def test_an_exhausted_budget_keeps_what_there_is(card, capsys):
    assert suite.run(synthetic(card), suite.Options(budget=-1.0, commit="abc")) == 2
    assert "out of time: 2 cases left out" in capsys.readouterr().err


def test_select():
    assert suite.select(DENSE, []) == list(DENSE)
    assert len(suite.select(DENSE, ["m=1"])) == 7
    assert suite.select(DENSE, ["m=1,k=512", "m=64,k=512"]) == [Gemm(1, 32768, 512), Gemm(64, 32768, 512)]


def test_dense_is_the_issue_s_49_shapes():
    assert len(set(DENSE)) == 49
    assert all(case.out_dtype == "bfloat16" for case in DENSE)


def test_limit():
    assert roofline.limit_us(2e12, 1e6, 1000.0, 3000.0) == pytest.approx(2000.0)  # FLOPs
    assert roofline.limit_us(1.0, 3e9, 1000.0, 3000.0) == pytest.approx(1000.0)  # bytes
    assert roofline.limit_us(2e12, 3e9, None, 3000.0) == pytest.approx(1000.0)  # no peak known


def test_peaks(monkeypatch):
    card = Card()
    us = iter([1000.0, 500.0] * 11)  # two kinds of copy: the better one counts
    launches = [Prepared(lambda: card.launch("copy", next(us)), lambda: np.ones(1)) for _ in range(2)]
    monkeypatch.setattr(roofline, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(roofline.peers, "jax_call", lambda *_: launches.pop())
    assert roofline.copy_gbs(card.source, card.flush()) == pytest.approx(2 * (1 << 20) / 500e-6 / 1e9)

    def absent(operands):
        raise ImportError("no torch")

    monkeypatch.setattr(roofline.peers, "cublaslt", absent)
    monkeypatch.setattr(roofline.peers, "ours", lambda _: Prepared(lambda: card.launch("g", 10.0), lambda: np.ones(1)))
    operands = Operands(np.ones((128, 256)), None, np.ones((64, 256)), None)
    tflops = roofline.fp8_tflops(operands, card.source, card.flush())
    assert tflops == pytest.approx(2 * 128 * 64 * 256 / 10e-6 / 1e12)


@pytest.fixture(scope="module")
def small():
    case = Gemm(24, 192, 384)
    operands = dense.operands(case)
    return case, operands, dense.SUITE.ours(operands).result()


def test_guard_accepts_our_result_and_xla_s(small):
    case, operands, result = small
    check = dense.checker(case, operands)
    assert check(result) is None
    (xla,) = [peer for peer in dense.SUITE.peers if peer.name == "xla"]
    assert check(xla.prepare(operands).result()) is None


@pytest.mark.parametrize("wrong", ["zeroed", "shifted", "transposed", "nan", "one row", "block lost"])
def test_guard_refuses_wrong_results(small, wrong):
    case, operands, result = small
    result = np.array(result, np.float32)
    if wrong == "zeroed":
        result[:] = 0
    elif wrong == "shifted":
        result = np.roll(result, 1, axis=1)
    elif wrong == "transposed":
        result = result.T
    elif wrong == "nan":
        result[1, 1] = np.nan
    elif wrong == "one row":  # not among the rows that are compared in full
        full = set(np.linspace(0, case.m - 1, dense.FULL_ROWS).astype(int))
        result[min(set(range(case.m)) - full)] *= 2
    else:
        lost = operands._replace(a_scale=operands.a_scale.at[:, 1].set(0))
        result = dense.SUITE.ours(lost).result()
    assert dense.checker(case, operands)(result) is not None


@pytest.mark.parametrize("module, case", [(wgrad, Gemm(40, 72, 400, "float32")), (linear, Gemm(256, 384, 128))])
def test_guards_of_the_backward_suites(module, case):
    operands = module.operands(case)
    check = module.checker(case, operands)
    (xla,) = [peer for peer in module.SUITE.peers if peer.name == "xla"]
    for prepare in (module.SUITE.ours, xla.prepare):
        prepared = prepare(operands)
        prepared.call()  # adds to a sum of its own
        result = np.array(prepared.result())
        assert check(result) is None
        result[-result.shape[0] // 8 :] = 0
        assert check(result) is not None


def test_a_layer_may_launch_several_kernels(card, capsys):
    layer = [("cast", 10.0), ("gemm", 20.0)]

    def ours(operands):
        return Prepared(lambda: [card.launch(kernel, us) for kernel, us in layer], lambda: np.ones(1))

    for one_kernel, said in ((True, True), (False, False)):
        assert suite.run(synthetic(card, ours=ours, one_kernel=one_kernel), suite.Options(commit="abc")) == 0
        assert ("2 kernels, must be 1" in capsys.readouterr().err) is said


def test_guard_of_fp4_weights():
    case = Gemm(24, 192, 384)
    operands = fp8_fp4.operands(case)
    check = fp8_fp4.checker(case, operands)
    assert check(fp8_fp4.SUITE.ours(operands).result()) is None
    lost = operands._replace(b_scale=operands.b_scale.at[:, 1].set(2.0**-9))
    assert check(fp8_fp4.SUITE.ours(lost).result()) is not None
    assert fp8_fp4.SUITE.peers[0].prepare(operands).result().shape == (24, 192)


def test_operands_are_real_and_repeatable(small):
    case, operands, _ = small
    again = dense.operands(case)
    for first, second in zip(operands, again, strict=True):
        assert np.array_equal(np.asarray(first), np.asarray(second))
    assert np.count_nonzero(np.asarray(operands.a).astype(np.float32)) > 0.9 * case.m * case.k
    assert len(np.unique(np.asarray(operands.a_scale))) > case.m


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_suite(layout):
    """Our result and XLA's pass its guard, a shifted one does not, and a row says the layout."""
    case = Bf16Gemm(24, 192, 384, layout=layout)
    operands = bf16.operands(case)
    check = bf16.checker(case, operands)
    result = bf16.SUITE.ours(operands).result()
    (xla,) = [peer for peer in bf16.SUITE.peers if peer.name == "xla"]
    assert check(result) is None and check(xla.prepare(operands).result()) is None
    assert check(np.roll(result, 1, axis=1)) is not None
    assert case.op == f"bf16_gemm_{layout}" and case.sizes == {"m": 24, "n": 192, "k": 384}


def test_gpu_folder():
    assert environment.gpu_folder("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert environment.gpu_folder("NVIDIA H200") == "h200"


def test_commit_described():
    assert environment.commit("1234-dirty") == ("1234", True)
    assert environment.commit("1234") == ("1234", False)


def test_arguments():
    args = command.parser().parse_args(["dense", "--peers", "--skip-peer", "xla", "--case", "m=1", "--json", "f"])
    assert args.peers and args.skip_peer == ["xla"] and args.case == ["m=1"] and args.reps >= 10
    assert command.parser().parse_args(["--warm-peers", "dense"]).warm_peers


def test_a_dead_jit_worker_is_a_missing_row():
    assert jit.together([jit.worker("chain", JAX_PLATFORMS="cpu")]) == [None]


def test_a_jit_worker_compiles_the_kernel(tmp_path):
    (answer,) = jit.together([jit.worker("compile", JAX_PLATFORMS="cpu", JAX_DEEPGEMM_CACHE_DIR=str(tmp_path))])
    assert answer is not None and answer["first_us"] > answer["again_us"] > 0
    assert any(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("shapes", [chain.TINY, chain.STREAMING])
def test_a_chain_is_launches_with_nothing_between(shapes):
    args = chain.operands(6, dataclasses.replace(shapes, distinct=len(shapes.weights)))
    on = sharding("h100")
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on), args)
    compiled = chain.program(6, shapes).lower(*described).compile(OPTIMISED).as_text()
    assert compiled is not None
    assert compiled.count(LAUNCH) == 6 and moves(compiled) == [] and "input_output_alias={ {}: (0, {}" in compiled


def test_chain_rows(monkeypatch):
    answers = iter([None, {"host_us": 80.0, "further_us": 3.0, "wall_us": 210.0, "kernels_us": 200.0}])
    started = []
    monkeypatch.setattr(jit, "worker", lambda *arguments, **variables: started.append((*arguments, variables)))
    monkeypatch.setattr(jit, "together", lambda workers: [next(answers)])
    monkeypatch.setenv("XLA_FLAGS", "--one --xla_gpu_enable_command_buffer=")
    host, further, wall = jit.chain_rows()  # without command buffers the worker failed
    assert (host["us"], further["us"], wall["us"], wall["limit_us"]) == (4.0, 3.0, 210.0, 200.0)
    assert host["case"] == {"chain": 20} and "command buffers on" in wall["op"]
    off = {"XLA_FLAGS": "--one --xla_gpu_enable_command_buffer="}
    assert started == [("chain", off), ("chain", {"XLA_FLAGS": "--one"})]


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e8m0fnu, jnp.bfloat16, jnp.float32])
def test_host_float32(dtype):
    codes = np.arange(65536, dtype=np.uint16)
    values = {1: codes[:256].astype(np.uint8), 2: codes, 4: codes.astype(np.float32)}[np.dtype(dtype).itemsize]
    array = jnp.asarray(values.view(dtype))
    np.testing.assert_array_equal(host.float32(array), np.asarray(array).astype(np.float32))
