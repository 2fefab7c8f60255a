from typing import Any

import pytest

from forge.spec import Snapshot
from forge.training.callbacks import EarlyStopping


def stops_at(losses: list[float], **knobs: Any) -> int | None:
    """The number (from 1) of the evaluation at which it gives a reason."""
    callback = EarlyStopping(**knobs)
    for number, loss in enumerate(losses, start=1):
        if callback(Snapshot(number, 0, {"val/loss": loss}, [], None)):
            return number
    return None


def test_patience_three_stops_after_exactly_three_flat_evaluations() -> None:
    assert stops_at([3.0, 2.0, 2.0, 2.1, 2.2, 9.0], patience=3) == 5


def test_the_first_evaluation_is_not_flat_and_an_improvement_starts_the_count_again() -> None:
    assert stops_at([3.0], patience=1) is None
    assert stops_at([3.0, 3.0], patience=1) == 2
    assert stops_at([3.0, 3.1, 2.9, 3.0, 2.8, 2.9], patience=2) is None


def test_an_improvement_no_larger_than_min_delta_is_flat() -> None:
    assert stops_at([3.0, 2.75, 2.5], patience=2, min_delta=0.5) == 3
    assert stops_at([3.0, 2.4, 1.8], patience=2, min_delta=0.5) is None


def test_a_step_without_evaluation_counts_for_nothing() -> None:
    callback = EarlyStopping(patience=1)
    callback(Snapshot(1, 0, {"val/loss": 1.0}, [], None))
    assert callback(Snapshot(2, 0, {"train/loss": 9.0}, [], None)) is None
    assert callback.flat == 0


def test_the_reason_names_the_loss_that_was_not_beaten() -> None:
    callback = EarlyStopping(patience=1, best=1.25)
    assert "1.2500" in (callback(Snapshot(1, 0, {"val/loss": 1.5}, [], None)) or pytest.fail("no reason"))
