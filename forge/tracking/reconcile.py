"""Runs that a death left RUNNING are told to be FAILED when the next run or sweep starts.

A kill -9 leaves nobody to say how a run ended. A run that was started from this root is dead when its process is gone and its lock is free;
one from elsewhere when its heartbeat has stood still for ten minutes, by this machine's clock. A run without a heartbeat isn't ours to
judge; one whose parent is at work is left to the parent, which saw how its child's process ended. Costs two calls to the store, some
20 ms, and four more a dead run.
"""

import time
from datetime import UTC, datetime

from filelock import Timeout
from mlflow import MlflowClient
from mlflow.entities import Run as RunRecord
from mlflow.entities import RunTag, ViewType

from forge import paths
from forge.tracking import heartbeat, provenance, store
from forge.tracking.heartbeat import Heartbeat
from forge.tracking.names import PARENT, ROOT, here, kind, way_on
from forge.tracking.tries import STORE_ERRORS, reason

STALE_S = 600.0
_OPEN = " and ".join(f"attributes.status != '{status}'" for status in ("FINISHED", "FAILED", "KILLED"))


def reconcile(client: MlflowClient, but: str | None = None) -> None:
    """Over all experiments. `but`: the run that is about to be gone on with. What fails is left to the next start."""
    try:
        experiments = [found.experiment_id for found in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)]
        left = client.search_runs(experiments, f"{_OPEN} and tags.`{heartbeat.TAG}` LIKE '{{%'", max_results=1000)
        dead = [record for record in left if _dead(record)]
        at_work = {record.info.run_id for record in left} - {record.info.run_id for record in dead}
        for record in dead:
            if record.info.run_id != but and record.data.tags.get(PARENT) not in at_work:
                _end(client, record.info.run_id)
    except STORE_ERRORS as error:
        print(f"forge: runs that a death left RUNNING could not be looked for ({provenance.redact(reason(error))})", flush=True)


def _dead(record: RunRecord) -> bool:
    """As far as its tags tell."""
    beat = heartbeat.read(record.data.tags.get(heartbeat.TAG))
    if beat is None:
        return False
    if record.data.tags.get(ROOT) == here():
        return not beat.lives()
    return record.info.status == "RUNNING" and time.time() - beat.seen_s > STALE_S


def _end(client: MlflowClient, run_id: str) -> None:
    """Under the run's lock, which who works on it holds: another start may have ended it since, or someone have gone on with it."""
    try:
        with store.lock(f"run-{run_id}").acquire(timeout=0):
            record = client.get_run(run_id)
            beat = heartbeat.read(record.data.tags.get(heartbeat.TAG))
            if beat is None or record.info.status not in ("RUNNING", "SCHEDULED") or not _dead(record):
                return
            logged_ms = max((metric.timestamp for metric in client.get_metric_history(run_id, "train/loss")), default=0)
            last_ms = max(record.info.start_time, int(beat.seen_s * 1000), logged_ms)
            cause = _cause(record, beat, last_ms)
            client.log_batch(run_id, tags=[RunTag("forge.cause", cause)])
            client.set_terminated(run_id, "FAILED", end_time=last_ms)
    except Timeout:
        return
    print(f"forge: run {record.info.run_name} ({run_id[:8]}) is FAILED now: {cause}", flush=True)


def _cause(record: RunRecord, beat: Heartbeat, last_ms: int) -> str:
    last_seen = datetime.fromtimestamp(last_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"its process (pid {beat.pid} on {beat.host}) ended without a word, last seen at {last_seen}; {_way_on(record)}"


def _way_on(record: RunRecord) -> str:
    tags, way = record.data.tags, way_on(record.data.tags)
    if what := kind(tags):
        return f"{way} goes on with the {what}"
    if tags.get(ROOT) != here():
        return f"{way} goes on with it there"
    saved = paths.checkpoints(record.info.run_id).glob("step-*/sha256.json")
    steps = [int(number) for file in saved if (number := file.parent.name.removeprefix("step-")).isdecimal()]
    return f"{way} goes on from step {max(steps)}" if steps else f"it had saved nothing, so {way} starts it over"
