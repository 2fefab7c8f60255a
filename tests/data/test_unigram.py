"""The loss of token frequencies alone, by hand."""

import math

import numpy as np
import pytest

from forge.data import unigram


def test_counts_are_of_targets_and_grow_with_the_vocabulary() -> None:
    """A document's first token is no target."""
    counts = unigram.add(np.array([1, 1]), [np.array([9, 1, 4, 1]), np.array([9])])
    assert counts.tolist() == [1, 3, 0, 0, 1]
    assert unigram.add(counts, []).tolist() == counts.tolist()


def test_the_loss_with_one_added_to_each_count() -> None:
    """counts [2, 1], one added [3, 2] of 5; targets 0, 0, 1."""
    loss = unigram.loss(np.array([2, 1]), [np.array([1, 0, 0]), np.array([0, 1])])
    assert loss == pytest.approx(-(2 * math.log(3 / 5) + math.log(2 / 5)) / 3)


def test_a_token_never_seen_costs_a_finite_loss() -> None:
    """Target 3 makes four tokens of two: [3, 2, 1, 1] of 7."""
    assert unigram.loss(np.array([2, 1]), [np.array([0, 3])]) == pytest.approx(math.log(7))
