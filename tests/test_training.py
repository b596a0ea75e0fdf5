"""A small network trained in FP8 and in BF16: the loss of the one follows that of the other."""

from __future__ import annotations

from tests.training import losses_follow


def test_the_loss_follows_that_of_bf16():
    losses_follow()
