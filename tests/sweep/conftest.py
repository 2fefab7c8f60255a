"""Sweeps as a person runs them: real processes, a model of a few thousand weights, faults planted by flag files."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]

EXPERIMENT = """
# @package _global_
defaults:
  - override /data: folder
name: tiny
model: {vocab_size: 300, hidden_size: 16, layers: 2, heads: 2, kv_heads: 1, head_dim: 8, mlp_size: 32}
data: {sequence_length: 64, path: FOLDER/documents, valid_fraction: 0.2}
optimizer: {lr: 0.01}
trainer: {budget: 20 steps, micro_batch: 2, eval_every: 10 steps, save_every: 3 steps}
evaluation: {max_tokens: 500}
tracking: {dashboard: false}
release: {enabled: false}
allowed_targets: [planted.]
callbacks:
  planted: {_target_: planted.Fault, flags: FOLDER/flags, kind: none}
"""

PLANTED = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
import mlx.core as mx

@dataclass
class Fault:
    '''Misbehaves at step 7 while the flag file of its kind is there.'''
    flags: str
    kind: str
    def __call__(self, snapshot):
        if snapshot.step < 7 or not (Path(self.flags) / self.kind).exists():
            return None
        if self.kind == "raise":
            raise ValueError("planted")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "memory":
            mx.eval(mx.zeros((64, 1024, 1024)))
        if self.kind == "slow":
            time.sleep(0.3)
"""


@dataclass
class Place:
    """A user's folder: configuration, documents, planted faults, and a root for results."""

    folder: Path
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """forge.train -m, in a session of its own, as a terminal gives it."""
        return self.python("-m", "forge.train", "--config-dir", str(self.folder / "conf"), "-m", "+experiment=tiny", *arguments)

    def python(self, *arguments: str) -> "subprocess.Popen[str]":
        settings = {**os.environ, "FORGE_HOME": str(self.folder / "home"), "PYTHONPATH": f"{self.folder}:{ROOT}"}
        settings.pop("MLFLOW_TRACKING_URI", None)
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=settings,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def sweep(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def plant(self, *kinds: str) -> None:
        """These faults, and no others."""
        (self.folder / "flags").mkdir(exist_ok=True)
        for flag in (self.folder / "flags").iterdir():
            flag.unlink()
        for kind in kinds:
            (self.folder / "flags" / kind).touch()

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/home/mlflow.db")

    def runs(self, experiment: str) -> list[Any]:
        """The parent, then its children in the order of the jobs."""
        found = self.client.get_experiment_by_name(experiment)
        runs = self.client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []
        return sorted(runs, key=lambda run: int(run.data.tags.get("forge.job", 0)))

    def losses(self, run_id: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in self.client.get_metric_history(run_id, "train/loss")]

    def until_training(self, experiment: str) -> Any:
        """The first child, once it has taken steps."""
        for _ in range(600):
            time.sleep(0.2)
            started = [run for run in self.runs(experiment) if "train/loss" in run.data.metrics]
            if started:
                return started[0]
        raise AssertionError("no child took a step")

    def table(self, run_id: str) -> list[dict[str, Any]]:
        found = json.loads(Path(self.client.download_artifacts(run_id, "sweep/children.json")).read_text())
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("user")
    (folder / "documents").mkdir()
    for name, text in sorted(topics.items())[:24]:
        (folder / "documents" / f"{name}.txt").write_text(text[:1500], encoding="utf-8")
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "tiny.yaml").write_text(EXPERIMENT.replace("FOLDER", str(folder)))
    (folder / "planted.py").write_text(PLANTED)
    found = Place(folder)
    # Two processes that open a new store at once destroy it, and the tests look at it while sweeps run.
    assert found.python("-c", "from forge.tracking import store; store.connect(None)").wait(60) == 0
    yield found
    for process in found.processes:  # what a test that failed left behind; children end with their parent
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()
