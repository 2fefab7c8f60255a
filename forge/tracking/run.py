"""One MLflow run: opened before the data is read, closed with a status that tells how it ended."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as RunRecord

from forge.errors import ForgeError, Stopped, TrackingError
from forge.settings import TrackingSpec
from forge.spec import Ledger, Metrics
from forge.tracking import datasets, heartbeat, mirror, provenance, reader, stop, store
from forge.tracking.checkpoints import Checkpoints, Scores
from forge.tracking.mirror import Mirror
from forge.tracking.names import IDENTITY, PARENT, ROOT, WENT_ON, here
from forge.tracking.pulse import Pulse
from forge.tracking.reconcile import reconcile
from forge.tracking.system import System, samples_of
from forge.tracking.tries import STORE_ERRORS, Tries, again, reason
from forge.tracking.writer import Writer

T = TypeVar("T")

_TEXT_LENGTH = 6000  # MLflow's limits
_PARAMS_A_CALL = 100
_WAIT_S = 2.0  # for one that only looks whether the run is dead


class Run:
    """An open run. `resumed` says whether it goes on from an earlier life that logged steps, the last of them `logged`; they are not
    logged again.

    What can't be sent is tried again, then said and counted: no answer of the store ends a training.
    """

    def __init__(self, client: MlflowClient, record: RunRecord, known: bool, spec: TrackingSpec):
        self.id, self.name = record.info.run_id, record.info.run_name
        self.parent = record.data.tags.get(PARENT)
        self._client = client
        self.logged = last_step(client, self.id) if known else -1
        self.resumed = self.logged >= 0
        sampled = samples_of(client, self.id) if known else 0
        self._tables = record.data.tags.get("mlflow.loggedArtifacts", "")
        self._held: dict[str, Any] = {**record.data.metrics, **record.data.params}
        self._tries = Tries()
        self._scores: dict[int, Scores] = {}
        self._checkpoints = Checkpoints(client, record)
        self._mirror = Mirror(mirror.place(spec.experiment, self.name, self.id)) if spec.tensorboard else None
        self._writer = Writer(client, self.id, self._mirror.write if self._mirror else None)
        self._stop = stop.StopTag(client, self.id, self.parent)
        tasks = [(stop.POLL_S, self._stop.look), (heartbeat.BEAT_S, self._beat)]
        if spec.system_metrics is not None:
            tasks.append((spec.system_metrics, System(self._writer.metrics, sampled).sample))
        self._pulse = Pulse(*tasks)

    def asked_to_stop(self) -> str | None:
        """The reason to stop, once someone set the tag forge.stop on this run, or on its sweep, in MLflow. Known some 5 s later."""
        return self._stop.asked()

    def log(self, metrics: Metrics, step: int) -> None:
        """The engine's emit. A step that an earlier life of this run logged is not logged twice."""
        logged_ms = None
        if step > self.logged:
            logged_ms = self._writer.metrics(metrics, step)
        if "val/loss" in metrics:
            self._scores[step] = Scores(metrics, logged_ms)

    def summary(self, metrics: Metrics) -> None:
        """Metrics of the run as a whole; one that an earlier life logged is logged again where it changed. At step 0: MLflow draws bars."""
        self._writer.metrics({name: value for name, value in metrics.items() if self._held.get(name) != value}, 0)

    def checkpoints(self, kept: Mapping[int, Path]) -> None:
        """Show the evaluated checkpoints that are on disk, by step, as logged models with their val/… metrics, and no others."""
        kept, scores = dict(kept), {step: self._scores[step] for step in kept if step in self._scores}
        self._writer.call(lambda: self._checkpoints.keep(kept, scores))

    def best(self, step: int) -> None:
        """Tag the checkpoint that was chosen."""
        self._writer.call(lambda: self._checkpoints.best(step))

    def params(self, params: Mapping[str, Any]) -> None:
        """Those that an earlier life logged are the same, and MLflow refuses to change them."""
        entities = [Param(key, provenance.redact(str(value))[:_TEXT_LENGTH]) for key, value in params.items() if key not in self._held]
        for start in range(0, len(entities), _PARAMS_A_CALL):
            batch = entities[start : start + _PARAMS_A_CALL]
            self._send("parameters", partial(self._client.log_batch, self.id, params=batch), len(batch))

    def tags(self, tags: Mapping[str, str]) -> None:
        entities = [RunTag(key, provenance.redact(value)) for key, value in tags.items()]
        self._send(f"the tags {', '.join(tags)}", partial(self._client.log_batch, self.id, tags=entities), len(entities))

    def describe(self, markdown: str) -> None:
        """What the run's page shows as its description."""
        self.tags({"mlflow.note.content": markdown})

    def text(self, text: str, file: str) -> None:
        self._send(file, partial(self._client.log_text, self.id, provenance.redact(text), file))

    def texts(self, folder: str) -> dict[str, str]:
        """What earlier lives of this run put into a folder, by the files' names; empty, and said so, where the store doesn't give it."""
        if not self.resumed:
            return {}
        try:
            return reader.texts(self._client, self.id, folder)
        except TrackingError as error:
            print(f"forge: {provenance.redact(str(error))}; the run goes on without", flush=True)
            return {}

    def table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """Logged once in the run's lives: MLflow would append."""
        if file not in self._tables:
            self._send(file, partial(self._client.log_table, self.id, dict(columns), file))

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
        self._send("the datasets", partial(self._client.log_inputs, self.id, datasets.inputs(ledger, sources)))
        about = {**digests, "sources": ledger.source_digests, "packing": ledger.packing, **ledger.counts, "not_used": ledger.examples}
        self.text(json.dumps(about, indent=2, ensure_ascii=False), "data/ledger.json")

    def image(self, draw: Callable[[], Figure], key: str, step: int) -> None:
        """Under the step slider of the run's images. Drawn in the background: `draw` must not look at what training goes on to change."""
        if step > self.logged:
            self._writer.call(lambda: self._client.log_image(self.id, _pixels(draw()), key=key, step=step, synchronous=True))

    def figure(self, figure: Figure, file: str) -> None:
        self._writer.call(lambda: self._client.log_figure(self.id, figure, file))

    def close(self, status: str, cause: str | None) -> None:
        """Send what is left. A signal meanwhile loses that, not the status, which then is KILLED."""
        try:
            if self._mirror:
                self._writer.call(self._mirror.close)
            self._writer.close()
        except (Stopped, KeyboardInterrupt) as error:
            status, cause = "KILLED", _cause(error)
            raise
        finally:
            self._pulse.close()
            self._end(status, cause)

    def _end(self, status: str, cause: str | None) -> None:
        tags = {"forge.cause": cause[:_TEXT_LENGTH]} if cause else {}
        if self._writer.non_finite:
            tags["forge.non_finite_metrics"] = str(self._writer.non_finite)
        if lost := self._writer.lost + self._tries.lost:
            why = provenance.redact(self._writer.why or self._tries.why)
            print(f"forge: {lost} metrics, images or notes could not be sent to MLflow ({why}); the checkpoints hold all metrics")
            tags["forge.lost_metrics"] = str(lost)
        if lost := self._writer.mirrored.lost:
            why = self._writer.mirrored.why
            print(f"forge: {lost} metrics could not be written for TensorBoard ({why}); the checkpoints hold all metrics")
        if tags:
            self.tags(tags)
        if not self._tries.make(partial(self._client.set_terminated, self.id, status)):  # must not take the place of what ended the run
            why = provenance.redact(self._tries.why)
            print(f"forge: MLflow could not be told that the run is {status} ({why}); its page says RUNNING until the next start ends it")
        with suppress(*STORE_ERRORS):
            stop.clear(self._client, self.id)

    def _send(self, what: str, task: Callable[[], object], size: int = 1) -> None:
        if not self._tries.make(task, size):
            print(f"forge: MLflow did not take {what} ({provenance.redact(self._tries.why)}); the run goes on without", flush=True)

    def _beat(self) -> None:
        heartbeat.beat(self._client, self.id, lambda: self._pulse.ended)


@contextmanager
def run(spec: TrackingSpec, identity: str, resume_id: str | None = None, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
    """Open a run, or go on with `resume_id`. FINISHED at a normal end, KILLED with the cause when it was stopped, else FAILED with it.

    Before that, runs that a death left RUNNING are told to be FAILED. Raises TrackingError where the store doesn't take the run.
    """
    if spec.tensorboard:
        mirror.require()
    client = store.connect(spec.uri)
    reconcile(client, but=resume_id)
    record = _must("read the run", lambda: client.get_run(resume_id)) if resume_id else _new(client, spec, identity, tags or {})
    run_id = record.info.run_id
    refusal = TrackingError(f"run {run_id} is being trained by another process; wait for it, or stop it first")
    with store.held(f"run-{run_id}", refusal, _WAIT_S):
        if resume_id and _must("read the run", lambda: stop.clear(client, run_id)):
            print(f"forge: the tag {stop.TAG} was left from before and is taken away; set it again to stop this run", flush=True)
        if resume_id:
            _must("set the run going", lambda: _revive(client, run_id))
        opened = _must("read the run", lambda: Run(client, record, resume_id is not None, spec))
        if opened.resumed:
            opened.tags({WENT_ON: str(opened.logged)})
        try:
            yield opened
        except BaseException as error:
            opened.close("KILLED" if isinstance(error, Stopped | KeyboardInterrupt) else "FAILED", _cause(error))
            raise
        opened.close("FINISHED", None)


def _new(client: MlflowClient, spec: TrackingSpec, identity: str, tags: Mapping[str, str]) -> RunRecord:
    parent = {PARENT: spec.parent_run} if spec.parent_run else {}
    ours = {IDENTITY: identity, ROOT: here(), heartbeat.TAG: heartbeat.now()}
    everything = ours | parent | provenance.tags() | dict(spec.tags) | dict(tags)
    redacted = {key: provenance.redact(value) for key, value in everything.items()}
    experiment = _must("open the experiment", lambda: store.experiment(client, spec.experiment))
    return _must("make a run", lambda: client.create_run(experiment, run_name=spec.run_name, tags=redacted))


def _revive(client: MlflowClient, run_id: str) -> None:
    """Its heartbeat first: between the two calls nobody may take it for dead."""
    tags = provenance.tags() | {heartbeat.TAG: heartbeat.now()}
    client.log_batch(run_id, tags=[RunTag(key, provenance.redact(value)) for key, value in tags.items()])
    store.untag(client, run_id, "forge.cause", "forge.stop_reason")
    client.update_run(run_id, status="RUNNING")


def _must(what: str, task: Callable[[], T]) -> T:
    """What can't be done without. Raises TrackingError."""
    try:
        return again(task)
    except STORE_ERRORS as error:
        why = provenance.redact(reason(error))
        raise TrackingError(f"the tracking store could not {what} ({why}); check tracking.uri and whether the server is up") from error


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
