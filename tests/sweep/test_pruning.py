"""Jobs of a search that end early. SWP-4."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from forge.errors import ConfigError
from forge.spec import Snapshot
from forge.sweep.pruning import Pruning
from forge.sweep.study import storage

RULES: dict[str, Any] = {"study": "one", "rule": "median", "startup": 3, "warmup": 0.25, "factor": 2}


class Search:
    """Trials of a search without parameters."""

    def __init__(self, folder: Path):
        self.journal = folder / "study.journal"
        self._study = optuna.create_study(study_name="one", storage=storage(self.journal))

    def job(self, **rules: Any) -> Pruning:
        return Pruning(**RULES | {"journal": str(self.journal), "trial": self._study.ask().number} | rules)

    def tell(self, job: Pruning, loss: float) -> None:
        pruned = "pruned" in self._study.trials[job.trial].user_attrs
        self._study.tell(job.trial, **{"state": optuna.trial.TrialState.PRUNED} if pruned else {"values": loss})

    def reported(self, job: Pruning) -> dict[int, float]:
        return self._study.trials[job.trial].intermediate_values


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path)


def evaluated(job: Pruning, step: int, loss: float, of: int = 8) -> str | None:
    return job(Snapshot(step, 0, {"val/loss": loss}, [], None, total_steps=of))


def finished(search: Search, *losses: Sequence[float], rule: str = "median") -> None:
    """A trial for each, evaluated at equal shares up to its end."""
    for values in losses:
        job = search.job(startup=99, rule=rule)
        for number, loss in enumerate(values, start=1):
            assert evaluated(job, number, loss, of=len(values)) is None
        search.tell(job, min(values))


def test_the_median_of_those_that_finished_is_the_mark(search: Search) -> None:
    finished(search, (4.0, 3.0, 2.9, 2.8), (4.2, 3.4, 3.3, 3.2), (4.4, 3.2, 3.1, 3.0))  # at 50 %: 3.0, 3.2, 3.4
    assert evaluated(search.job(), 4, 3.19) is None
    why = evaluated(search.job(), 4, 3.21)
    assert why == "pruned: at 50 % of the budget val/loss 3.2100 is above 3.2000, the median of 3 that finished"


def test_the_lowest_so_far_counts(search: Search) -> None:
    finished(search, (4.0, 3.0, 2.9, 2.8), (4.0, 3.0, 2.9, 2.8), (4.0, 3.0, 2.9, 2.8))
    job = search.job()
    assert evaluated(job, 2, 2.95) is None
    assert evaluated(job, 4, 9.0) is None
    assert evaluated(job, 6, 9.0) == "pruned: at 75 % of the budget val/loss 2.9500 is above 2.9000, the median of 3 that finished"


def test_jobs_of_other_lengths_are_compared_at_the_share_of_their_budgets(search: Search) -> None:
    finished(search, *[(3.0,) * 10] * 3)
    assert evaluated(search.job(), 299, 3.1, of=1000) == evaluated(search.job(), 30, 3.1, of=100)
    assert evaluated(search.job(), 250, 3.1, of=1000) is None  # nobody was measured there


@pytest.mark.parametrize(("step", "rules"), [(1, {}), (4, {"startup": 4}), (8, {}), (4, {"warmup": 0.6})], ids=str)
def test_nobody_is_pruned_in_warmup_before_enough_have_finished_or_at_the_end(search: Search, step: int, rules: dict[str, Any]) -> None:
    finished(search, *[(3.0,) * 8] * 3)
    job = search.job(**rules)
    assert evaluated(job, step, 9.0) is None
    assert search.reported(job) == {round(100 * step / 8): 9.0}
    assert evaluated(search.job(), 5, 9.0) is not None


def test_halving_lets_the_best_half_go_on_at_each_doubling(search: Search) -> None:
    """Worked by hand for marks at 25 % and 50 %: a loss goes on where it is among the floor(n / 2), at least one, lowest of n."""
    rules = {"rule": "halving", "startup": 0}
    first, second, third, fourth, fifth = (search.job(**rules) for _ in range(5))
    assert evaluated(first, 2, 3.0) is None  # alone
    assert evaluated(second, 2, 2.9) is None  # the lowest of 2
    why = evaluated(third, 2, 2.95)  # the 2nd of 3
    assert why == "pruned: at 25 % of the budget val/loss 2.9500 is not among the lowest 1/2 of 3, of which the best had 2.9000"
    assert evaluated(fourth, 2, 2.92) is None  # the 2nd of 4
    assert evaluated(first, 3, 9.9) is None  # between the marks
    assert evaluated(second, 4, 2.5) is None
    assert "lowest 1/2 of 2, of which the best had 2.5000" in (evaluated(fourth, 4, 2.6) or "")
    assert evaluated(fifth, 1, 9.9) is None  # before the first mark
    assert evaluated(fifth, 2, 2.0) is None
    assert evaluated(fifth, 4, 2.4) is None


def test_halving_compares_with_those_of_the_startup_too(search: Search) -> None:
    finished(search, (3.0, 2.9, 2.8, 2.7), (3.2, 3.1, 3.0, 2.9), (3.4, 3.3, 3.2, 3.1), rule="halving")
    rules = {"rule": "halving", "startup": 4}
    fourth = search.job(**rules)
    assert evaluated(fourth, 2, 9.0) is None  # the worst, but one of the first four
    search.tell(fourth, 9.0)
    assert "lowest 1/2 of 5, of which the best had 3.0000" in (evaluated(search.job(**rules), 2, 3.3) or "")
    assert evaluated(search.job(**rules), 2, 3.1) is None  # the 2nd of 6


def test_a_job_that_goes_on_reports_no_step_twice_and_is_pruned_where_it_was(search: Search) -> None:
    finished(search, *[(3.0,) * 8] * 3)
    job = search.job()
    for step, loss in ((1, 4.0), (2, 3.0), (3, 2.9)):
        assert evaluated(job, step, loss) is None
    lines = search.journal.read_bytes()
    resumed = replace(job)  # from the checkpoint of step 1
    assert evaluated(resumed, 2, 3.0) is None
    assert evaluated(resumed, 3, 9.0) is None
    assert search.journal.read_bytes() == lines
    other = search.job()
    why = evaluated(other, 4, 9.0)
    assert why is not None and evaluated(replace(other), 3, 2.0) == why  # killed before it saved


def test_a_trial_that_has_ended_is_left_alone(search: Search) -> None:
    finished(search, *[(3.0,) * 8] * 3)
    job = search.job()
    search.tell(job, 2.0)
    assert evaluated(job, 4, 9.0) is None
    assert search.reported(job) == {}


def test_steps_without_evaluation_look_at_nothing(tmp_path: Path) -> None:
    job = Pruning(journal=str(tmp_path / "none"), trial=0, **RULES)
    assert job(Snapshot(1, 0, {"train/loss": 1.0}, [], None, total_steps=8)) is None
    assert not (tmp_path / "none").exists()


def test_checkpoints_hold_nothing_of_it_so_that_a_journal_may_move(search: Search, tmp_path: Path) -> None:
    finished(search, *[(3.0,) * 8] * 3)
    job = search.job()
    assert evaluated(job, 3, 2.9) is None
    saved = dict(vars(job))
    moved = search.journal.rename(tmp_path / "moved.journal")
    resumed = replace(job, journal=str(moved))
    vars(resumed).update(saved)
    assert evaluated(resumed, 4, 2.9) is None
    assert resumed.journal == str(moved)


@pytest.mark.parametrize("wrong", [{"study": "two"}, {"trial": 5}, {"journal": "/nowhere/study.journal"}])
def test_a_study_that_is_not_there_is_told_in_a_line(search: Search, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.pruning") as caught:
        evaluated(search.job(**wrong), 1, 3.0)
    assert "\n" not in str(caught.value)
