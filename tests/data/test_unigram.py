"""The loss of token frequencies alone, by hand."""

import math

import numpy as np
import pytest

from forge.data import unigram
from forge.data.tokens import Sequences, Tokenised
from forge.spec import Batch


def tokenised(rows: list[list[int]], targets: list[list[bool]] | None = None, size: int = 10) -> Tokenised:
    """Counts of the whole are made from the same rows, one by one."""
    masks = targets or [[n > 0 for n in range(len(row))] for row in rows]
    counts = np.zeros(size, dtype=np.int64)
    for row, mask in zip(rows, masks, strict=True):
        for token, target in zip(row, mask, strict=True):
            counts[token] += target
    joined = np.array([token for row in rows for token in row], dtype=np.uint16)
    mask = None if targets is None else np.array([target for each in targets for target in each])
    sequences = Sequences(joined, np.cumsum([0, *map(len, rows)]), mask, [f"r{n}" for n in range(len(rows))])
    return Tokenised(sequences, np.zeros(len(rows)), counts, {}, {}, ())


def batch(tokens: list[list[int]], mask: list[list[int]]) -> Batch:
    return Batch(np.array(tokens), np.array(mask, dtype=bool), np.array(mask), ("",) * len(tokens))


ROWS = [[9, 1, 4, 1], [], [5, 2], [9], [9, 1, 0, 0, 7], [3, 3]]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0], {1: 2, 4: 1}),
        ([0, 1, 3], {1: 2, 4: 1}),
        ([0, 2, 4, 5], {0: 2, 1: 3, 2: 1, 3: 1, 4: 1, 7: 1}),
        ([1, 2, 3, 4, 5], {0: 2, 1: 1, 2: 1, 3: 1, 7: 1}),
        ([], {}),
    ],
    ids=["few", "rows without a target", "most", "all but one", "none"],
)
def test_counts_are_of_the_targets_of_the_rows_asked_for(numbers: list[int], expected: dict[int, int]) -> None:
    """A row's first token is no target; where most rows are asked for, what the others have is taken off the whole."""
    counts = unigram.count(tokenised(ROWS), np.array(numbers, dtype=np.int64))
    assert counts.tolist() == [expected.get(token, 0) for token in range(10)]


def test_only_targets_count_where_rows_have_masks() -> None:
    rows, targets = [[1, 2, 3], [1, 2, 4], [5, 5, 5]], [[False, False, True], [False, True, True], [False, True, False]]
    for numbers, expected in (([0], {3: 1}), ([0, 1], {2: 1, 3: 1, 4: 1}), ([1, 2], {2: 1, 4: 1, 5: 1})):
        counts = unigram.count(tokenised(rows, targets), np.array(numbers))
        assert counts.tolist() == [expected.get(token, 0) for token in range(10)]


def test_counts_are_the_same_over_several_chunks() -> None:
    """10,000 rows, of which every third is asked for: 3,334, or every third is not."""
    found = tokenised([[0, n % 10] for n in range(10_000)])
    third = np.arange(0, 10_000, 3)
    assert unigram.count(found, third).tolist() == np.bincount(third % 10, minlength=10).tolist()
    rest = np.setdiff1d(np.arange(10_000), third)
    assert unigram.count(found, rest).tolist() == np.bincount(rest % 10, minlength=10).tolist()


def test_the_loss_with_one_added_to_each_count() -> None:
    """counts [2, 1], one added [3, 2] of 5; targets 0, 0, 1 in two batches. What is no target has no loss."""
    batches = [batch([[1, 0, 0]], [[0, 1, 1]]), batch([[0, 1, 9]], [[0, 1, 0]])]
    assert unigram.loss(np.array([2, 1]), batches) == pytest.approx(-(2 * math.log(3 / 5) + math.log(2 / 5)) / 3)


def test_a_token_never_seen_costs_a_finite_loss() -> None:
    """Target 3 makes four tokens of two: [3, 2, 1, 1] of 7."""
    assert unigram.loss(np.array([2, 1]), [batch([[0, 3]], [[0, 1]])]) == pytest.approx(math.log(7))
