"""One MLflow run: opened before the data is read, closed with a status that tells how it ended."""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from filelock import Timeout
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as RunRecord

from forge import paths
from forge.errors import ForgeError, Stopped, TrackingError
from forge.settings import TrackingSpec
from forge.spec import Ledger, Metrics
from forge.tracking import datasets, provenance, store
from forge.tracking.writer import Writer

IDENTITY, ROOT, PARENT = "forge.identity", "forge.root", "mlflow.parentRunId"
_TEXT_LENGTH = 6000  # MLflow's limits
_PARAMS_A_CALL = 100


class Run:
    """An open run. `resumed` says whether it goes on from an earlier life, whose metrics are not logged again."""

    def __init__(self, client: MlflowClient, record: RunRecord, resumed: bool):
        self.id, self.name, self.resumed = record.info.run_id, record.info.run_name, resumed
        self.parent = record.data.tags.get(PARENT)
        self._client = client
        self._logged = last_step(client, self.id) if resumed else -1
        self._tables = record.data.tags.get("mlflow.loggedArtifacts", "")
        self._held = {*record.data.metrics, *record.data.params}
        self._writer = Writer(client, self.id)

    def log(self, metrics: Metrics, step: int) -> None:
        """The engine's emit. A step that an earlier life of this run logged is not logged twice."""
        if step > self._logged:
            self._writer.metrics(metrics, step)

    def summary(self, metrics: Metrics) -> None:
        """Metrics of the run as a whole, each logged once in the run's lives. At step 0: MLflow draws them as bars."""
        self._writer.metrics({name: value for name, value in metrics.items() if name not in self._held}, 0)

    def params(self, params: Mapping[str, Any]) -> None:
        """Those that an earlier life logged are the same, and MLflow refuses to change them."""
        entities = [Param(key, provenance.redact(str(value))[:_TEXT_LENGTH]) for key, value in params.items() if key not in self._held]
        for start in range(0, len(entities), _PARAMS_A_CALL):
            self._client.log_batch(self.id, params=entities[start : start + _PARAMS_A_CALL])

    def tags(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self.id, tags=[RunTag(key, provenance.redact(value)) for key, value in tags.items()])

    def describe(self, markdown: str) -> None:
        """What the run's page shows as its description."""
        self.tags({"mlflow.note.content": markdown})

    def text(self, text: str, file: str) -> None:
        self._client.log_text(self.id, provenance.redact(text), file)

    def table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """Logged once in the run's lives: MLflow would append."""
        if file not in self._tables:
            self._client.log_table(self.id, dict(columns), file)

    def data(self, ledger: Ledger, sources: Mapping[str, Mapping[str, Any]]) -> None:
        """The ledger as metrics, as a file and as dataset inputs."""
        digests = {
            "data_digest": ledger.digest,
            "valid_digest": ledger.valid_digest,
            "tokenizer_digest": ledger.tokenizer_digest,
            "template_digest": ledger.template_digest,
        }
        self.tags({f"forge.{name}": value for name, value in digests.items()})
        self.summary(ledger.counts)
        self._client.log_inputs(self.id, datasets.inputs(ledger, sources))
        about = {**digests, "sources": ledger.source_digests, "packing": ledger.packing, **ledger.counts, "not_used": ledger.examples}
        self.text(json.dumps(about, indent=2, ensure_ascii=False), "data/ledger.json")

    def image(self, figure: Figure, key: str, step: int) -> None:
        """The figure as it is now, under the step slider of the run's images."""
        if step > self._logged:
            pixels = _pixels(figure)
            self._writer.call(lambda: self._client.log_image(self.id, pixels, key=key, step=step, synchronous=True))

    def figure(self, figure: Figure, file: str) -> None:
        self._writer.call(lambda: self._client.log_figure(self.id, figure, file))

    def close(self, status: str, cause: str | None) -> None:
        self._writer.close()
        if self._writer.non_finite:
            self.tags({"forge.non_finite_metrics": str(self._writer.non_finite)})
        if self._writer.lost:
            print(f"forge: {self._writer.lost} metrics or images could not be sent to MLflow; the checkpoints hold the whole history")
            self.tags({"forge.lost_metrics": str(self._writer.lost)})
        if cause:
            self.tags({"forge.cause": cause[:_TEXT_LENGTH]})
        self._client.set_terminated(self.id, status)


@contextmanager
def run(spec: TrackingSpec, identity: str, resume_id: str | None = None, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Open a run, or go on with `resume_id`. FINISHED at a normal end, KILLED when a signal stopped it, else FAILED with the cause."""
    client = store.connect(spec.uri)
    if resume_id:
        record = client.get_run(resume_id)
    else:
        parent = {PARENT: spec.parent_run} if spec.parent_run else {}
        everything = {IDENTITY: identity, ROOT: here()} | parent | provenance.tags() | dict(spec.tags) | dict(tags or {})
        redacted = {key: provenance.redact(value) for key, value in everything.items()}
        record = client.create_run(store.experiment(client, spec.experiment), run_name=spec.run_name, tags=redacted)
    with _alone(record.info.run_id):
        opened = Run(client, record, resumed=resume_id is not None)
        if opened.resumed:
            client.update_run(opened.id, status="RUNNING")
            opened.tags(provenance.tags() | {"forge.cause": ""})
        try:
            yield opened
        except (Stopped, KeyboardInterrupt) as stop:
            opened.close("KILLED", str(stop) or "interrupted")
            raise
        except BaseException as error:
            opened.close("FAILED", str(error) if isinstance(error, ForgeError) else f"{type(error).__name__}: {error}")
            raise
        opened.close("FINISHED", None)


def here() -> str:
    """Where this process keeps checkpoints: what a run has to have been started from to be gone on with."""
    return f"{platform.node()}:{paths.root()}"


@contextmanager
def _alone(run_id: str) -> Iterator[None]:
    """Holds the run for this process. The system drops the lock when a process dies, however it dies."""
    try:
        with store.lock(f"run-{run_id}").acquire(timeout=0):
            yield
    except Timeout as error:
        raise TrackingError(f"run {run_id} is being trained by another process; wait for it, or stop it first") from error


def last_step(client: MlflowClient, run_id: str) -> int:
    """The last step that was logged, or -1. The metrics of one step are sent in one transaction."""
    histories = (client.get_metric_history(run_id, key) for key in ("train/loss", "val/loss"))
    return max((metric.step for history in histories for metric in history), default=-1)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
