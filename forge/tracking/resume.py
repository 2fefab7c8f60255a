"""Which run to go on with."""

from filelock import Timeout
from mlflow.exceptions import MlflowException

from forge.errors import TrackingError
from forge.spec import TrackingSpec
from forge.tracking import store
from forge.tracking.run import IDENTITY


def unfinished(spec: TrackingSpec, identity: str) -> str | None:
    """The newest run of this identity that did not finish and that no process works on; None when there is none."""
    client = store.connect(spec.uri)
    found = client.search_runs(
        [store.experiment(client, spec.experiment)],
        filter_string=f"tags.`{IDENTITY}` = '{identity}' and attributes.status != 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    return next((record.info.run_id for record in found if not _busy(record.info.run_id)), None)


def resumable(spec: TrackingSpec, run_id: str) -> str:
    """`run_id`, if such a run is there and not finished. Raises TrackingError."""
    try:
        record = store.connect(spec.uri).get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"resume={run_id}: the tracking store has no such run; resume=auto finds the last unfinished one") from error
    if record.info.status == "FINISHED":
        raise TrackingError(f"resume={run_id}: this run is finished; start a new one with resume=null")
    return run_id


def _busy(run_id: str) -> bool:
    try:
        with store.lock(f"run-{run_id}").acquire(timeout=0):
            return False
    except Timeout:
        return True
