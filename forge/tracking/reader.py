"""Reads runs back from the store, for what looks at runs without training them: watch, compare, a sweep's parent. It writes nothing."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run as RunRecord
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from forge.errors import TrackingError
from forge.spec import Metrics
from forge.tracking import store
from forge.tracking.names import PARENT
from forge.tracking.tries import STORE_ERRORS, again, reason

_PAGE = 1000
_SHOWN = 5  # names in an error message


@dataclass(frozen=True)
class Seen:
    """A run as the store has it now. `metrics` holds the last value of each; times are in ms since 1970, `ended` None while it runs."""

    id: str
    name: str
    experiment_id: str
    status: str
    started: int
    ended: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Metrics

    @property
    def parent(self) -> str | None:
        return self.tags.get(PARENT)


def opened(configured: str | None) -> MlflowClient:
    """A client of a store that is there. Raises TrackingError; makes nothing."""
    where = store.uri(configured)
    if where.startswith("sqlite:") and not Path(where.removeprefix("sqlite:///")).is_file():
        raise TrackingError(f"there is no tracking store at {where}; set MLFLOW_TRACKING_URI or FORGE_HOME to where runs are")
    return store.connect(configured)


def find(client: MlflowClient, wanted: str) -> Seen:
    """The run of that id, of the only id that begins so (6 characters or more), or the newest of that name. Raises TrackingError."""
    if re.fullmatch(r"[0-9a-f]{32}", wanted):
        try:
            return _seen(client.get_run(wanted))
        except MlflowException as error:
            raise TrackingError(f"{wanted}: the tracking store has no such run; `mlflow ui` lists those that there are") from error
    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)]
    # A quote in a name can't be escaped in MLflow's filters; such a run is found by its id.
    named = [] if "'" in wanted else _search(client, experiments, f"attributes.run_name = '{wanted}'")
    if named:
        return named[0]
    runs = _search(client, experiments, "")
    beginning = [run for run in runs if len(wanted) >= 6 and run.id.startswith(wanted)]
    if len(beginning) == 1:
        return beginning[0]
    if beginning:
        raise TrackingError(
            f"{wanted}: {len(beginning)} runs' ids begin so; write more of it: {', '.join(r.id for r in beginning[:_SHOWN])}"
        )
    newest = ", ".join(f"{run.name} ({run.id[:8]})" for run in runs[:_SHOWN])
    raise TrackingError(f"{wanted}: no run has this id or name; the newest are {newest or 'none: the store is empty'}")


def children(client: MlflowClient, parent: Seen) -> list[Seen]:
    """A sweep's runs or a chain's, the first started first."""
    return _search(client, [parent.experiment_id], f"tags.`{PARENT}` = '{parent.id}'")[::-1]


def get(client: MlflowClient, run_id: str) -> Seen:
    return _seen(client.get_run(run_id))


def history(client: MlflowClient, run_id: str, keys: Sequence[str] | None = None) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) in order, as the engine emitted them; `keys`: these alone. Metrics of the run as a whole stand at step 0.

    One call a metric: some 5 ms each in a local store.
    """
    names = client.get_run(run_id).data.metrics if keys is None else keys
    steps: dict[int, dict[str, float]] = {}
    for name in names:
        for metric in client.get_metric_history(run_id, name):
            steps.setdefault(metric.step, {})[name] = metric.value
    return sorted(steps.items())


def text(client: MlflowClient, run_id: str, file: str) -> str | None:
    """What a file among the run's artifacts holds; None where there is none. Raises TrackingError where that can't be told."""
    try:
        beside = again(lambda: client.list_artifacts(run_id, file.rpartition("/")[0] or None))
        if all(one.path != file for one in beside):
            return None
        with tempfile.TemporaryDirectory() as folder:
            return Path(again(lambda: client.download_artifacts(run_id, file, folder))).read_text(encoding="utf-8")
    except STORE_ERRORS as error:
        raise TrackingError(f"run {run_id[:8]}: {file} can't be read from the tracking store ({reason(error)})") from error


def texts(client: MlflowClient, run_id: str, folder: str) -> dict[str, str]:
    """What the files of a folder among the run's artifacts hold, by their names; empty where there is no such folder. Raises TrackingError
    where that can't be told."""
    try:
        if not again(lambda: client.list_artifacts(run_id, folder)):
            return {}
        with tempfile.TemporaryDirectory() as into:
            place = Path(again(lambda: client.download_artifacts(run_id, folder, into)))
            return {file.name: file.read_text(encoding="utf-8") for file in sorted(place.iterdir())}
    except STORE_ERRORS as error:
        raise TrackingError(f"run {run_id[:8]}: {folder} can't be read from the tracking store ({reason(error)})") from error


def _search(client: MlflowClient, experiments: list[str], condition: str) -> list[Seen]:
    """All that match, the newest first."""
    found: list[Seen] = []
    token = None
    while True:
        page = client.search_runs(experiments, condition, order_by=["attributes.start_time DESC"], max_results=_PAGE, page_token=token)
        found += map(_seen, page)
        token = page.token
        if not token:
            return found


def _seen(record: RunRecord) -> Seen:
    info, data = record.info, record.data
    return Seen(
        info.run_id, info.run_name, info.experiment_id, info.status, info.start_time, info.end_time, data.tags, data.params, data.metrics
    )
