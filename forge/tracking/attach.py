"""Puts files that were made after a run among its artifacts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient

from forge.errors import TrackingError
from forge.tracking import provenance
from forge.tracking.tries import STORE_ERRORS, reason


def attach(client: MlflowClient, run_id: str, files: Sequence[Path], place: str, tags: Mapping[str, str]) -> None:
    """The files below `place` of the run, whatever its status, and tags. Raises TrackingError where the store takes none."""
    try:
        for file in files:
            client.log_artifact(run_id, str(file), place)
        for key, value in tags.items():
            client.set_tag(run_id, key, provenance.redact(value))
    except STORE_ERRORS as error:
        why = provenance.redact(reason(error))
        raise TrackingError(f"run {run_id[:8]}: {files[0].parent} could not be logged to it ({why})") from error
