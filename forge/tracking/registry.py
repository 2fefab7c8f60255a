"""The model registry: fetch a version, register a new one, move aliases under a lock."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from forge import audit, paths
from forge.config import Config
from forge.errors import ModelError
from forge.tracking import store
from forge.tracking.datasets import DIGEST_LENGTH
from forge.words import VERSION

_LOADER = "forge.models.loaders.registry"


@dataclass(frozen=True)
class Version:
    """A registered version. `tags` hold its validation loss and the digests that say what it can be compared with."""

    name: str
    number: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


def fetch(configured: str | None, uri: str) -> tuple[Path, str]:
    """The folder (Hugging Face layout) of a registered model and its version, as models:/NAME/VERSION.

    `uri` is models:/NAME@ALIAS or models:/NAME/VERSION. A local store's folder is used where it lies, a remote one's is downloaded.
    Raises ModelError.
    """
    client = store.connect(configured)
    with _told(uri):
        version = _resolve(client, uri)
        place = None if store.local_folder(client.tracking_uri) else _cached(version)
        downloaded = Path(mlflow.artifacts.download_artifacts(artifact_uri=version, dst_path=place))
    found = sorted(downloaded.rglob("config.json"))
    if not found:
        raise ModelError(f"{uri}: it holds no language model folder (config.json); was it registered by forge?")
    return found[0].parent, version


def require(configs: Iterable[Config]) -> None:
    """Raises ModelError where one of them starts from a registered model that isn't there. Costs a look-up each, and downloads nothing."""
    nodes = ((config.tracking.uri, config.resolved["model"]) for config in configs)
    wanted = dict.fromkeys((configured, str(node["uri"])) for configured, node in nodes if node["_target_"] == _LOADER)
    for configured, uri in wanted:
        client = store.connect(configured)
        with _told(uri):
            _resolve(client, uri)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """What the registry or the disk refuses, as one line about the model."""
    try:
        yield
    except (MlflowException, OSError) as error:
        raise ModelError(f"{uri}: {str(error).splitlines()[0].rstrip('.')}; `mlflow ui` lists the models that there are") from error


def _cached(version: str) -> str:
    folder = paths.within(paths.cache() / "models", version.removeprefix("models:/"))
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _resolve(client: MlflowClient, uri: str) -> str:
    """The uri of a version that is there, in place of an alias, which may point elsewhere tomorrow."""
    match = VERSION.fullmatch(uri)
    if not match:
        raise ModelError(f"{uri}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, version, alias_name = match.groups()
    found = client.get_model_version(name, version) if version else client.get_model_version_by_alias(name, alias_name)
    return f"models:/{name}/{found.version}"


Bearer = Callable[[str], Version | None]  # of an alias
Move = Callable[[str, Version, str], None]  # an alias to a version, and why


@dataclass(frozen=True)
class Candidate:
    """What is to be registered. `arguments` are those of MLflow's pyfunc flavor; `scores` is by source: the loss on it, its digest."""

    run_id: str
    step: int
    arguments: Mapping[str, Any]
    tags: Mapping[str, str]
    description: str
    scores: Mapping[str, tuple[float, str]]


def register(configured: str | None, name: str, candidate: Candidate) -> Version:
    """Log a pyfunc as a model of its run, at its checkpoint's step, and make it a version of `name`, without an alias."""
    client = store.connect(configured)
    run_id = candidate.run_id
    # Without this MLflow takes its default experiment, whose artifacts lie in whatever folder the command was typed in.
    mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    with warnings.catch_warnings():
        # No input example on purpose: MLflow would load the weights once more to try it.
        warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
        logged = Model.log(artifact_path=None, name=name, flavor=mlflow.pyfunc, run_id=run_id, step=candidate.step, **candidate.arguments)
    for source, (loss, digest) in candidate.scores.items():
        client.log_metric(
            run_id,
            f"release/val_loss/{source}",
            loss,
            step=candidate.step,
            model_id=logged.model_id,
            dataset_name=source,  # ties the model to its datasets
            dataset_digest=digest[:DIGEST_LENGTH],
        )
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        source=logged.model_uri,
        run_id=run_id,
        model_id=logged.model_id,
        tags=dict(candidate.tags),
        description=candidate.description,
    )
    # What mlflow.register_model() notes on the model, so that its page shows the version.
    client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([{"name": name, "version": version.version}])})
    made = Version(name, str(version.version), dict(candidate.tags))
    audit.note("register version", made.uri, f"step {candidate.step} of run {run_id}")
    return made


def registered(configured: str | None, name: str, run_id: str, tags: Mapping[str, str]) -> Version | None:
    """The newest version of `name` that the run registered with these tags, if there is one."""
    found = [one for one in store.connect(configured).search_model_versions(f"run_id = '{run_id}'") if one.name == name]
    same = [Version(name, str(one.version), dict(one.tags)) for one in found if tags.items() <= one.tags.items()]
    return max(same, key=lambda one: int(one.number), default=None)


@contextmanager
def aliases(configured: str | None, name: str) -> Iterator[tuple[Bearer, Move]]:
    """Under a lock: who bears an alias of the model now, and the function that moves one."""
    client = store.connect(configured)

    def move(alias: str, version: Version, why: str) -> None:
        client.set_registered_model_alias(name, alias, version.number)
        audit.note("move alias", f"models:/{name}@{alias}", f"to version {version.number}: {why}")

    with store.lock(f"alias-{name}"):
        yield lambda alias: _bearer(client, name, alias), move


def tag(configured: str | None, version: Version, tags: Mapping[str, str]) -> None:
    client = store.connect(configured)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.number, key, value)


def _bearer(client: MlflowClient, name: str, alias_name: str) -> Version | None:
    try:
        found = client.get_model_version_by_alias(name, alias_name)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return Version(name, str(found.version), dict(found.tags))
