"""Looks at runs while they train. A look reads five metrics' histories or so, some 5 ms each in a local store, and writes nothing.

Whatever fails while the store is read is a TrackingError: the next look may work.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import ViewType

from forge.errors import TrackingError
from forge.progress import Course
from forge.tracking import heartbeat, reader
from forge.tracking.names import ROOT, TOTAL, here
from forge.tracking.reader import Seen
from forge.tracking.tries import STORE_ERRORS, reason

_SHOWN = 5  # names in an error message
_RUNNING = ("RUNNING", "SCHEDULED")
_LAST = ("perf/eta_s", "perf/tokens_per_s", "memory/peak_gib")  # metrics of which the last value is enough


@dataclass(frozen=True)
class View:
    """A run at one moment. `sources`: the validation losses (nats a token) of each source, by step. `children`: of a sweep or a chain."""

    run: Seen
    course: Course
    sources: Mapping[str, Mapping[int, float]]
    children: tuple["View", ...] = ()

    @property
    def running(self) -> bool:
        return self.run.status in _RUNNING and not self.dead

    @property
    def elapsed(self) -> float:
        """Seconds from its start to its end, or to now."""
        return (self.run.ended or time.time() * 1000) / 1000 - self.run.started / 1000

    @property
    def dead(self) -> bool:
        """Whether it says RUNNING, but its process on this machine is gone."""
        beat = heartbeat.read(self.run.tags.get(heartbeat.TAG))
        return self.run.status == "RUNNING" and self.run.tags.get(ROOT) == here() and beat is not None and not beat.lives()

    @property
    def silent(self) -> float:
        """For how many seconds the run has given no sign of life; 0 where it gives none at all."""
        beat = heartbeat.read(self.run.tags.get(heartbeat.TAG))
        return max(0.0, time.time() - beat.seen_s) if beat else 0.0

    @property
    def expected(self) -> int:
        """How many children there will be, as far as the parent says."""
        return int(self.run.tags.get(TOTAL, len(self.children)))

    @property
    def lowest(self) -> float | None:
        """Its best validation loss: the chosen checkpoint's, or until there is one the lowest so far."""
        found = self.run.metrics.get("best/val_loss")
        return min(self.course.valid.values(), default=None) if found is None else found


def find(client: MlflowClient, wanted: str | None) -> Seen:
    """As reader.find(); None: the newest run that is running or, where its sweep or chain is too, that."""
    with _told():
        if wanted:
            return reader.find(client, wanted)
        experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)]
        newest = ["attributes.start_time DESC"]
        found = client.search_runs(experiments, "attributes.status = 'RUNNING'", order_by=newest, max_results=1)
        if found:
            seen = reader.get(client, found[0].info.run_id)
            parent = reader.get(client, seen.parent) if seen.parent else None
            return parent if parent and parent.status in _RUNNING else seen
        ended = client.search_runs(experiments, order_by=newest, max_results=_SHOWN)
    names = ", ".join(f"{run.info.run_name} ({run.info.run_id[:8]})" for run in ended)
    raise TrackingError(f"no run is running; name one to look at: the newest are {names or 'none: the store is empty'}")


def look(client: MlflowClient, run_id: str, former: View | None = None) -> View:
    """`former`: the view before, whose children need no second look where they had ended."""
    with _told():
        run = reader.get(client, run_id)
        if "trainer.total_steps" in run.params:
            return _view(client, run)
        known = {(view.run.id, view.run.ended): view for view in (former.children if former else ()) if not view.running}
        children = (known.get((child.id, child.ended)) or _view(client, child) for child in reader.children(client, run))
        return View(run, Course(0), {}, tuple(children))


def _view(client: MlflowClient, run: Seen) -> View:
    course = Course(int(run.params.get("trainer.total_steps", 0)))
    sources = sorted(key for key in run.metrics if key.startswith("val/loss/"))
    keys = [key for key in ("train/loss", "val/loss", *sources) if key in run.metrics]
    history = reader.history(client, run.id, keys)
    for step, metrics in history:
        course.take(metrics, step)
    told = {key: run.metrics[key] for key in _LAST if key in run.metrics}
    if run.status not in _RUNNING:
        told.pop("perf/eta_s", None)
    if course.step:
        course.take(told, course.step)
    by_source = {key.removeprefix("val/loss/"): {step: metrics[key] for step, metrics in history if key in metrics} for key in sources}
    return View(run, course, by_source)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise TrackingError(f"the tracking store can't be read ({reason(error)})") from error
