"""Running a function on the GPU so that it proves something: by kernels, and into memory that held NaN."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np

from jax_deepgemm import _native
from jax_deepgemm.heuristics import sm90_1d1d, sm90_bf16, sm90_fp4, sm90_resident
from jax_deepgemm.heuristics.bf16_config import Bf16GemmConfig
from jax_deepgemm.heuristics.config_1d1d import GemmConfig1d1d
from jax_deepgemm.heuristics.fp4_config import Fp4GemmConfig
from jax_deepgemm.heuristics.fp4_swapped_config import Fp4SwappedConfig
from jax_deepgemm.heuristics.gemm_config import GemmConfig

_CALL = f'custom_call_target="{_native.TARGET}"'


@contextlib.contextmanager
def forced(config: GemmConfig | Fp4SwappedConfig | None) -> Iterator[None]:
    """Every GEMM that is lowered in the block takes this configuration; None leaves the choice to the heuristics."""
    if config is None:
        yield
        return
    if isinstance(config, Bf16GemmConfig):
        with mock.patch.object(sm90_bf16, "bf16_gemm", lambda layout, *_: dataclasses.replace(config, layout=layout)):
            yield
        return
    module, name = sm90_resident, "fp8_gemm"
    if isinstance(config, Fp4GemmConfig | Fp4SwappedConfig):
        module, name = sm90_fp4, "fp8_fp4_gemm"
    elif isinstance(config, GemmConfig1d1d):
        module = sm90_1d1d
    with mock.patch.object(module, name, lambda *_: config):
        yield


def hlo(compiled: jax.stages.Compiled) -> str:
    text = compiled.as_text()
    assert text is not None
    return text


def launches(compiled: jax.stages.Compiled) -> int:
    """How many kernels of ours a compiled function launches."""
    return hlo(compiled).count(_CALL)


class Native:
    """A compiled function whose results are written to buffers full of NaN: what a kernel leaves out stays NaN."""

    def __init__(self, compiled: jax.stages.Compiled, results: Any):
        self.compiled, self._results = compiled, results

    def __call__(self, *args: Any) -> Any:
        return self.compiled(poison(self._results), *args)

    def many(self, times: int, *args: Any) -> list[Any]:
        """The results of calls that follow each other as closely as they can."""
        buffers = jax.block_until_ready([poison(self._results) for _ in range(times)])
        return [self.compiled(buffer, *args) for buffer in buffers]


def native(
    function: Callable[..., Any],
    *args: Any,
    calls: int | None = 1,
    config: GemmConfig | Fp4SwappedConfig | None = None,
    options: dict[str, Any] | None = None,
) -> Native:
    """`function` compiled for arguments like these, with `calls` launches of our kernels; None: with any number."""
    # A function of its own, since jit would remember a lowering with another configuration.
    results = jax.eval_shape(lambda *xs: function(*xs), *args)

    def poisoned(before: Any, *xs: Any) -> Any:
        del before
        return function(*xs)

    # XLA lets a result take the place of a donated argument.
    with forced(config):
        lowered = jax.jit(poisoned, donate_argnums=0, keep_unused=True).lower(results, *args)
    compiled = lowered.compile(compiler_options=options)
    found = launches(compiled)
    assert found == calls if calls is not None else found, f"{found} launches instead of {calls}"
    return Native(compiled, results)


def poison(results: Any) -> Any:
    """Arrays of NaN. From NumPy: a kernel that fills them would have to be compiled for every shape."""
    return jax.tree.map(lambda r: jax.device_put(np.full(r.shape, np.nan, r.dtype)), results)
