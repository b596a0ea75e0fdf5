"""The guards of the grouped suites: what is right passes, what is not does not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import all as all_suites
from benchmarks import k_grouped, m_grouped_fp8_fp4, moe_mlp, ragged_dot
from tests.cases import KGrouped, MGrouped, MoeMlp, RaggedDot


@pytest.mark.parametrize(
    "module, case",
    [
        (ragged_dot, RaggedDot(4, 256, 136, 256)),
        (ragged_dot, RaggedDot(4, 256, 136, 256, fp8=True)),
        (moe_mlp, MoeMlp(32, 128, 256, 4, 2)),
    ],
    ids=str,
)
def test_guards_of_the_grouped_suites(module, case):
    operands = module.operands(case)
    check = module.checker(case, operands)
    for prepare in (module.SUITE.ours, *(peer.prepare for peer in module.SUITE.peers)):
        prepared = prepare(operands)
        prepared.call()
    result = np.array(module.SUITE.ours(operands).result())
    assert check(result) is None
    result[-result.shape[0] // 8 :] = 0
    assert check(result) is not None


@pytest.mark.parametrize("kind", ["fp8", "bf16"])
def test_k_grouped_suite(kind):
    """Our result and XLA's pass its guard; one whose groups are exchanged, or without its sum, does not."""
    case = KGrouped(kind, 3, 40, 72, 1280)
    operands = k_grouped.operands(case)
    assert sum(operands.sizes) == case.k and not any(size % 128 for size in operands.sizes)
    check = k_grouped.checker(case, operands)
    (xla,) = [peer for peer in k_grouped.SUITE.peers if peer.name == "xla"]
    result = np.array(k_grouped.SUITE.ours(operands).result())
    assert check(result) is None and check(xla.prepare(operands).result()) is None
    assert check(result[::-1]) is not None and check(result - np.asarray(operands.c)) is not None
    assert case.sizes == {"groups": 3, "m": 40, "n": 72, "k": 1280}


def test_m_grouped_fp8_fp4_suite():
    """Our result passes its guard; with two scales exchanged it does not."""
    case = MGrouped("m_grouped_fp8_fp4_gemm_nt_masked", 2, 12, 136, 256, drawn=True)
    operands = m_grouped_fp8_fp4.operands(case)
    check = m_grouped_fp8_fp4.checker(case, operands)
    assert check(m_grouped_fp8_fp4.SUITE.ours(operands).result()) is None
    moved = operands._replace(b_scale=operands.b_scale[::-1])
    assert check(m_grouped_fp8_fp4.SUITE.ours(moved).result()) is not None
    assert m_grouped_fp8_fp4.SUITE.peers[0].prepare(operands).result().shape == (2, 512, 136)


def test_all_suites_in_order():
    from benchmarks.suites import SUITES

    warmed = all_suites.warming({name: SUITES[name] for name in ("dense", "cast", "masked")})
    assert [command[3:5] for command in warmed] == [["dense", "--warm-peers"], ["masked", "--warm-peers"]]
    dense, jit = all_suites.timing(["dense", "jit"], "there", ["--commit", "x"], True)
    assert dense[3:] == ["dense", "--peers", "--json", "there/dense.json", "--commit", "x"]
    assert jit[3:] == ["jit", "--json", "there/jit.json", "--commit", "x"]
    (masked,) = all_suites.timing(["masked"], "there", [], True, ["xla"])
    assert masked[3:7] == ["masked", "--peers", "--skip-peer", "xla"]


def test_a_suite_goes_to_a_gpu_that_is_free(tmp_path):
    """A GPU that is in use already, as a folder shows, fails the suite."""
    code = "import os, sys; os.mkdir(sys.argv[2] + os.environ['CUDA_VISIBLE_DEVICES'])"
    code += "; import time; time.sleep(0.1); os.rmdir(sys.argv[2] + os.environ['CUDA_VISIBLE_DEVICES'])"
    commands = [[sys.executable, "-c", code, name, f"{tmp_path}/"] for name in "abcdef"]
    assert all_suites.run(commands, ["3", "7"]) == []
    (tmp_path / "5").mkdir()
    assert all_suites.run(commands[:2], ["5"]) == ["a", "b"]
