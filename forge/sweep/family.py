"""Which sweep a command line means: a new one, or an earlier one that goes on or has come to its end."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from mlflow import MlflowClient

from forge.config import Config
from forge.errors import TrackingError
from forge.jobs import Jobs
from forge.settings import TrackingSpec
from forge.sweep.search import SWEPT, Proposal
from forge.tracking import reader, store
from forge.tracking.names import IDENTITY, ROOT, SWEEP, here
from forge.tracking.reader import Seen

WHOLE, FOLDER = "forge.sweep_whole", "forge.sweep_folder"
_NOT_THE_SEARCH = ("jobs", "release_winner", "again")


def identity(asked: Jobs) -> str:
    """A hash (16 hex digits) of what is swept over: the same jobs in any order, or the same space for the same sampler."""
    parts = sorted(config.identity for config in asked.configs)
    if asked.space is not None:
        parts += [str(asked.configs[0].sweep.sampler), repr(asked.space.dimensions)]
    return _hash(" ".join(parts))


def whole(config: Config) -> str:
    """The mark of a sweep that came to a good end under these settings; more trials are another end."""
    settings: dict[str, Any] = config.resolved["sweep"]
    return _hash(json.dumps({key: value for key, value in settings.items() if key not in _NOT_THE_SEARCH}, sort_keys=True))


def listed(asked: Jobs) -> list[Proposal]:
    """The jobs of a command line that lists them."""
    proposals = []
    for number, overrides in enumerate(asked.overrides):
        swept = tuple(o for o in overrides if o.lstrip("+~").partition("=")[0] in asked.swept)
        proposals.append(Proposal(number, overrides, swept))
    return proposals


def without_answers(job: Proposal) -> Proposal:
    """A child is told apart by its loss: it answers held-out questions, as does its base, only where the command line says how many."""
    asked = any(override.lstrip("+").startswith("evaluation.answers=") for override in job.overrides)
    return job if asked else replace(job, own=(*job.own, "evaluation.answers=0"))


def alone(mark: str) -> AbstractContextManager[None]:
    """Holds the sweep for this process, before it has a run. Raises TrackingError where another one does."""
    return held(f"sweep-{mark}", "this sweep")


def earlier(client: MlflowClient, spec: TrackingSpec, mark: str) -> Seen | None:
    """The newest parent run of this identity that was started from this root. Raises TrackingError where a process works on it."""
    found = client.search_runs(
        [store.experiment(client, spec.experiment)], f"tags.`{IDENTITY}` = '{mark}'", order_by=["attributes.start_time DESC"]
    )
    mine = [record.info.run_id for record in found if SWEEP in record.data.tags and record.data.tags.get(ROOT) == here()]
    if not mine:
        return None
    with held(f"run-{mine[0]}", f"this sweep (run {mine[0]})"):
        return reader.get(client, mine[0])


def proposal(run: Seen, fixed: Sequence[str]) -> Proposal:
    """The job that an earlier life of a search made this run for."""
    swept = tuple(json.loads(run.tags[SWEPT]))
    return Proposal(int(run.tags["forge.job"]) - 1, (*fixed, *swept), swept)


def held(lock: str, what: str) -> AbstractContextManager[None]:
    """Holds a lock while it is gone through. Raises TrackingError, with `what` is at work, where another process holds it."""
    return store.held(lock, TrackingError(f"{what} is being run by another process; wait for it, or start another with sweep.again=true"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
