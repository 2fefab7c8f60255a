"""Opens the tracking store: MLflow's own default places below the project's root, or wherever MLFLOW_TRACKING_URI points.

Two processes that create one SQLite store at once destroy it, so opening happens under a file lock.
"""

import logging
import os
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from forge import paths
from forge.errors import TrackingError


def uri(configured: str | None) -> str:
    """`configured`, else MLFLOW_TRACKING_URI, else mlflow.db at the root: the place where a bare `mlflow ui` looks from there."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.root() / 'mlflow.db'}"


def connect(configured: str | None) -> MlflowClient:
    """A client of the store, which is created when it does not exist. Also sets the store for mlflow's own global functions.

    Raises TrackingError when the store can't be opened.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    where = uri(configured)
    mlflow.set_tracking_uri(where)
    mlflow.set_registry_uri(where)
    with lock("store"):
        try:
            client = MlflowClient(where)
            client.search_experiments(max_results=1)  # opens the database, and makes its tables the first time
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise TrackingError(
                f"the tracking store {where} can't be opened ({str(error).splitlines()[0]}); check tracking.uri and MLFLOW_TRACKING_URI"
            ) from error
    return client


def page(configured: str | None, run_id: str) -> tuple[Path | None, str]:
    """Where to type `mlflow ui` (None: a server has its own), and the run's address in it, in the view for model training."""
    where = uri(configured)
    found = MlflowClient(where).get_run(run_id).info.experiment_id
    server = where if where.startswith("http") else "http://127.0.0.1:5000"
    folder = Path(where.removeprefix("sqlite:///")).parent if where.startswith("sqlite:") else None
    return folder, f"{server}/#/experiments/{found}/runs/{run_id}?workflowType=machine_learning"


def experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment, created when missing. Local artifacts go to mlruns/artifacts."""
    with lock("store"):
        found = client.get_experiment_by_name(name)
        if found is None:
            local = client.tracking_uri.startswith(("sqlite:", "file:"))
            return str(client.create_experiment(name, artifact_location=(paths.runs() / "artifacts").as_uri() if local else None))
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"experiment {name!r} was deleted in MLflow; restore it there, or choose another tracking.experiment")
    return str(found.experiment_id)


def lock(name: str) -> FileLock:
    """A lock between the processes of this machine that share the root."""
    paths.locks().mkdir(parents=True, exist_ok=True)
    return FileLock(paths.locks() / f"{name}.lock")
