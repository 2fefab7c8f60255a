"""Which of a run's checkpoints is the best, and why, in words.

The lowest validation loss wins; within the noise the earlier one does (the one-standard-error rule: Breiman, Friedman, Olshen & Stone
1984, Classification and Regression Trees, 3.4.3). All are evaluated on the same rows, so the noise is that of the paired difference,
which is far smaller than that of either loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

Rows = Sequence[tuple[float, int]]  # each validation row's summed loss (nats) and targets, in a fixed order
ROWS_FILE = "evaluation/rows.json"  # those of a run's chosen checkpoint, which a sweep pairs

CAP = 0.02  # nats a target: noise never excuses more
_FEWEST = 8  # rows: with fewer a standard error says nothing


class Measured(Protocol):
    """`loss` in nats a target, over `rows`."""

    @property
    def loss(self) -> float: ...

    @property
    def rows(self) -> Rows: ...


T = TypeVar("T", bound=Measured)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was evaluated: `loss` in nats a target, over `rows`."""

    path: Path
    step: int
    loss: float
    rows: Rows = ()


@dataclass(frozen=True)
class Choice:
    """The best checkpoint. `why` is a sentence about its loss."""

    path: Path
    step: int
    loss: float
    why: str


def choose(saved: Sequence[Saved], evaluated: int) -> Choice:
    """The earliest of `saved` (at least one) that is within the noise of the lowest. `evaluated`: how many the run has saved in all."""
    one, best, allowed = first_within_noise(sorted(saved, key=lambda one: one.step))
    why = f"the lowest of {evaluated} saved"
    if one is not best:
        why = f"within the noise ({allowed:.2g}) of the lowest, {best.loss:.4f} at step {best.step}, and earlier"
    return Choice(one.path, one.step, one.loss, f"step {one.step}: {one.loss:.4f} nats, {why}")


def first_within_noise(ordered: Sequence[T]) -> tuple[T, T, float]:
    """The first whose loss can't be told from the lowest; the lowest, the earlier of equals; and the noise between the two."""
    best = min(ordered, key=lambda one: one.loss)
    for one in ordered:
        allowed = noise(one.rows, best.rows)
        if one is best or one.loss - best.loss <= allowed:
            break
    return one, best, allowed


def lowest(saved: Sequence[Saved]) -> Saved:
    """The one with the lowest loss, the earlier of equals."""
    return min(saved, key=lambda one: (one.loss, one.step))


def noise(one: Rows, other: Rows) -> float:
    """The standard error (nats a target) of the difference of two losses on the same rows; at most CAP, 0 where it can't be told.

    With d the difference of a row's two sums and t its targets, the losses differ by D = Σd / Σt, a ratio of sums over n rows, whose
    standard error is √(n/(n-1) Σ(d - D·t)²) / Σt (Cochran 1977, Sampling Techniques, 2.11). It can't be told from fewer than 8 rows,
    nor where the rows of the two are not the same.
    """
    targets = [count for _, count in one]
    if len(one) < _FEWEST or targets != [count for _, count in other]:
        return 0.0
    differences = [first - second for (first, _), (second, _) in zip(one, other, strict=True)]
    total = sum(targets)
    mean = sum(differences) / total
    squares = sum((difference - mean * count) ** 2 for difference, count in zip(differences, targets, strict=True))
    return min(CAP, math.sqrt(len(one) / (len(one) - 1) * squares) / total)
