"""Stopping a run from the MLflow UI: the tag `forge.stop`, with any value but "", "false" and "0".

A look every few seconds takes 5 to 15 ms, none of them the training's. A tag on a sweep's parent run stops its children too.
"""

from collections.abc import Mapping

from mlflow import MlflowClient

from forge.tracking import store

TAG = "forge.stop"
POLL_S = 5.0
_OFF = ("", "false", "0")


class StopTag:
    """Whether the tags of a run, or of its parent where it has one, ask to stop. look() is for a thread, asked() for all."""

    def __init__(self, client: MlflowClient, run_id: str, parent: str | None = None):
        self._client, self._run_id, self._parent = client, run_id, parent
        self._reason: str | None = None

    def asked(self) -> str | None:
        """The reason to stop, once a tag was seen."""
        return self._reason

    def look(self) -> None:
        if self._reason is None and self._tagged(self._run_id):
            self._reason = f"stopped by the tag {TAG} in MLflow"
        if self._reason is None and self._parent and self._tagged(self._parent):
            self._reason = f"stopped by the tag {TAG} of its parent run in MLflow"

    def _tagged(self, run_id: str) -> bool:
        return wanted(self._client.get_run(run_id).data.tags)


def wanted(tags: Mapping[str, str]) -> bool:
    return tags.get(TAG, "").strip().lower() not in _OFF


def clear(client: MlflowClient, run_id: str) -> bool:
    """Takes the tag away, so that the run can be gone on with. Returns whether it asked to stop."""
    return wanted(store.untag(client, run_id, TAG))
