"""`tune`: measures the configurations of the GEMMs in a function on this machine's GPU, and keeps the best."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from jax_deepgemm import cache, checks, compile, config, tuned
from jax_deepgemm.calls import Call, calls
from jax_deepgemm.target import Target
from jax_deepgemm.trial import fastest


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What `tune` found for one operation and its operands' types.

    Attributes:
      call: the operation, its operands and results.
      config: the fastest configuration, which `config=` of the operation takes.
      us: its microseconds, of one call among many in a row, with operands that are not in the L2 cache.
      heuristic: the configuration that is taken without tuning.
      heuristic_us: its microseconds, measured beside the other.
      measured: False where an earlier `tune` had stored the rest.
    """

    call: str
    config: Any
    us: float
    heuristic: Any
    heuristic_us: float
    measured: bool

    def __str__(self) -> str:
        gain = f"{self.us:.1f} us, the heuristics' choice {self.heuristic_us:.1f} us"
        return f"{self.call}: {self.config}, {gain}{'' if self.measured else ' (stored)'}"


def tune(function: Callable[..., Any], *args: Any, candidates: int = 16, again: bool = False) -> list[Tuning]:
    """Finds the fastest configurations for the GEMMs in `function(*args)` on the first GPU, and stores them.

    function: what JAX can trace: one of this package's functions, a model, the gradient of a loss. It is not run. GEMMs
        that are given a `config` are left alone.
    args: its arguments, or `jax.ShapeDtypeStruct`s like them. Inside `shard_map` a GEMM is tuned for what one device
        has; for `jit` over several devices, call `tune` with operands of one device's sizes.
    candidates: how many configurations to measure of each GEMM, those that the heuristics like best.
    again: measure also what is stored already.

    Returns a `Tuning` for each GEMM that differs from the others in sizes, dtypes or settings; it prints well.

    The choices go to files in the cache folder (see `set_cache_folder`), from which every process with the same folder
    takes them from then on, in place of the heuristics' choice; in this process, jitted functions are compiled again.
    They hold for the sizes, dtypes and settings tuned, for GPUs like this one, and until the kernel's source changes.
    Delete the files `tuned-*`, or set JAX_DEEPGEMM_USE_TUNED=0, to be rid of them. Processes that must agree bit for
    bit need the same files: configurations may differ in how they sum.

    A GEMM takes seconds, most of them to compile. Nothing else should use the GPU meanwhile.

    Raises RuntimeError where there is no GPU with kernels of ours, or no cache folder, ValueError for wrong arguments,
    and whatever `function` raises when it is traced.

    >>> a, b = per_token_cast_to_fp8(x), per_block_cast_to_fp8(w)
    >>> for found in tune(fp8_gemm_nt, a, b): print(found)
    """
    candidates = checks.integer("candidates", candidates, "a positive integer", 1)
    target = _target()
    if cache.folder() is None:
        raise RuntimeError("`tune` stores its choices in the cache folder, which is turned off: see `set_cache_folder`")
    traced = calls(jax.make_jaxpr(function)(*args).jaxpr)
    distinct = dict.fromkeys(call for call in traced if _with_choice(call))  # each once, in order
    found = [_tuned(call, target, candidates, again) for call in distinct]
    results = [tuning for tuning in found if tuning is not None]
    if any(tuning.measured for tuning in results):
        config.count_tuning()
    return results


def _target() -> Target:
    device = jax.devices()[0]
    target = Target.from_device(device)
    if target is None:
        raise RuntimeError(
            f"`tune` measures on a GPU that there are kernels for (compute capability 9.0), got {device.device_kind}"
        )
    return target


def _with_choice(call: Call) -> bool:
    """Whether there are configurations to choose among."""
    static = all(isinstance(size, int) for shape, _ in call.operands for size in shape)
    return call.op.ranked is not None and dict(call.params)["config"] is None and static


def _tuned(call: Call, target: Target, candidates: int, again: bool) -> Tuning | None:
    """None where no kernel takes the call."""
    op, params, settings = call.op, dict(call.params), call.settings
    if settings.target not in (None, target):
        raise ValueError(f"`set_target` must name this GPU, {target}, for `tune`, got {settings.target}")
    avals, out_avals = call.avals()
    launch = op.plan(avals, out_avals, params, target, settings)
    if launch is None or op.ranked is None:
        return None
    name = tuned.key(op, launch, avals, out_avals, params, target, settings)
    text = checks.call(op.name, avals, out_avals)
    entry = None if again else tuned.load(op, name)
    if entry is not None:
        return Tuning(text, entry.config, entry.us, entry.heuristic, entry.heuristic_us, measured=False)
    configs = list(op.ranked(avals, out_avals, params, target, settings)[:candidates])
    launches = [op.plan(avals, out_avals, params | {"config": c}, target, settings) for c in configs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda x: compile.compile_kernel(x.kernel, target.arch), launches))
    fixed = {name: value for name, value in params.items() if name != "config"}
    bind = functools.partial(call.primitive.bind, settings=settings, partitioned=None, **fixed)
    best, us, heuristic_us = fastest(op, bind, avals, params, configs)
    entry = tuned.Entry(configs[best], us, configs[0], heuristic_us)
    tuned.store(name, entry, f"{text} on {target.name}")
    return Tuning(text, entry.config, us, entry.heuristic, heuristic_us, measured=True)
