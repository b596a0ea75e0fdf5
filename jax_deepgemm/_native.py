"""The compiled extension, and its registration with XLA."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import pathlib
import re
import sys
import threading
from types import ModuleType

import jax

TARGET = "jax_deepgemm.launch"
_EXTENSION = "jax_deepgemm._ffi"

_lock = threading.Lock()
_registered = False


def load() -> ModuleType:
    """The module `jax_deepgemm._ffi`.

    Raises:
      ImportError: it is not built, or it is built for a newer jaxlib than the one that runs.
    """
    try:
        extension = _import_extension()
    except ImportError as error:
        raise ImportError(
            f"the extension of jax_deepgemm cannot be loaded ({error}); install the package with `pip install .`"
        ) from error
    _check_version(tuple(extension.FFI_API_VERSION), running_api_version())
    return extension


def _import_extension() -> ModuleType:
    try:
        return importlib.import_module(_EXTENSION)
    except ModuleNotFoundError:
        # Python started in a checkout finds the sources first; the extension is then the installed package's.
        path = _installed_extension()
        if path is None:
            raise
        spec = importlib.util.spec_from_file_location(_EXTENSION, path)
        assert spec is not None and spec.loader is not None
        extension = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(extension)
        sys.modules[_EXTENSION] = extension
        return extension


def _installed_extension() -> pathlib.Path | None:
    try:
        files = importlib.metadata.files("jax-deepgemm") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    found = [file for file in files if file.name.startswith("_ffi.") and file.name.endswith(suffixes)]
    return pathlib.Path(str(found[0].locate())) if found else None


def running_api_version() -> tuple[int, int] | None:
    """(major, minor) of the XLA FFI of the running jaxlib, or None if it ships no headers to tell."""
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    try:
        text = header.read_text()
    except OSError:
        return None
    major, minor = (re.search(rf"#define\s+XLA_FFI_API_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR"))
    return (int(major[1]), int(minor[1])) if major and minor else None


def _check_version(built: tuple[int, ...], running: tuple[int, int] | None) -> None:
    # XLA takes handlers of its own or an older minor version. It must not be offered others: one refused while the
    # backends start takes the whole CUDA backend down.
    if running is not None and (built[0] != running[0] or built[1] > running[1]):
        jaxlib = importlib.metadata.version("jaxlib")
        raise ImportError(
            f"the extension of jax_deepgemm is built for version {built[0]}.{built[1]} of the XLA FFI, but jaxlib "
            f"{jaxlib} has {running[0]}.{running[1]}; upgrade jaxlib, or reinstall jax_deepgemm beside it"
        )


def ensure_registered() -> None:
    """Registers the custom call `jax_deepgemm.launch` for CUDA, once; cheap and thread-safe.

    Needs no GPU: before JAX's CUDA plugin is there, the registration waits for it.

    Raises:
      ImportError: as `load`.
    """
    global _registered
    with _lock:
        if _registered:
            return
        extension = load()
        # The type first: XLA refuses a handler whose state it does not know.
        jax.ffi.register_ffi_type(f"{TARGET}.state", extension.launch_state_type(), platform="CUDA")
        jax.ffi.register_ffi_target(TARGET, extension.launch_handlers(), platform="CUDA", api_version=1)
        _registered = True
