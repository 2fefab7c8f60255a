"""A user's folder and what is typed in it: real processes, a model of a few thousand weights, faults planted by an environment variable.

Each process costs seconds, most of them imports. So tests look at tales: functions that type some commands and tell what came of it.
Those of a module's chosen tests are told as many at a time as there are cores; several tests may look at one.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOT = Path(__file__).parents[1]
Process = subprocess.Popen[str]
Tale = Callable[..., Any]
QUIET = ("tracking.dashboard=false", "release.enabled=false")
TINY = {"vocab_size": 300, "hidden_size": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_size": 32}

_EXPERIMENT = """
# @package _global_
defaults:
  - override /data: folder
name: tiny
model: MODEL
data: {sequence_length: 64, path: FOLDER/documents, valid_fraction: 0.2}
optimizer: {lr: 0.01}
trainer: {budget: 20 steps, micro_batch: 2, eval_every: 5 steps, save_every: 3 steps}
evaluation: {max_tokens: 500, full_tokens: 500}
tracking: {system_metrics: null}
release: {max_degenerate: 1, answers: 2, answer_tokens: 16}
allowed_targets: [planted.]
callbacks:
  planted: {_target_: planted.Fault, kind: none}
"""

_PLANTED = """
import os, signal, time
from dataclasses import dataclass
import mlx.core as mx

@dataclass
class Fault:
    '''From step FORGE_TEST_STEP on does what its kind says, where FORGE_TEST_FAULTS names that; sends itself FORGE_TEST_SIGNAL.'''
    kind: str
    def __call__(self, snapshot):
        if snapshot.step < int(os.environ.get("FORGE_TEST_STEP", 7)):
            return None
        if number := os.environ.get("FORGE_TEST_SIGNAL"):
            os.kill(os.getpid(), int(number))
        if self.kind not in os.environ.get("FORGE_TEST_FAULTS", "").split():
            return None
        if self.kind == "raise":
            raise ValueError("planted")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "memory":
            mx.eval(mx.zeros((64, 1024, 1024)))
        if self.kind == "slow":
            time.sleep(1)
        if self.kind in ("clock", "generation"):
            from forge.evaluation import answers
            answers.generate = getattr(self, self.kind)(answers.generate)

    def clock(self, generate):
        '''As if it took two weeks.'''
        def slowly(*given, **more):
            real = time.perf_counter
            time.perf_counter = lambda: real() + 1e6
            return generate(*given, **more)
        return slowly

    def generation(self, generate):
        def refused(*given, **more):
            raise RuntimeError("[metal::malloc] Resource limit (499000) exceeded.")
        return refused
"""


@dataclass(frozen=True)
class Life:
    """What one command came to. `runs`: those of its experiment, a sweep's parent before its children in the order of their jobs."""

    code: int
    output: str
    runs: list[Any]
    losses: dict[str, list[tuple[int, float]]]  # by run id: train/loss


@dataclass
class Place:
    """Configuration, documents, planted faults, and a root for results."""

    folder: Path
    client: "MlflowClient"
    processes: list[Process] = field(default_factory=list)

    def start(self, *arguments: str, processes: int = 1, **environment: str) -> Process:
        """forge.train from a folder that has nothing to do with it, in a session of its own, as a terminal gives it."""
        launch = [str(Path(sys.executable).with_name("mlx.launch")), "-n", str(processes), "--"] if processes > 1 else []
        settings = clean() | {"FORGE_HOME": str(self.folder / "home"), "PYTHONPATH": f"{self.folder}:{ROOT}"}
        process = subprocess.Popen(
            [*launch, sys.executable, "-m", "forge.train", "--config-dir", str(self.folder / "conf"), *arguments],
            env=settings | environment,
            cwd=self.folder / "elsewhere",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def train(self, *arguments: str, processes: int = 1, **environment: str) -> tuple[int, str]:
        """Exit code and output. Several processes train as one."""
        process = self.start(*arguments, processes=processes, **environment)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def life(self, experiment: str, *arguments: str, **settings: Any) -> Life:
        """One without pictures, and not released where the arguments do not say so."""
        return self.end(experiment, self.begin(experiment, *arguments, **settings))

    def begin(self, experiment: str, *arguments: str, **settings: Any) -> Process:
        return self.start("+experiment=tiny", f"tracking.experiment={experiment}", *QUIET, *arguments, **settings)

    def end(self, experiment: str, process: Process) -> Life:
        output, _ = process.communicate(timeout=300)
        runs = self.runs(experiment)
        return Life(process.returncode, output, runs, {run.info.run_id: self.losses(run.info.run_id) for run in runs})

    def runs(self, experiment: str) -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        runs = self.client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []
        return sorted(runs, key=lambda run: int(run.data.tags.get("forge.job", 0)))

    def losses(self, run_id: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in self.client.get_metric_history(run_id, "train/loss")]

    def histories(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Every metric that must be the same each time: losses, rates, counts, but no times and no memory."""
        keys = [key for key in self.client.get_run(run_id).data.metrics if key.startswith(("train/", "val/", "data/", "best/"))]
        return {key: [(m.step, m.value) for m in self.client.get_metric_history(run_id, key)] for key in keys}

    def until_training(self, experiment: str, after: int = 0) -> Any:
        """The first run with more than `after` steps, once there is one."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            time.sleep(0.2)
            for run in self.runs(experiment):
                if "train/loss" in run.data.metrics and len(self.losses(run.info.run_id)) > after:
                    return run
        raise AssertionError(f"{experiment}: no run took a step")

    def checkpoint(self, run_id: str, step: int) -> Path:
        return self.folder / "home" / "mlruns" / "checkpoints" / run_id / f"step-{step:08d}"

    def table(self, run_id: str) -> list[dict[str, Any]]:
        found = json.loads(Path(self.client.download_artifacts(run_id, "sweep/children.json")).read_text())
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


def clean() -> dict[str, str]:
    """The environment without what chooses roots and stores: mlflow exports what other tests have set."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("FORGE_", "MLFLOW_"))}


@contextmanager
def opened(folder: Path) -> Iterator[Place]:
    from mlflow import MlflowClient  # here, since every process that collects tests imports this module

    (folder / "elsewhere").mkdir()
    documents(folder / "documents")
    (folder / "conf" / "experiment").mkdir(parents=True)
    experiment = _EXPERIMENT.replace("MODEL", json.dumps(TINY).replace('"', "")).replace("FOLDER", str(folder))
    (folder / "conf" / "experiment" / "tiny.yaml").write_text(experiment)
    (folder / "planted.py").write_text(_PLANTED)
    # Two processes that open a new store at once destroy it, and tests look at it while others run.
    uri = f"sqlite:///{folder}/home/mlflow.db"
    command = [sys.executable, "-c", f"from forge.tracking import store; store.connect({uri!r})"]
    subprocess.run(command, env=clean() | {"FORGE_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    place = Place(folder, MlflowClient(uri, registry_uri=uri))  # whatever tests before have set for all clients
    try:
        yield place
    finally:
        for process in place.processes:  # what a tale that failed left behind; children end with their parent
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def documents(folder: Path) -> Path:
    folder.mkdir()
    for name, text in sorted(topics.items())[:24]:
        (folder / f"{name}.txt").write_text(text[:1500], encoding="utf-8")
    return folder


def looks_at(tale: Tale, after: Tale | None = None) -> Callable[[Tale], Tale]:
    """Of a test, parametrised as its tale is: its fixture `told` is what the tale tells, once `after` has been told."""

    def mark(test: Tale) -> Tale:
        test.tale, test.after = tale, after  # type: ignore[attr-defined]
        return test

    return mark


class Told:
    """The tales of the tests that were chosen of a module, each told once, in the tests' order."""

    def __init__(self, request: pytest.FixtureRequest, place: Place):
        self._place, self._started = place, dict[Any, Future[Any]]()
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="tale")
        for item in request.session.items:
            if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item.function, "tale"):
                self._start_for(item)

    def by(self, test: pytest.Function) -> Any:
        return self._start_for(test).result()

    def start(self, tale: Tale, after: Tale | None = None, **parameters: Any) -> "Future[Any]":
        key = tale, tuple(parameters.items())
        if key not in self._started:
            first = self.start(after) if after else None  # its thread is taken before, so nobody waits for ever
            self._started[key] = self._threads.submit(self._tell, tale, first, parameters)
        return self._started[key]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _tell(self, tale: Tale, first: "Future[Any] | None", parameters: dict[str, Any]) -> Any:
        if first:
            first.result()
        return tale(self._place, **parameters)

    def _start_for(self, test: pytest.Function) -> "Future[Any]":
        parameters = test.callspec.params if hasattr(test, "callspec") else {}
        return self.start(test.function.tale, test.function.after, **parameters)
