"""Which child wins: the lowest loss, within the noise the earlier job, and nobody across different validation tokens."""

import pytest

from forge.sweep.winner import Finalist, judge
from forge.training.choice import Rows

_TARGETS = 10
# Row sums of the lowest, 2 nats a target; the others differ from it row by row, by ±1 or all by the same.
LOWEST: Rows = [(20.0, _TARGETS)] * 8
NOISY: Rows = [(20.1 + sign, _TARGETS) for sign in (1, -1) * 4]  # mean difference 0.01 a target, standard error √(8/7 · 8) / 80 = 0.038
STEADY: Rows = [(20.1, _TARGETS)] * 8  # the same mean, and no noise


def finalists(first: Rows, digest: str = "a") -> list[Finalist]:
    return [Finalist(0, "lr=1", 2.01, "a", first), Finalist(1, "lr=2", 2.0, digest, LOWEST), Finalist(2, "lr=3", 2.0, "a", LOWEST)]


@pytest.mark.parametrize(("rows", "number"), [(NOISY, 0), (STEADY, 1), ((), 1)])
def test_the_earlier_job_wins_within_the_noise_of_the_lowest_and_only_there(rows: Rows, number: int) -> None:
    assert judge(finalists(rows)).number == number


def test_the_reason_is_said() -> None:
    assert judge(finalists(NOISY)).why == "lr=1: 2.0100 nats, within the noise (0.02) of the lowest, 2.0000 of lr=2, and the earlier job"
    assert judge(finalists(STEADY)).why == "lr=2: 2.0000 nats, the lowest of 3 that finished"


def test_children_measured_on_other_tokens_have_no_best() -> None:
    assert judge(finalists(STEADY, digest="b")).number is None
