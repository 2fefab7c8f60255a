"""A training run made again: its configuration for that, and its numbers beside the first ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from forge import pins
from forge.config import Config
from forge.errors import TrackingError
from forge.spec import History, Snapshot
from forge.tracking import reader
from forge.tracking.reader import Seen
from forge.tracking.recorded import recorded

if TYPE_CHECKING:
    from forge.tracking.reader import MlflowClient

TAG = "forge.reproduces"
_COMPARED = ("train/", "val/")  # the rest is times, memory, and what is made of these
_FIRST = ("train/loss", "val/loss")  # to be named before others

# What a run does beside training, and no compared number comes from.
_UNSEEN = ("evaluation.answers=0", "evaluation.samples=0", "evaluation.retention=false", "evaluation.harness.tasks=[]")


@dataclass
class StopAt:
    """Ends training after step `at`; the schedule stays that of the whole run."""

    at: Annotated[int, Field(ge=0)]

    def __call__(self, snapshot: Snapshot) -> str | None:
        return f"step {self.at} is the last to be made again" if snapshot.step >= self.at else None


@dataclass(frozen=True)
class Difference:
    """`now` None: the second run has no such value."""

    step: int
    metric: str
    then: float
    now: float | None

    @property
    def share(self) -> float:
        """Relative to the larger one."""
        if self.now is None:
            return float("inf")
        return abs(self.then - self.now) / max(abs(self.then), abs(self.now))


@dataclass(frozen=True)
class Likeness:
    """Two histories beside each other. `differences`: in the order of steps, at each of them losses first."""

    steps: int
    metrics: int
    values: int
    differences: Sequence[Difference]

    def sentence(self) -> str:
        if not self.differences:
            return (
                f"equal: all {self.values:,} values of {self.metrics} train/… and val/… metrics up to step {self.steps:,} are the same to "
                "the digit"
            )
        first, largest = self.differences[0], max(self.differences, key=lambda each: each.share)
        words = f"differs from step {first.step:,} on: {_compared(first)}"
        return words if largest is first else f"{words}; most at step {largest.step:,}: {_compared(largest)}"


def history(client: "MlflowClient", run: Seen) -> History:
    """The run's training and validation metrics. Raises TrackingError where it holds none that can be made again."""
    if run.status in ("RUNNING", "SCHEDULED"):
        raise TrackingError(f"run {run.name} ({run.id[:8]}) is {run.status}; wait for its end")
    if "val/loss" not in run.metrics:
        if below := reader.children(client, run):
            names = ", ".join(f"{child.name} ({child.id[:8]})" for child in below[:5])
            raise TrackingError(f"run {run.name} ({run.id[:8]}) trained nothing itself; name one of its {len(below)} runs: {names}")
        raise TrackingError(f"run {run.name} ({run.id[:8]}) holds no step of a training, so there is nothing to make again")
    return reader.history(client, run.id, [name for name in run.metrics if name.startswith(_COMPARED)])


def last_step(first: History) -> int:
    """The last that was recorded, 0 where there is only the evaluation before the first."""
    return max(step for step, metrics in first if metrics.keys() & {*_FIRST})


def configuration(client: "MlflowClient", run: Seen, own: Config, uri: str | None, allowed: Sequence[str], at: int) -> Config:
    """`own`, that of the run, for another beside it, without release, that ends at step `at`.

    forge's own callbacks only stop a run, some of them by the clock, so they are left out; the user's stay.
    """
    ours = [name for name, node in own.resolved["callbacks"].items() if node and node["_target_"].startswith("forge.")]
    tags = {**own.tracking.tags, TAG: run.id, "mlflow.source.name": f"python -m forge.reproduce {run.id}"}
    changes = [
        *pins.exact(run),
        *(f"callbacks.{name}=null" for name in ours),
        f"callbacks.reproduce={json.dumps({'_target_': f'{__name__}.StopAt', 'at': at})}",
        f"tracking.uri={json.dumps(uri)}",
        f"tracking.experiment={json.dumps(client.get_experiment(run.experiment_id).name)}",
        f"tracking.run_name={json.dumps(f'{run.name} again')}",
        "tracking.parent_run=null",
        f"tracking.tags={json.dumps(tags)}",
        "release.enabled=false",
        *_UNSEEN,
    ]
    return recorded(client, run, changes, allowed)


def likeness(first: History, second: History, upto: int) -> Likeness:
    """Each value of the first up to that step beside the second's."""
    found = {(step, name): value for step, metrics in second for name, value in metrics.items()}
    points = [(step, name, value) for step, metrics in first if step <= upto for name, value in metrics.items()]
    points.sort(key=lambda point: (point[0], point[1] not in _FIRST, point[1]))
    pairs = (Difference(step, name, value, found.get((step, name))) for step, name, value in points)
    return Likeness(upto, len({name for _, name, _ in points}), len(points), [pair for pair in pairs if pair.then != pair.now])


def _compared(one: Difference) -> str:
    now = "is not there" if one.now is None else f"is {one.now!r} ({abs(one.then - one.now):.2g} apart)"
    return f"{one.metric} was {one.then!r}, {now}"
