"""The examples in the docstrings of all public functions run, and say what they show."""

from __future__ import annotations

import doctest
import types

import jax
import jax.numpy as jnp
import pytest

import jax_deepgemm

FUNCTIONS = {name: f for name, f in vars(jax_deepgemm).items() if isinstance(f, types.FunctionType)}
del FUNCTIONS["tune"]  # which needs a GPU


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name):
    names = vars(jax_deepgemm) | {"jax": jax, "jnp": jnp}
    (found,) = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name, globs=names)
    results = doctest.DocTestRunner().run(found)
    assert results.attempted and not results.failed
