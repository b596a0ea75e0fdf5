"""Operands and float64 oracles of BF16 GEMMs, and tile configurations of every kind to force upon them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import numpy as np

from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from tests import bf16
from tests.gpu.problems import Problem

LARGEST = (1024, 2112, 7168)  # M, N, K


@dataclasses.dataclass(frozen=True)
class Bf16Problem:
    """`product` and `norms` are those of `Problem`; `k` is at least 1."""

    a: jax.Array
    b: jax.Array
    product: np.ndarray
    norms: np.ndarray
    k: int

    c: ClassVar[Any] = Problem.c
    check: ClassVar[Any] = Problem.check


def problem(layout: str, m: int, n: int, k: int) -> Bf16Problem:
    """Cut from the top left of one pair of matrices."""
    a, b = (x[:rows, :k] for x, rows in zip(_matrices(), (m, n), strict=True))
    a_wide, b_wide = (x.astype(np.float64) for x in (a, b))
    norms = np.linalg.norm(a_wide, axis=1)[:, None] * np.linalg.norm(b_wide, axis=1)
    a, b = (jax.device_put(np.ascontiguousarray(x)) for x in bf16.turned(layout, a, b))
    return Bf16Problem(a, b, a_wide @ b_wide.T, norms, max(k, 1))


@functools.cache
def _matrices() -> list[np.ndarray]:
    m, n, k = LARGEST
    return [np.asarray(x) for x in bf16.matrices("nt", m, n, k, seed=7)]


CONFIGURATIONS = (
    Bf16GemmConfig(64, 48, stage_blocks=4),
    Bf16GemmConfig(64, 256),
    Bf16GemmConfig(128, 16, stage_blocks=4, eager=True),
    Bf16GemmConfig(128, 112, stage_blocks=2),
    Bf16GemmConfig(128, 192, group=2),
    Bf16GemmConfig(128, 256),
    Bf16GemmConfig(192, 176),
    Bf16GemmConfig(192, 80, group=1),
    Bf16GemmConfig(256, 128, least_stages=3),
    Bf16GemmConfig(256, 144),
    Bf16GemmConfig(64, 48, split_k=3, stage_blocks=2),
    Bf16GemmConfig(64, 256, split_k=8),
    Bf16GemmConfig(128, 144, split_k=2),
    Bf16GemmConfig(192, 192, split_k=2),
    Bf16GemmConfig(256, 144, split_k=2, eager=True),
    Bf16GemmConfig(128, 256, cluster_rows=2),
    Bf16GemmConfig(128, 192, cluster_columns=4),
    Bf16GemmConfig(192, 64, cluster_rows=2, stage_blocks=2),
    Bf16GemmConfig(256, 128, cluster_columns=2),
    Bf16GemmConfig(64, 8, swap=True, eager=True),
    Bf16GemmConfig(64, 24, swap=True, stage_blocks=4),
    Bf16GemmConfig(128, 128, swap=True),
    Bf16GemmConfig(192, 24, swap=True),
    Bf16GemmConfig(256, 40, swap=True),
    Bf16GemmConfig(64, 8, swap=True, split_k=8),
    Bf16GemmConfig(128, 64, swap=True, split_k=2, stage_blocks=2),
    Bf16GemmConfig(64, 16, swap=True, cluster_rows=2),
    Bf16GemmConfig(128, 48, swap=True, cluster_columns=4, stage_blocks=2),
)
# One of each kind, for tests that need not see all.
FEW = (
    Bf16GemmConfig(128, 256),
    Bf16GemmConfig(192, 176),
    Bf16GemmConfig(256, 128, cluster_columns=2),
    Bf16GemmConfig(128, 144, split_k=2),
    Bf16GemmConfig(128, 24, swap=True, stage_blocks=2),
    Bf16GemmConfig(64, 8, swap=True, split_k=8),
)
