"""Opens the tracking store: MLflow's own default places below the project's root, or wherever MLFLOW_TRACKING_URI points.

Two processes that create one SQLite store at once destroy it, so opening happens under a file lock.
"""

import logging
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from forge import paths
from forge.errors import ForgeError, TrackingError

_REGISTRY = os.environ.get("MLFLOW_REGISTRY_URI")  # the user's: MLflow exports what is set by code, too


def uri(configured: str | None) -> str:
    """`configured`, else MLFLOW_TRACKING_URI, else mlflow.db at the root: the place where a bare `mlflow ui` looks from there."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.root() / 'mlflow.db'}"


def connect(configured: str | None) -> MlflowClient:
    """A client of the store, which is created when it does not exist. Also sets the store for mlflow's own global functions.

    Raises TrackingError when the store can't be opened.
    """
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a traceback for each locked moment; what is lost, we say
    where = uri(configured)
    mlflow.set_tracking_uri(where)
    if not _REGISTRY:
        mlflow.set_registry_uri(where)
    with _alone(where):
        try:
            client = MlflowClient(where)
            client.search_experiments(max_results=1)  # opens the database, and makes its tables the first time
        except (MlflowException, SQLAlchemyError, OSError) as error:
            why = _shown(str(error).splitlines()[0])
            raise TrackingError(
                f"the tracking store {_shown(where)} can't be opened ({why}); check tracking.uri and MLFLOW_TRACKING_URI"
            ) from error
    return client


def page(configured: str | None, run_id: str) -> tuple[str, str]:
    """What to type to see the store in MLflow's UI (empty where a server shows it), and a run's address, in the view for model training."""
    where = uri(configured)
    found = MlflowClient(where).get_run(run_id).info.experiment_id
    server = _shown(where) if where.startswith("http") else "http://127.0.0.1:5000"
    command = "" if where.startswith("http") else f"{prefix(configured)}mlflow ui"
    return command, f"{server}/#/experiments/{found}/runs/{run_id}?workflowType=machine_learning"


def prefix(configured: str | None) -> str:
    """What to put before an `mlflow …` command so that it finds the store: its folder, or its address without a password."""
    where = uri(configured)
    folder = local_folder(where)
    if folder and where == f"sqlite:///{folder / 'mlflow.db'}":
        return f"cd {shlex.quote(str(folder))} && "
    return f"MLFLOW_TRACKING_URI={shlex.quote(_shown(where))} "


def local_folder(where: str) -> Path | None:
    """The folder of a local store's file."""
    return Path(where.removeprefix("sqlite:///")).absolute().parent if where.startswith("sqlite:") else None


def _shown(where: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//…@", where)


def _alone(where: str) -> AbstractContextManager[object]:
    """One process at a time on a local store's file; a server looks after itself."""
    return lock(f"store-{sha256(where.encode()).hexdigest()[:8]}") if local_folder(where) else nullcontext()


def experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment, created when missing. Local artifacts go to mlruns/artifacts."""
    with _alone(client.tracking_uri):
        found = client.get_experiment_by_name(name)
        if found is None:
            folder = local_folder(client.tracking_uri)
            return str(client.create_experiment(name, artifact_location=(folder / "mlruns" / "artifacts").as_uri() if folder else None))
    if found.lifecycle_stage == "deleted":
        raise TrackingError(f"experiment {name!r} was deleted in MLflow; restore it there, or choose another tracking.experiment")
    return str(found.experiment_id)


def lock(name: str) -> FileLock:
    """A lock between the processes of this machine that share the root."""
    paths.locks().mkdir(parents=True, exist_ok=True)
    return FileLock(paths.locks() / f"{name}.lock")


@contextmanager
def held(name: str, refusal: ForgeError, wait_s: float = 0) -> Iterator[None]:
    """Holds lock(name), which the system drops when a process dies, however it dies. Raises `refusal` where another has it for longer."""
    try:
        taken = lock(name).acquire(timeout=wait_s)
    except Timeout as error:
        raise refusal from error
    with taken:
        yield


def untag(client: MlflowClient, run_id: str, *names: str) -> dict[str, str]:
    """Takes away those of the tags that the run has. Returns all that it had."""
    tags: dict[str, str] = client.get_run(run_id).data.tags
    for name in tags.keys() & {*names}:
        client.delete_tag(run_id, name)
    return tags
