from __future__ import annotations

import pytest
from jax.sharding import PartitionSpec as P

from jax_deepgemm.factors import Factors, assign, spec

GEMM = Factors(
    "m (kb ki), m kb, (nb ni) (kb ki), nb kb -> m (nb ni)",
    sizes=(("ki", 128), ("ni", 128)),
    summed=("kb",),
    whole=("ki", "ni"),
)
MESH = {"x": 4, "y": 2}


def chosen(a, b, result, *, m=64, n=1024, k=1024):
    shapes = [(m, k), (m, k // 128), (n, k), (n // 128, k // 128)]
    operands = list(zip(shapes, (a, a, b, b), strict=True))
    return assign(GEMM, MESH, operands, [((m, n), result)])


def test_the_rule_is_parsed():
    assert GEMM.operands[2] == (("nb", "ni"), ("kb", "ki"))
    assert GEMM.results == ((("m",), ("nb", "ni")),)
    assert list(GEMM.foldable()) == ["m", "nb"]


@pytest.mark.parametrize(
    "a, b, result, wanted",
    [
        (P("x"), P(), P("x"), {"m": ("x",)}),
        (P("x"), P("y"), P("x", "y"), {"m": ("x",), "nb": ("y",)}),
        (P(None, "x"), P(None, "x"), P(), {"kb": ("x",)}),
        (P(None, ("x", "y")), P(), P(), {"kb": ("x", "y")}),
        (P("x", "y"), P(None, "y"), P("x"), {"m": ("x",), "kb": ("y",)}),
        (P("x"), P(None, "x"), P("x"), {"m": ("x",)}),  # the weights are gathered, not the activations moved
        (P(None, "x"), P(None, "x"), P("x"), {"kb": ("x",)}),  # a reduce-scatter
        (P("x"), P("x"), P("x"), {"m": ("x",)}),
        (P("x"), P("x"), P(None, "x"), {"nb": ("x",)}),
        (P(), P(), P("x", "y"), {"m": ("x",), "nb": ("y",)}),  # each computes its part of the result
    ],
)
def test_assign(a, b, result, wanted):
    assert chosen(a, b, result) == wanted


def test_no_block_is_cut():
    assert chosen(P(), P("x"), P(None, "x"), n=256) == {}
    assert chosen(P(), P(("y", "x")), P(None, ("y", "x")), n=256) == {"nb": ("y",)}
    assert chosen(P(None, "x"), P(None, "x"), P(), k=384) == {}
    assert chosen(P("x"), P(), P("x"), m=6) == {}


def test_specs_of_data_and_scale_agree():
    axes = {"kb": ("x",), "m": ("y",)}
    assert [spec(dims, axes) for dims in GEMM.operands[:2]] == [P(("y",), ("x",)), P(("y",), ("x",))]


def test_shardy_gets_no_factor_of_one_inside_brackets():
    rule, keywords = GEMM.shardy([(64, 128), (64, 1), (256, 128), (2, 1)])
    assert rule == "m ki,m kb,(nb ni) ki,nb kb->m (nb ni)"
    assert keywords == {"reduction_factors": ("kb",), "need_replication_factors": ("ki", "ni"), "ni": 128}


def test_whole_factors_of_results_alone_need_no_size():
    factors = Factors("t k -> t k, g", whole=("t", "k", "g"))
    assert assign(factors, {"x": 2}, [((4, 2), P())], [((4, 2), P()), ((6,), P("x"))]) == {}
