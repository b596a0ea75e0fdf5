"""What the plans' tests ask of every kernel's source: no spills, and the shared memory that Python counts."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Mapping, Sequence

from jax_deepgemm import compile, nvrtc
from jax_deepgemm.launch import Kernel
from jax_deepgemm.ops.casting_plan import cast_block
from jax_deepgemm.target import H100


def check_resources(kernels: Sequence[Kernel], threads_and_pool: Callable[[Kernel], tuple[int, int]]) -> None:
    """No spills, no warnings of ptxas, and a pool of registers that is large enough for setmaxnreg.

    threads_and_pool: of a kernel, the threads of a CTA and the registers that setmaxnreg hands out among them.
    """

    def faults_of(kernel: Kernel) -> list[str]:
        binary, (threads, pool) = compile.compile_kernel(kernel, H100.arch), threads_and_pool(kernel)
        checks = {
            f"{binary.spill_bytes} bytes of spills": binary.spill_bytes == 0,
            f"{binary.local_bytes} bytes of stack": binary.local_bytes == 0,
            f"{binary.registers} registers a thread": pool <= binary.registers * threads <= 65536,
            # Products made to wait for each other, setmaxnreg ignored.
            "a loss that ptxas warns of": "Potential Performance Loss" not in binary.log,
            "waits between products": "is injected" not in binary.log,
        }
        name = compile.describe(kernel, H100.arch)
        return [f"{name}: {fault}\n{binary.log}" for fault, passed in checks.items() if not passed]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as executor:
        faults = [fault for found in executor.map(faults_of, kernels) for fault in found]
    assert not faults, "\n".join(faults)


def threads_of_cast(kernel: Kernel) -> tuple[int, int]:
    """`threads_and_pool` of a cast to FP8: the threads of all CTAs that an SM is to hold at once. No setmaxnreg."""
    return cast_block(kernel.template)[0] * int(dict(kernel.template)["kMinCtas"]), 0


def compile_layouts(expected: Mapping[Kernel, int], end: Callable[[Kernel, str], str]) -> None:
    """Compiles nothing but the assertions that the kernels' shared memory ends where it should.

    expected: bytes of shared memory as Python counts them.
    end: `(kernel, name of its Config)` -> the same in C++.
    """
    source = "template <class> __global__ void probe() {}\nstruct Any;\n"
    for index, (kernel, size) in enumerate(expected.items()):
        config = f"Config{index}"
        source += compile.source(kernel).replace("struct Config ", f"struct {config} ")
        source += f'static_assert({end(kernel, config)} == {size}, "{config}");\n'
    options = (f"--gpu-architecture={H100.arch}", "--std=c++20", "-default-device")
    nvrtc.compile_source(source, "probe.cu", "probe<Any>", (*options, f"--include-path={compile.sources_folder()}"))
