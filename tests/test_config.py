from __future__ import annotations

import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jax_deepgemm import compile, config
from jax_deepgemm.config import Config, current, set_cache_folder, set_num_sms, set_pdl, set_target
from jax_deepgemm.target import H100


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    before = list(config._calls)
    yield
    config._calls[:] = before
    config._set_global()


def in_thread(f: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(f()))
    thread.start()
    thread.join()
    return found[0]


def test_a_call_holds_everywhere() -> None:
    assert current() == Config()
    set_num_sms(100)
    set_pdl(False)
    assert current() == Config(num_sms=100, pdl=False) == in_thread(current)
    set_num_sms(None)
    assert current() == Config(pdl=False) == in_thread(current)


def test_a_block_holds_in_its_thread() -> None:
    set_num_sms(120)
    with set_num_sms(100), set_target(H100):
        assert current() == Config(num_sms=100, target=H100)
        assert in_thread(current) == Config(num_sms=120)
    assert current() == Config(num_sms=120)


def test_a_call_inside_a_block_ends_with_it() -> None:
    with set_num_sms(100):
        set_pdl(False)
        assert current() == Config(num_sms=100, pdl=False)
        with set_num_sms(50):
            assert current() == Config(num_sms=50, pdl=False)
        assert current() == Config(num_sms=100, pdl=False)
        assert in_thread(current) == Config()
    assert current() == Config()


def test_a_block_is_left_by_an_exception() -> None:
    with pytest.raises(RuntimeError, match="inside"), set_num_sms(100):
        raise RuntimeError("inside")
    assert current() == Config()


def test_a_setting_can_be_used_again() -> None:
    setting = set_num_sms(100)
    assert current() == Config(num_sms=100)
    for _ in range(2):
        with setting:
            assert current() == Config(num_sms=100)
        assert current() == Config()


def test_many_threads_leave_nothing_behind() -> None:
    seen: set[bool] = set()

    def work(n: int) -> None:
        for _ in range(100):
            with set_num_sms(n):
                seen.add(current().num_sms == n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {True}
    assert current() == Config() == in_thread(current)


def test_knobs_are_in_jits_cache_key() -> None:
    traced: list[Config] = []

    @jax.jit
    def f(x: jax.Array) -> jax.Array:
        traced.append(current())
        return x + 1

    x = jnp.zeros(2)
    f(x)
    f(x)
    assert len(traced) == 1
    for setter in (lambda: set_num_sms(100), lambda: set_pdl(False), lambda: set_target(H100)):
        before = len(traced)
        with setter():
            f(x)
            f(x)
        assert len(traced) == before + 1
    f(x)
    with set_num_sms(100):
        f(x)
    assert len(traced) == 4  # an equal value, or none again, hits the cache
    set_num_sms(90)
    f(x)
    assert [c.num_sms for c in traced] == [None, 100, None, None, 90]


def test_knobs_reach_nested_jits_and_lowering() -> None:
    traced: list[int | None] = []

    @jax.jit
    def inner(x: jax.Array) -> jax.Array:
        traced.append(current().num_sms)
        return x * 2

    outer = jax.jit(lambda x: inner(x) + 1)
    outer.lower(1.0)
    with set_num_sms(7):
        outer.lower(1.0)
    assert traced == [None, 7]


def test_bad_values() -> None:
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"`num_sms` must be a positive integer or None, got {bad}"):
            set_num_sms(bad)
    with pytest.raises(TypeError):
        set_num_sms(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`target` must be a Target or None, got 'sm_90a'"):
        set_target("sm_90a")  # type: ignore[arg-type]
    assert current() == Config()


def test_cache_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_DEEPGEMM_CACHE_DIR", str(tmp_path / "env"))
    with set_cache_folder(tmp_path / "mine"):
        assert compile.cache_folder() == tmp_path / "mine"
        with set_cache_folder(""):
            assert compile.cache_folder() is None
        with set_cache_folder(None):
            assert compile.cache_folder() == tmp_path / "env"
    assert compile.cache_folder() == tmp_path / "env"
    set_cache_folder(tmp_path / "stays")
    assert compile.cache_folder() == tmp_path / "stays"
    set_cache_folder(None)
    assert compile.cache_folder() == tmp_path / "env"
