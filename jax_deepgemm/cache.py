"""The disk cache of compiled kernels: one file an entry, safe for many processes and for shared file systems.

An entry is written under a temporary name and renamed, so a reader sees all of it or nothing. Its checksum catches
what a rename cannot (a full disk, a crash): such an entry reads as absent and is written again.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import uuid

from jax_deepgemm import env
from jax_deepgemm.warn import warn_once

_MAGIC = b"jax_deepgemm kernel 1\n"
_override: str | None = None


def folder() -> pathlib.Path | None:
    """The folder of compiled kernels, None if the cache is off. It need not exist yet."""
    text = _override if _override is not None else os.environ.get(env.CACHE_DIR.name)
    if text is not None:
        return None if text.strip() in ("", "0") else pathlib.Path(text).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return (pathlib.Path(base) if os.path.isabs(base) else pathlib.Path("~/.cache").expanduser()) / "jax_deepgemm"


def override(text: str | None) -> str | None:
    """Sets the folder for this process, over the environment (None: the environment's); returns the previous one."""
    global _override
    previous, _override = _override, text
    return previous


def load(name: str) -> bytes | None:
    """The entry `name`, None if there is none or it is damaged."""
    where = folder()
    if where is None:
        return None
    try:
        data = (where / name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        _warn(where, e)
        return None
    header = len(_MAGIC) + hashlib.sha256().digest_size
    payload = data[header:]
    return payload if data[:header] == _MAGIC + hashlib.sha256(payload).digest() else None


def store(name: str, payload: bytes) -> None:
    """Writes the entry `name`. A folder that cannot be written costs one warning, never an error."""
    where = folder()
    if where is None:
        return
    try:
        where.mkdir(parents=True, exist_ok=True)
        # Not tempfile, whose files only their owner may read: a folder can be shared.
        temporary = where / f".{name}.{uuid.uuid4().hex}"
        try:
            temporary.write_bytes(_MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, where / name)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        _warn(where, e)


def _warn(where: pathlib.Path, error: OSError) -> None:
    warn_once(
        f"jax_deepgemm cannot use its cache folder {where} ({error.strerror}): kernels are compiled anew in every "
        f"process. Set {env.CACHE_DIR.name} to a folder that can be written, or to 0 to do without one."
    )
