"""One MLflow run: opened before the data is read, closed with a status that tells how it ended."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from filelock import Timeout
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as RunRecord
from mlflow.exceptions import MlflowException

from forge import paths
from forge.errors import ForgeError, Stopped, TrackingError
from forge.settings import TrackingSpec
from forge.spec import Ledger, Metrics
from forge.tracking import datasets, provenance, stop, store
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
        self._stop = stop.StopTag(client, self.id, self.parent)

    def asked_to_stop(self) -> str | None:
        """The reason to stop, once someone set the tag forge.stop on this run, or on its sweep, in MLflow. Known some 5 s later."""
        return self._stop.asked()

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

    def image(self, draw: Callable[[], Figure], key: str, step: int) -> None:
        """Under the step slider of the run's images. Drawn in the background: `draw` must not look at what training goes on to change."""
        if step > self._logged:
            self._writer.call(lambda: self._client.log_image(self.id, _pixels(draw()), key=key, step=step, synchronous=True))

    def figure(self, figure: Figure, file: str) -> None:
        self._writer.call(lambda: self._client.log_figure(self.id, figure, file))

    def close(self, status: str, cause: str | None) -> None:
        """Send what is left. A signal meanwhile loses that, not the status, which then is KILLED."""
        try:
            self._writer.close()
        except (Stopped, KeyboardInterrupt) as error:
            status, cause = "KILLED", _cause(error)
            raise
        finally:
            self._end(status, cause)

    def _end(self, status: str, cause: str | None) -> None:
        try:
            if self._writer.non_finite:
                self.tags({"forge.non_finite_metrics": str(self._writer.non_finite)})
            if self._writer.lost:
                lost = f"{self._writer.lost} metrics or images could not be sent to MLflow ({self._writer.why})"
                print(f"forge: {provenance.redact(lost)}; the checkpoints hold the whole history")
                self.tags({"forge.lost_metrics": str(self._writer.lost)})
            if cause:
                self.tags({"forge.cause": cause[:_TEXT_LENGTH]})
            self._client.set_terminated(self.id, status)
        except MlflowException as error:  # must not take the place of what ended the run
            why = provenance.redact(str(error).splitlines()[0])
            print(f"forge: MLflow could not be told that the run is {status} ({why}); its page says RUNNING until resume=auto ends it")
        finally:
            with suppress(MlflowException):
                self._stop.close()


@contextmanager
def run(spec: TrackingSpec, identity: str, resume_id: str | None = None, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Open a run, or go on with `resume_id`. FINISHED at a normal end, KILLED with the cause when it was stopped, else FAILED with it."""
    client = store.connect(spec.uri)
    if resume_id:
        record = client.get_run(resume_id)
    else:
        parent = {PARENT: spec.parent_run} if spec.parent_run else {}
        everything = {IDENTITY: identity, ROOT: here()} | parent | provenance.tags() | dict(spec.tags) | dict(tags or {})
        redacted = {key: provenance.redact(value) for key, value in everything.items()}
        record = client.create_run(store.experiment(client, spec.experiment), run_name=spec.run_name, tags=redacted)
    with _alone(record.info.run_id):
        if resume_id and stop.clear(client, resume_id):
            print(f"forge: the tag {stop.TAG} was left from before and is taken away; set it again to stop this run", flush=True)
        opened = Run(client, record, resumed=resume_id is not None)
        try:
            if opened.resumed:
                client.update_run(opened.id, status="RUNNING")
                opened.tags(provenance.tags() | {"forge.cause": "", "forge.stop_reason": ""})
            yield opened
        except BaseException as error:
            opened.close("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED", _cause(error))
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


def _cause(error: BaseException) -> str:
    if isinstance(error, ForgeError | Stopped):
        return str(error)
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()
