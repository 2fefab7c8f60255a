"""Callbacks: dataclasses called with a Snapshot after each step; they return None or the reason to stop, or raise where the run failed.

Their fields are both their knobs and the state that a checkpoint saves and resume restores. Training metrics come only at the steps that
trainer.log_every leaves; here such a step is a report.
"""

from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

from pydantic import Field

from forge import units
from forge.errors import TrainingError
from forge.spec import Snapshot
from forge.values import Count, NotNegative, Positive, Time

_FEWEST = 10  # reports that make a median


@dataclass
class EarlyStopping:
    """Stops when `patience` evaluations in a row did not lower val/loss by more than `min_delta` (nats a token).

    The first evaluation sets the mark, so patience 3 stops after exactly 3 flat ones.
    """

    patience: Count
    min_delta: NotNegative = 0.0
    best: float | None = None
    flat: int = 0

    def __call__(self, snapshot: Snapshot) -> str | None:
        loss = snapshot.metrics.get("val/loss")
        if loss is None:
            return None
        if self.best is None or loss < self.best - self.min_delta:
            self.best, self.flat = loss, 0
        else:
            self.flat += 1
        if self.flat < self.patience:
            return None
        return f"early stopping: {self.flat} evaluations without improvement on val/loss {self.best:.4f}"


@dataclass
class Overfitting:
    """Stops when val/loss rose `evaluations` times in a row (null: off), together by more than `min_rise` (nats a token), while
    train/loss fell: its mean between the last two evaluations is below the mean before the first rise.

    Where nothing was reported between two evaluations, the mean before them stands, and so has not fallen.
    """

    evaluations: Count | None
    min_rise: NotNegative = 0.0
    rises: int = 0
    last: float | None = None  # val/loss
    mean: float | None = None  # train/loss
    last_before: float | None = None  # both before the first rise
    mean_before: float | None = None
    total: float = 0.0  # of the reports since the last evaluation
    reports: int = 0

    def __call__(self, snapshot: Snapshot) -> str | None:
        if (train := snapshot.metrics.get("train/loss")) is not None:
            self.total, self.reports = self.total + train, self.reports + 1
        if (loss := snapshot.metrics.get("val/loss")) is None:
            return None
        (last, self.last), mean = (self.last, loss), self.mean
        if self.reports:
            self.mean, self.total, self.reports = self.total / self.reports, 0.0, 0
        if last is None or loss <= last:
            self.rises = 0
            return None
        if self.rises == 0:
            self.last_before, self.mean_before = last, mean
        self.rises += 1
        return self._reason(loss)

    def _reason(self, loss: float) -> str | None:
        if self.evaluations is None or self.mean is None or self.mean_before is None or self.last_before is None:
            return None
        if self.rises < self.evaluations or loss - self.last_before <= self.min_rise or self.mean >= self.mean_before:
            return None
        return (
            f"overfitting: val/loss rose {self.rises} times in a row, from {self.last_before:.4f} to {loss:.4f}, "
            f"while train/loss fell from {self.mean_before:.4f} to {self.mean:.4f}"
        )


@dataclass
class TimeBudget:
    """Stops after the step at which the run has trained for `limit` ("90 min", "2 h"; null: off), all its lives together."""

    limit: Time | None

    def __call__(self, snapshot: Snapshot) -> str | None:
        if self.limit is None or snapshot.seconds < units.seconds(self.limit):
            return None
        return f"time budget: the {self.limit} are used up"


@dataclass
class Divergence:
    """Fails the run when train/loss is above the usual one at each report for `steps` steps.

    The usual one is the median of the last `window` reports that were not above; above is both `factor` times it and `nats` more
    (a token). Says nothing before 10 reports, nor of a loss that comes down again in time.
    """

    factor: Annotated[float, Field(ge=1)]
    nats: Positive
    steps: Count
    window: Annotated[int, Field(ge=_FEWEST)]
    usual: list[float] = field(default_factory=list)
    since: int | None = None

    def __call__(self, snapshot: Snapshot) -> str | None:
        """Raises TrainingError: a run that diverged has failed, and is not to be gone on with."""
        loss = snapshot.metrics.get("train/loss")
        if loss is None:
            return None
        middle = median(self.usual) if len(self.usual) >= _FEWEST else loss
        limit = max(self.factor * middle, middle + self.nats)
        if loss <= limit:
            self.usual, self.since = [*self.usual, loss][-self.window :], None
            return None
        if self.since is None:
            self.since = snapshot.step
        if snapshot.step - self.since + 1 < self.steps:
            return None
        raise TrainingError(
            f"step {snapshot.step}: the run diverged: train/loss is {loss:.4f} and above {limit:.4f} since step {self.since}; the median "
            f"of the {len(self.usual)} reports before is {middle:.4f}; rows: {' | '.join(snapshot.rows)}. Lower optimizer.lr or "
            "trainer.clip_norm, lengthen schedule.warmup, or look at these rows; where the data is like that, raise the callback's nats"
        )
