"""The user's knobs. They are part of `jax.jit`'s cache key: changing one traces and compiles again.

Every setter can be called, or used in a `with` statement:

    set_num_sms(100)            # from here on, in every thread
    with set_num_sms(100): ...  # in the block, in this thread

Inside such a block a plain call holds for this thread until the block ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from typing import TYPE_CHECKING, Any

import jax

from jax_deepgemm import cache, checks

if TYPE_CHECKING:
    from jax_deepgemm.target import Target


@dataclasses.dataclass(frozen=True)
class Config:
    """The knobs that decide what is compiled.

    Attributes:
      target: the GPU to compile for; None asks the devices that are lowered for.
      num_sms: the most SMs that a persistent kernel takes, so that some are left to communication; None: all.
      pdl: launch kernels by programmatic dependent launch, so that one's prologue overlaps its predecessor's end.
      tunings: how often `tune` has stored what it found, in this process. What was jitted before is then lowered anew.
    """

    target: Target | None = None
    num_sms: int | None = None
    pdl: bool = True
    tunings: int = 0


_context = jax.make_user_context(Config())
_lock = threading.Lock()
_calls: list[Setting] = []  # those in force for every thread, oldest first
_tunings = 0
_thread = threading.local()  # .depth: how many `with` blocks of our settings this thread is in


def current() -> Config:
    """The knobs as this thread sees them."""
    return _context.value


class Setting:
    """A change of one knob: in force from its making, confined to the block when used in a `with` statement."""

    def __init__(self, **change: Any):
        self._change = change
        self._local: list[Any] = []  # contexts of this thread, to be left in reverse
        if getattr(_thread, "depth", 0):
            self._enter()
        else:
            with _lock:
                _calls.append(self)
                _set_global()

    def __enter__(self) -> None:
        self._withdraw()
        self._enter()
        _thread.depth = getattr(_thread, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        _thread.depth -= 1
        self._local.pop().__exit__(None, None, None)

    def _enter(self) -> None:
        context = _context(dataclasses.replace(current(), **self._change))
        context.__enter__()
        self._local.append(context)

    def _withdraw(self) -> None:
        """Takes back what making it did. Another thread may have set another knob since, which stays."""
        if self._local:
            self._local.pop().__exit__(None, None, None)
        with _lock:
            if self in _calls:
                _calls.remove(self)
                _set_global()


def count_tuning() -> None:
    """Makes jit forget the choices of before; inside a `with` block of our settings, when that ends."""
    global _tunings
    with _lock:
        _tunings += 1
        _set_global()


def _set_global() -> None:
    change: dict[str, Any] = {"tunings": _tunings}
    for call in _calls:
        change |= call._change
    _context.set_global(Config(**change))


def set_num_sms(num_sms: int | None) -> Setting:
    """Bounds the SMs that a persistent kernel takes; None takes all of them.

    Raises:
      TypeError: `num_sms` is not an integer.
      ValueError: it is not positive.

    >>> with set_num_sms(100): pass  # what is traced here leaves 32 of an H100's to others
    """
    if num_sms is not None:
        num_sms = checks.integer("num_sms", num_sms, "a positive integer or None", 1)
    return Setting(num_sms=num_sms)


def set_pdl(enabled: bool) -> Setting:
    """Turns programmatic dependent launch on or off: whether a kernel's beginning overlaps its predecessor's end.

    Raises:
      TypeError: `enabled` is neither True nor False.

    >>> with set_pdl(False): pass  # what is traced here
    """
    return Setting(pdl=checks.flag("enabled", enabled))


def set_target(target: Target | None) -> Setting:
    """Sets the GPU to compile for, where no device can be asked (AOT, export) or another one is meant; None asks.

    Raises:
      TypeError: `target` is neither a Target nor None.

    >>> with set_target(H100): pass  # what is lowered for CUDA here needs no GPU
    """
    from jax_deepgemm.target import Target  # which imports this module

    if target is not None and not isinstance(target, Target):
        raise TypeError(f"`target` must be a Target or None, got {target!r}")
    return Setting(target=target)


def set_cache_folder(folder: str | os.PathLike[str] | None) -> contextlib.AbstractContextManager[Any]:
    """Sets the folder of compiled kernels, over JAX_DEEPGEMM_CACHE_DIR; "" turns the disk cache off, None undoes it.

    It holds for the process, also in a `with` statement, and is no part of jit's cache key.

    Raises:
      TypeError: `folder` is neither a path nor None.

    >>> with set_cache_folder(""): pass  # nothing is kept on disk here
    """
    path = os.fspath(folder) if isinstance(folder, (str, os.PathLike)) else folder
    if not isinstance(path, str | None):
        checks.fail(TypeError, "folder", "a path or None", checks.shown(folder))
    undo = contextlib.ExitStack()
    undo.callback(cache.override, cache.override(path))
    return undo
