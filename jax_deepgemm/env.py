"""The environment variables: one table, read when used, so that a test or a notebook may set them late."""

from __future__ import annotations

import dataclasses
import os

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("", "0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class Variable:
    """One environment variable: its full name, its default as a user would write it, and what it does."""

    name: str
    default: str
    meaning: str

    def text(self) -> str:
        return os.environ.get(self.name, self.default)

    def flag(self) -> bool:
        value = self.text().strip().lower()
        if value not in _TRUE + _FALSE:
            raise ValueError(f"`{self.name}` must be one of {_TRUE + _FALSE}, got {self.text()!r}")
        return value in _TRUE


CACHE_DIR = Variable(
    "JAX_DEEPGEMM_CACHE_DIR",
    "${XDG_CACHE_HOME:-~/.cache}/jax_deepgemm",
    'Folder of compiled kernels and of what `tune` found; "" or "0" turns the disk cache off.',
)
USE_TUNED = Variable("JAX_DEEPGEMM_USE_TUNED", "1", "Use the configurations that `tune` stored in the cache folder.")
PRINT_CONFIGS = Variable(
    "JAX_DEEPGEMM_PRINT_CONFIGS", "0", "Print the launch chosen for every operation that is lowered to a kernel."
)
PTXAS_REPORT = Variable(
    "JAX_DEEPGEMM_PTXAS_REPORT", "0", "Print registers, spills, stack and the ptxas log of every kernel used."
)
DUMP_DIR = Variable(
    "JAX_DEEPGEMM_DUMP_DIR",
    "",
    "Write source, PTX and cubin of every kernel used into this folder, and its SASS if nvdisasm or cuobjdump is "
    "found. Cached kernels are compiled again for it.",
)
LINE_INFO = Variable(
    "JAX_DEEPGEMM_LINE_INFO", "0", "Compile with line information, for profilers and compute-sanitizer."
)
CHECK_LOCAL_MEMORY = Variable(
    "JAX_DEEPGEMM_CHECK_LOCAL_MEMORY", "0", "Raise CompileError for a kernel that spills or uses local memory."
)

VARIABLES = (CACHE_DIR, USE_TUNED, PRINT_CONFIGS, PTXAS_REPORT, DUMP_DIR, LINE_INFO, CHECK_LOCAL_MEMORY)
