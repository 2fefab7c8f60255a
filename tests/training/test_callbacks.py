"""When callbacks stop a run, by hand-made numbers."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from forge.binding import Problems, target
from forge.errors import TrainingError
from forge.spec import Snapshot
from forge.training.callbacks import Divergence, EarlyStopping, Overfitting, TimeBudget
from forge.training.checkpoint import steps

CONF = Path(__file__).parents[2] / "conf" / "callbacks" / "default.yaml"


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


# ---- overfitting ------------------------------------------------------------------------------------------------------


def overfits(seen: Iterable[tuple[list[float], float]], **knobs: Any) -> tuple[int, str] | None:
    """The number (from 1) of the evaluation that stops the run, and why. Each is the reports before it, and its loss."""
    callback = Overfitting(**knobs)
    for number, (reports, loss) in enumerate(seen, start=1):
        for report in reports:
            assert callback(Snapshot(number, 0, {"train/loss": report}, [], None)) is None
        if why := callback(Snapshot(number, 0, {"val/loss": loss}, [], None)):
            return number, why
    return None


RISES = [([], 3.0), ([2.8, 2.6], 2.5), ([2.4, 2.2], 2.6), ([2.1, 2.1], 2.75), ([2.0, 1.8], 2.8)]


def test_validation_that_rises_while_training_falls_is_overfitting() -> None:
    why = "overfitting: val/loss rose 3 times in a row, from 2.5000 to 2.8000, while train/loss fell from 2.7000 to 1.9000"
    assert overfits(RISES, evaluations=3) == (5, why)


@pytest.mark.parametrize(
    ("seen", "knobs"),
    [
        (RISES, {"evaluations": 4}),
        (RISES, {"evaluations": None}),
        (RISES, {"evaluations": 3, "min_rise": 0.31}),
        ([*RISES[:3], ([2.1], 2.6), ([2.0], 2.9), ([1.9], 3.0)], {"evaluations": 3}),  # flat in between
        ([(reports, 5.3 - loss) for reports, loss in RISES], {"evaluations": 1}),  # falls
        ([([6.0 - r for r in reports], loss) for reports, loss in RISES], {"evaluations": 2}),  # training rises too
        ([*RISES[:2], ([], 2.6), ([], 2.7), ([], 2.8)], {"evaluations": 3}),  # nothing is known of training since
        ([([], 2.5), ([2.0], 2.6), ([1.9], 2.7), ([1.8], 2.8)], {"evaluations": 3}),  # nor before
    ],
)
def test_less_than_that_is_not(seen: Any, knobs: Any) -> None:
    assert overfits(seen, **knobs) is None


def test_evaluations_without_a_report_between_them_do_not_hide_it() -> None:
    sparse = [([], 3.0), ([2.7], 2.5), ([], 2.6), ([1.9], 2.7), ([], 2.8)]
    assert overfits(sparse, evaluations=3) == (5, overfits(RISES, evaluations=3)[1])  # type: ignore[index]


def test_the_rise_is_counted_from_its_own_bottom() -> None:
    """After a fall the count and the mark start again: 2.2 to 2.45, not 2.5 to 2.45."""
    found = overfits([([], 3.0), ([2.5], 2.5), ([2.4], 2.6), ([2.3], 2.2), ([2.2], 2.3), ([2.1], 2.45)], evaluations=2, min_rise=0.2)
    assert found is not None and found[0] == 6 and "from 2.2000 to 2.4500, while train/loss fell from 2.3000 to 2.1000" in found[1]


# ---- time -------------------------------------------------------------------------------------------------------------


def test_the_time_budget_counts_all_lives() -> None:
    """`seconds` is the run's, so a callback of a new life needs no memory."""
    budget = TimeBudget("1.5 h")
    assert budget(Snapshot(9, 0, {}, [], None, seconds=5399.9)) is None
    assert budget(Snapshot(10, 0, {}, [], None, seconds=5400.0)) == "time budget: the 1.5 h are used up"
    assert TimeBudget(None)(Snapshot(1, 0, {}, [], None, seconds=1e9)) is None


def test_a_time_that_is_none_is_refused_before_anything_starts() -> None:
    problems = Problems()
    node = {"_target_": "forge.training.callbacks.TimeBudget", "limit": "90 minutes"}
    target(node, "callbacks.time_budget", problems)
    assert problems == ["callbacks.time_budget.limit: '90 minutes' is no time: " + problems[0].partition("no time: ")[2]]
    assert "'90 min'" in problems[0]


# ---- divergence -------------------------------------------------------------------------------------------------------

GENEROUS = {"factor": 1.5, "nats": 1.0, "steps": 3, "window": 10}


def fails_at(losses: Iterable[float], every: int = 1, **changes: Any) -> tuple[int, str] | None:
    """The step that fails, and the line; a report each `every` steps."""
    callback = Divergence(**(GENEROUS | changes))  # type: ignore[arg-type]
    for number, loss in enumerate(losses, start=1):
        for quiet in range((number - 1) * every + 1, number * every):
            callback(Snapshot(quiet, 0, {}, [], None))
        try:
            assert callback(Snapshot(number * every, 0, {"train/loss": loss}, [], None, rows=("a/1", "b/2"))) is None
        except TrainingError as error:
            return number * every, str(error)
    return None


def test_a_loss_that_stays_far_above_the_median_fails_the_run() -> None:
    """The median of 4.0 … 3.1 is 3.55; both 1.5 times that, 5.325, and a nat more are passed at step 11, so three steps end with 13."""
    falling = [4.0 - n / 10 for n in range(10)]
    found = fails_at([*falling, 5.4, 5.5, 9.0, 9.0])
    assert found is not None and found[0] == 13
    assert found[1].startswith(
        "step 13: the run diverged: train/loss is 9.0000 and above 5.3250 since step 11; the median of the 10 reports before is 3.5500; "
        "rows: a/1 | b/2. Lower optimizer.lr or"
    )


@pytest.mark.parametrize(
    "losses",
    [
        [*[3.0] * 10, *[4.4] * 9],  # 1.4 nats, but not 1.5 times
        [*[0.1] * 10, *[1.0] * 9],  # 10 times, but not a nat
        [*[3.0] * 10, 9.0, 9.0, 3.0, 9.0, 9.0, 3.0],  # comes down in time
        [*[3.0] * 4, *[9.0] * 9],  # too few reports before to say
        [12.0 * 0.9**n for n in range(60)],
        [-3.0] * 10 + [-2.5] * 10,  # rewards
    ],
)
def test_less_than_that_goes_on(losses: list[float]) -> None:
    assert fails_at(losses) is None


def test_a_slow_change_moves_the_median_along() -> None:
    """From 3 up to 7 nats over 100 reports, as harder text makes it: the median of the last 10 is never 0.25 behind."""
    assert fails_at([3.0 + 0.04 * n for n in range(100)], factor=1.0) is None
    assert fails_at([3.0 + 0.04 * n for n in range(100)], factor=1.0, window=100) is not None


@pytest.mark.parametrize(("every", "step"), [(1, 13), (2, 24), (50, 600)])
def test_the_limit_is_in_steps_whatever_is_logged(every: int, step: int) -> None:
    """Ten reports, then spikes: after 3 steps, which 2 reports span where they are 2 or more steps apart."""
    found = fails_at([*[3.0] * 10, *[9.0] * 9], every=every)
    assert found is not None and found[0] == step


def test_noise_is_no_divergence() -> None:
    """Losses of single rows that scatter by a third, under the limits of conf/: 20 runs of 1,000 steps."""
    knobs = {key: value for key, value in yaml.safe_load(CONF.read_text())["divergence"].items() if key != "_target_"}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        losses = (2 * np.exp(-np.arange(1000) / 150) + 2.5) * rng.lognormal(0, 0.33, 1000)
        assert fails_at(losses.tolist(), **knobs) is None


# ---- all of them ------------------------------------------------------------------------------------------------------


def feed(callback: Any, steps: Iterable[int]) -> None:
    for step in steps:
        metrics = {"train/loss": 3.0 - step / 100} | ({"val/loss": 2.0 + step / 50} if step % 5 == 0 else {})
        callback(Snapshot(step, 0, metrics, [], None, seconds=step))


@pytest.mark.parametrize("name", sorted(yaml.safe_load(CONF.read_text())))
def test_a_default_binds_and_goes_on_from_what_a_checkpoint_holds(name: str) -> None:
    """Through JSON, as a checkpoint keeps it, half-way: the same state as without."""
    problems = Problems()
    build = target(yaml.safe_load(CONF.read_text())[name], name, problems)
    assert problems == [] and build is not None
    whole, first, second = build(), build(), build()
    feed(whole, range(1, 18))
    feed(first, range(1, 9))
    vars(second).update(json.loads(json.dumps(asdict(first))))
    feed(second, range(9, 18))
    assert asdict(second) == asdict(whole)
    assert name == "time_budget" or asdict(whole) != asdict(build())


@dataclass
class Spent:
    """What a callback was told, in what a checkpoint keeps of it."""

    seconds: float = 0.0

    def __call__(self, snapshot: Snapshot) -> None:
        assert snapshot.seconds >= self.seconds
        self.seconds = snapshot.seconds


def test_a_run_that_diverges_fails_and_keeps_what_was_saved_before(train: Any, tmp_path: Path) -> None:
    """Rates of 30 throw the weights away at step 20. Nothing is saved at or after the step that fails."""
    explodes = {"total_steps": 60, "eval_every": 6, "save_every": 60, "lr": lambda step: 0.01 if step < 20 else 30.0}
    with pytest.raises(TrainingError, match=r"step 2\d: the run diverged: train/loss is .* since step 2\d; .*; rows: .*(long|short)"):
        train(callbacks={"divergence": Divergence(factor=1.1, nats=0.5, steps=2, window=10)}, **explodes)
    assert steps(tmp_path / "run")[-1] in (18, 24)


def test_the_time_of_all_lives_counts_against_the_budget(train: Any, tmp_path: Path) -> None:
    """One step a life, and each tells the next what was spent before it."""

    def life() -> Any:
        asked = iter([None, "enough"]) if not steps(tmp_path / "run") else iter(["enough"])
        return train(callbacks={"log": Spent()}, total_steps=100, stop=lambda: next(asked))[0]

    spent = [json.loads((tmp_path / "run" / f"step-{life().step:08d}" / "state.json").read_text())["seconds"] for _ in range(4)]
    assert spent == sorted(spent) and spent[0] > 0 and len(set(spent)) == 4
