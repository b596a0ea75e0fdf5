"""A problem that ends inside tiles everywhere, for each kind of configuration, small enough for tools that are slow."""

from __future__ import annotations

import functools
from typing import Any

from jax_deepgemm import fp8_gemm_nt
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.resident_config import ResidentConfig
from tests import helpers
from tests.bf16 import GEMMS
from tests.gpu import bf16_problems
from tests.gpu.problems import problem

SHORT_K = 208  # of which a panel fits


def small(config: Any) -> tuple[Any, Any]:
    """The GEMM that takes the configuration, and its operands with their oracle."""
    if isinstance(config, Bf16GemmConfig):
        return GEMMS[config.layout], bf16_problems.problem(config.layout, 80, 264, 328)
    if isinstance(config, GemmConfig1d1d):
        return functools.partial(fp8_gemm_nt, recipe=helpers.ROWS), problem(77, 264, 400, recipe=helpers.ROWS)
    return fp8_gemm_nt, problem(77, 264, SHORT_K if isinstance(config, ResidentConfig) else 400)
