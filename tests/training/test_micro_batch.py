"""Settings with which the same step fits into memory, and the largest micro-batch that does."""

from typing import Any

import pytest

from forge.errors import TrainingError
from forge.training import memory
from forge.training.memory import Setup, fits, largest_micro_batch

GB = 10**9


@pytest.mark.parametrize(
    ("rows", "parts", "used", "limit", "fixed", "expected"),
    [
        (8, 1, 10, 8, 2, "trainer.micro_batch=4 trainer.accumulate=2"),  # 2 + 4 rows of 1 = 6
        (8, 1, 10, 6, 2, "trainer.micro_batch=2 trainer.accumulate=4"),  # 4 rows: 6 is no less than 6
        (8, 4, 10, 3.5, 2, "trainer.micro_batch=1 trainer.accumulate=32"),  # 2 + 1
        (6, 1, 10, 9, 0, "trainer.micro_batch=3 trainer.accumulate=2"),  # not 5: the step is 6 rows
        (4, 3, 10, 9, 2, "trainer.micro_batch=3 trainer.accumulate=4"),  # 2 + 3 rows of 2 = 8
        (21, 20, 5, 8, 0, "trainer.micro_batch=15 trainer.accumulate=28"),  # failed at 5, so it needs above 8: 20 of 21 rows are too many
    ],
)
def test_the_same_step_in_smaller_parts(rows: int, parts: int, used: float, limit: float, fixed: float, expected: str) -> None:
    setup = Setup(rows, parts, 512)
    assert fits(setup, int(used * GB), int(limit * GB), int(fixed * GB)) == f"the same step in smaller parts fits: {expected}"


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({}, "trainer.gradient_checkpointing=true, data.sequence_length=256, adapter=lora, a quantised base"),
        ({"gradient_checkpointing": True}, "data.sequence_length=256, adapter=lora, a quantised base"),
        ({"gradient_checkpointing": True, "whole": False}, "data.sequence_length=256, a quantised base"),
        ({"gradient_checkpointing": True, "whole": False, "quantised": True, "sequence_length": 8}, "a smaller model"),
    ],
)
def test_where_one_row_is_too_much_other_settings_are_named(changes: dict[str, Any], ways: str) -> None:
    for rows in (1, 8):  # one row needs 9 + 1/8 of 1
        setup = Setup(**{"micro_batch": rows, "accumulate": 2, "sequence_length": 512, **changes})
        assert fits(setup, 10 * GB, 9 * GB, 9 * GB) == f"one row at a time is too much as well: try {ways}"


class Step:
    """One that takes `fixed` bytes, and `row` a row; above `end` it fails."""

    def __init__(self, fixed: int, row: int, end: int = 10**18):
        self.fixed, self.row, self.end, self.tried = fixed, row, end, list[int]()

    def __call__(self, rows: int) -> int:
        self.tried.append(rows)
        peak = self.fixed + rows * self.row
        if peak > self.end:
            raise RuntimeError("[malloc] Unable to allocate 1024 bytes.")
        return peak


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("known", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("fixed", "row", "limit"), [(0, 10, 375), (100, 10, 475), (1000, 1, 1037), (0, 10, 10**9), (3, 10, 44)])
def test_the_largest_micro_batch_is_found_without_a_step_too_large(fixed: int, row: int, limit: int, known: float, start: int) -> None:
    """(limit - fixed) / row rows, at most 64. Where too little is known of what is fixed, the first line may be too steep to go on."""
    step = Step(fixed, row)
    found = largest_micro_batch(step, limit, int(fixed * known), start, most=64)
    expected = min(64, (limit - fixed) // row)
    assert found == expected or (known < 1 and found < expected)
    assert len(step.tried) == len(set(step.tried)) <= 8
    assert all(fixed + rows * row <= limit for rows in step.tried)


@pytest.mark.parametrize("start", [1, 8, 64])
@pytest.mark.parametrize("real", range(1, 64, 7))
def test_a_step_that_fails_is_a_step_too_large(start: int, real: int) -> None:
    """The system has room for `real` rows, and the limit for more: every number has to be tried out."""
    step = Step(0, 10, end=10 * real)
    assert largest_micro_batch(step, 10**6, 0, start, most=64) == real
    assert len(step.tried) <= 12


def test_where_no_row_fits_it_is_said() -> None:
    with pytest.raises(TrainingError, match=r"not one row fits into 0.0 MB"):
        largest_micro_batch(Step(100, 10), 105, 100, start=16)


def test_another_error_of_a_step_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(rows: int) -> int:
        raise RuntimeError("[matmul] shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_micro_batch(broken, GB, 0)


@pytest.mark.parametrize(("parts", "limit", "expected"), [(1, 9, 4), (1, 8, 2), (1, 7, 2), (2, 9, 4), (2, 8, 2), (2, 7, 1)])
def test_the_sum_of_several_micro_batches_takes_gradients_of_its_own(
    monkeypatch: pytest.MonkeyPatch, parts: int, limit: int, expected: int
) -> None:
    """8 rows peak at 10 GB: 2 fixed, 1 of gradients a part and for the update, so a row takes 6/8 (one part) or 5/8 (two), within 95 %.

    One part: 4 rows take 2 + 3 + 3 = 8, 2 rows 6.5. Two: 4 rows take 2 + 4 + 2.5 = 8.5, 2 rows 7.25, 1 row (one part) 5.625.
    """
    monkeypatch.setattr(memory, "side_by_side", lambda rows: min(parts, rows))
    setup = Setup(8, 1, 512, gradients=GB)
    said = f"trainer.micro_batch={expected} trainer.accumulate={8 // expected}"
    assert fits(setup, 10 * GB, limit * GB, 2 * GB) == f"the same step in smaller parts fits: {said}"
