"""What `tune` found, kept in the cache folder: an entry for each operation, operand types, target and kernel source.

An entry only ever replaces the choice of the heuristics. One that is missing, damaged, written for other sources or out
of place is as none, so that a plan never fails for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from jax_deepgemm import cache, checks, compile, env
from jax_deepgemm.config import Config
from jax_deepgemm.launch import Launch
from jax_deepgemm.op import Avals, Op, Params
from jax_deepgemm.target import Target

_FORMAT = "1"  # of an entry: raise it when the key or the payload changes


@dataclasses.dataclass(frozen=True)
class Entry:
    """The best configuration measured, and that of the heuristics beside it."""

    config: Any
    us: float
    heuristic: Any
    heuristic_us: float


def plan(
    op: Op, avals: Avals, out_avals: Avals, params: Params, target: Target, settings: Config
) -> tuple[Launch | None, str]:
    """The launch, and who chose among its configurations, if there are any: the caller, `tune` or the heuristics."""
    launch = op.plan(avals, out_avals, params, target, settings)
    if launch is None or not op.configs:
        return launch, ""
    if params["config"] is not None:
        return launch, "the caller"
    entry = load(op, key(op, launch, avals, out_avals, params, target, settings)) if env.USE_TUNED.flag() else None
    if entry is None:
        return launch, "the heuristics"
    try:
        return op.plan(avals, out_avals, {**params, "config": entry.config}, target, settings), "tune"
    except ValueError:  # it does not fit this target
        return launch, "the heuristics"


def key(
    op: Op, launch: Launch, avals: Avals, out_avals: Avals, params: Params, target: Target, settings: Config
) -> str:
    """The name of the entry for an operation whose kernel is that of `launch`. Pure, but for the kernel's source."""
    said = {name: repr(value) for name, value in sorted(params.items()) if name != "config"}
    parts = [
        _FORMAT,
        checks.call(op.name, avals, out_avals),
        said,
        [target.arch, target.num_sms, target.smem_bytes],
        [min(target.num_sms, settings.num_sms or target.num_sms), settings.pdl],
        compile.sources_digest(launch.kernel.stem),
    ]
    return f"tuned-{op.name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]}.json"


def load(op: Op, name: str) -> Entry | None:
    """The entry `name`, None if there is none that says something sensible."""
    payload = cache.load(name)
    if payload is None:
        return None
    try:
        said = json.loads(payload)
        kinds = {kind.__name__: kind for kind in op.configs}
        config, heuristic = (kinds[said[who]["kind"]](**said[who]["fields"]) for who in ("config", "heuristic"))
        return Entry(config, float(said["us"]), heuristic, float(said["heuristic_us"]))
    except (ValueError, TypeError, KeyError):
        return None


def store(name: str, entry: Entry, about: str) -> None:
    """Writes the entry `name`, whatever was there; `about` is for people."""
    said = {
        "about": about,
        **{who: _said(getattr(entry, who)) for who in ("config", "heuristic")},
        "us": entry.us,
        "heuristic_us": entry.heuristic_us,
    }
    cache.store(name, json.dumps(said, indent=1).encode())


def _said(config: Any) -> dict[str, Any]:
    return {"kind": type(config).__name__, "fields": dataclasses.asdict(config)}
