"""What we are compared with. Each peer turns the operands of a case into a call, or raises the reason why it cannot.

Operands are JAX arrays: `a` and `b` in float8_e4m3fn, `a_scale` and `b_scale` in float32, one for each 1x128 and
128x128. A peer that needs another layout makes it here, outside the timed call.
"""

# pyright: reportMissingImports=false
# PyTorch and DeepGEMM are optional, and imported only where they are used.

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.capture import Event
from benchmarks.timing import Call


class Operands(NamedTuple):
    a: Any
    a_scale: Any
    b: Any
    b_scale: Any


class Prepared(NamedTuple):
    """`call` launches once and waits; `result` gives the output of a call, as a JAX or NumPy array."""

    call: Call
    result: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Peer:
    """`checked`: it computes what we compute, so its result is checked too. `kernel`: count only kernels that contain
    this text, for a peer whose own launcher may add a layout kernel. `alone`: it is prepared while no other is, since
    its compiler or its library is not made for threads. `takes`: the cases to run it on."""

    name: str
    prepare: Callable[[Any], Prepared]  # from the suite's operands
    checked: bool = True
    kernel: str = ""
    alone: bool = False
    takes: Callable[[Any], bool] = lambda case: True

    def counts(self, event: Event) -> bool:
        return self.kernel in event.name


def jax_call(function: Callable, *operands: Any) -> Prepared:
    """A compiled JAX function on fixed operands."""
    import jax

    # A function of its own, since jit would remember a lowering with another configuration.
    compiled = jax.jit(lambda *xs: function(*xs)).lower(*operands).compile()
    return Prepared(lambda: jax.block_until_ready(compiled(*operands)), lambda: compiled(*operands))


def transposed(scale: Any) -> Any:
    """Another array, made on the host: for something so small XLA would compile longest."""
    import jax
    import numpy as np

    return jax.device_put(np.ascontiguousarray(np.asarray(scale).T))


def ours(operands: Operands) -> Prepared:
    """The A scales arrive with M fastest, as a producer in the same program writes them: `.T` is then free."""
    import jax_deepgemm

    def fp8_gemm_nt(a, a_scale_t, b, b_scale):
        return jax_deepgemm.fp8_gemm_nt((a, a_scale_t.T), (b, b_scale))

    return jax_call(fp8_gemm_nt, operands.a, transposed(operands.a_scale), operands.b, operands.b_scale)


def xla(operands: Operands) -> Prepared:
    """What a JAX user writes without us."""
    from jax_deepgemm.doctor import dequantise_and_dot

    return jax_call(dequantise_and_dot, *operands)


def to_torch(array: Any) -> Any:
    """A copy of a JAX array of float8_e4m3fn, bfloat16 or float32 as a torch tensor on the same GPU."""
    import jax
    import jax.numpy as jnp
    import torch

    if array.dtype != jnp.float8_e4m3fn:
        return torch.from_dlpack(jax.block_until_ready(array)).clone()
    bits = jax.lax.bitcast_convert_type(array, jnp.uint8)  # DLPack's FP8 types are newer than some of its readers
    return torch.from_dlpack(jax.block_until_ready(bits)).clone().view(torch.float8_e4m3fn)


def torch_prepared(launch: Callable[[], Any]) -> Prepared:
    import torch

    def call() -> Any:
        out = launch()
        torch.cuda.synchronize()
        return out

    def result() -> Any:
        import jax

        return jax.dlpack.from_dlpack(call().float())

    return Prepared(call, result)


def m_fastest(scale: Any) -> Any:
    """The A scales as DeepGEMM's SM90 kernels read them: M fastest, rows of M padded to 16 bytes."""
    import torch

    m, k_blocks = scale.shape
    padded = torch.zeros((k_blocks, -(-m // 4) * 4), dtype=torch.float32, device="cuda")
    transposed = padded.t()[:m]
    transposed.copy_(scale)
    return transposed


def deep_gemm_call(a: Any, a_scale: Any, b: Any, b_scale: Any) -> Callable[[], Any]:
    import deep_gemm
    import torch

    d = torch.empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16, device="cuda")

    def launch() -> Any:
        deep_gemm.fp8_gemm_nt((a, a_scale), (b, b_scale), d)
        return d

    return launch


def deep_gemm(operands: Operands) -> Prepared:
    a, a_scale, b, b_scale = map(to_torch, operands)
    return torch_prepared(deep_gemm_call(a, m_fastest(a_scale), b, b_scale))


def cublaslt(operands: Operands) -> Prepared:
    """No block scales at all: one scale of 1 for each operand."""
    import torch

    a, b = to_torch(operands.a), to_torch(operands.b)
    one = torch.ones((), dtype=torch.float32, device="cuda")
    return torch_prepared(
        functools.partial(
            torch._scaled_mm, a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    )


LARGE_M = 1024  # for fewer rows nobody would dequantise all weights first

PEERS = (
    Peer("deep_gemm", deep_gemm, kernel="fp8_gemm", alone=True),
    Peer("cublaslt", cublaslt, checked=False, alone=True),
    Peer("xla", xla, takes=lambda case: case.m >= LARGE_M),
)
