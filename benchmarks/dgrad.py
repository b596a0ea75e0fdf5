"""Suite `dgrad`: the product of the suite `dense` in the shapes of a backward pass, gradients of activations."""

from __future__ import annotations

import dataclasses

from benchmarks import dense
from tests.cases import DGRAD

SUITE = dataclasses.replace(dense.SUITE, cases=DGRAD, groups=(("all", lambda row: True),))
