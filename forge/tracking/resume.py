"""Which run to go on with."""

from filelock import Timeout
from mlflow.exceptions import MlflowException

from forge import paths
from forge.errors import TrackingError
from forge.settings import TrackingSpec
from forge.tracking import store
from forge.tracking.names import IDENTITY, PARENT, ROOT, here
from forge.tracking.run import last_step

_WAIT_S = 1.0  # for one that only looks whether the run is dead


def unfinished(spec: TrackingSpec, identity: str) -> str | None:
    """The newest run of this identity, started from this root, that did not finish and that no process works on; else None.

    A sweep's child is its sweep's to go on with: alone it would release nothing.
    """
    client = store.connect(spec.uri)
    found = client.search_runs(
        [store.experiment(client, spec.experiment)],
        filter_string=f"tags.`{IDENTITY}` = '{identity}' and attributes.status != 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    wanted = (here(), spec.parent_run)
    ours = (record.info.run_id for record in found if (record.data.tags.get(ROOT), record.data.tags.get(PARENT)) == wanted)
    return next((run_id for run_id in ours if not _busy(run_id)), None)


def resumable(spec: TrackingSpec, run_id: str) -> str:
    """`run_id`, if such a run is there and not finished. Raises TrackingError."""
    client = store.connect(spec.uri)
    try:
        record = client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"resume={run_id}: the tracking store has no such run; resume=auto finds the last unfinished one") from error
    if record.info.status == "FINISHED":
        raise TrackingError(f"resume={run_id}: this run is finished; start a new one with resume=null")
    ran = record.data.tags.get(ROOT, "elsewhere")
    begun = last_step(client, run_id) > 0 or (ran != here() and record.info.status != "SCHEDULED")  # a sweep's child may start anywhere
    if begun and not paths.checkpoints(run_id).is_dir():
        raise TrackingError(f"resume={run_id}: its checkpoints are not here but where it ran, {ran}; go on there")
    return run_id


def _busy(run_id: str) -> bool:
    try:
        with store.lock(f"run-{run_id}").acquire(timeout=_WAIT_S):
            return False
    except Timeout:
        return True
