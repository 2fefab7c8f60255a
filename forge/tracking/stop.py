"""Stopping a run from the MLflow UI: the tag `forge.stop`, with any value but "", "false" and "0".

A thread looks every few seconds (5 to 15 ms each, none of them the training's), and goes on looking when the store is away. A tag on a
sweep's parent run stops its children too.
"""

import threading
from collections.abc import Mapping

from mlflow import MlflowClient

TAG = "forge.stop"
_POLL_S = 5.0
_OFF = ("", "false", "0")


class StopTag:
    """Watches the tags of a run, and of its parent where it has one, from the moment it is made until close()."""

    def __init__(self, client: MlflowClient, run_id: str, parent: str | None = None):
        self._client, self._run_id, self._parent = client, run_id, parent
        self._reason: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="mlflow-stop", daemon=True)
        self._thread.start()

    def asked(self) -> str | None:
        """The reason to stop, once a tag was seen."""
        return self._reason

    def close(self) -> None:
        """Ends the watch and takes the run's own tag away, so that going on with the run does not stop at once."""
        self._ended.set()
        self._thread.join(timeout=1.0)  # a server that does not answer must not hold the end up
        clear(self._client, self._run_id)

    def _look(self) -> None:
        while self._reason is None and not self._ended.wait(_POLL_S):
            try:
                if self._tagged(self._run_id):
                    self._reason = f"stopped by the tag {TAG} in MLflow"
                elif self._parent and self._tagged(self._parent):
                    self._reason = f"stopped by the tag {TAG} of its sweep in MLflow"
            except Exception:
                continue  # the store is away, whatever the error: the next look may work

    def _tagged(self, run_id: str) -> bool:
        return wanted(self._client.get_run(run_id).data.tags)


def wanted(tags: Mapping[str, str]) -> bool:
    return tags.get(TAG, "").strip().lower() not in _OFF


def clear(client: MlflowClient, run_id: str) -> bool:
    """Takes the tag away. Returns whether it asked to stop."""
    tags = client.get_run(run_id).data.tags
    if TAG in tags:
        client.delete_tag(run_id, TAG)
    return wanted(tags)
