"""The main job as a person runs it: processes, files, HTTP. A model of a few thousand weights, so that each takes seconds."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from mlflow import MlflowClient

from forge.reports.metrics import find

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

EXPERIMENT = """
# @package _global_
defaults:
  - override /data: folder
name: tiny
model: {vocab_size: 300, hidden_size: 16, layers: 2, heads: 2, kv_heads: 1, head_dim: 8, mlp_size: 32}
data: {sequence_length: 64, path: DOCUMENTS, valid_fraction: 0.2}
optimizer: {lr: 0.01}
trainer: {budget: 20 steps, micro_batch: 2, eval_every: 5 steps, save_every: 3 steps}
evaluation: {max_tokens: 500}
allowed_targets: [planted.]
callbacks:
  planted: {_target_: planted.Kill}
"""

PLANTED = """
import os, signal
from dataclasses import dataclass

@dataclass
class Kill:
    '''Sends this process the signal FORGE_TEST_SIGNAL at step FORGE_TEST_STEP, once.'''
    def __call__(self, snapshot):
        if snapshot.step == int(os.environ.get("FORGE_TEST_STEP", -1)):
            os.kill(os.getpid(), int(os.environ["FORGE_TEST_SIGNAL"]))
"""


@dataclass
class Place:
    """A user's folder: configuration, documents, and a root for results."""

    folder: Path

    def train(self, *arguments: str, wait: bool = True, processes: int = 1, **environment: str) -> Any:
        """Run forge.train from a folder that has nothing to do with it; (exit code, output), or the process. Several train as one."""
        settings = {**os.environ, "FORGE_HOME": str(self.folder / "home"), "PYTHONPATH": f"{self.folder}:{ROOT}", **environment}
        settings.pop("MLFLOW_TRACKING_URI", None)
        launch = [str(Path(sys.executable).with_name("mlx.launch")), "-n", str(processes), "--"] if processes > 1 else []
        command = [*launch, sys.executable, "-m", "forge.train", "--config-dir", str(self.folder / "conf"), *arguments]
        process = subprocess.Popen(
            command, env=settings, cwd=self.folder / "elsewhere", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if not wait:
            return process
        output, _ = process.communicate(timeout=180)
        return process.returncode, output

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/home/mlflow.db")

    def runs(self, experiment: str) -> list[Any]:
        found = self.client.get_experiment_by_name(experiment)
        return self.client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []

    def runs_so_far(self, experiment: str) -> list[Any]:
        """runs(), from the time on when there is a store."""
        return self.runs(experiment) if (self.folder / "home" / "mlflow.db").is_file() else []

    def histories(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Every metric that must be the same each time: losses, rates, counts, but no times and no memory."""
        keys = [key for key in self.client.get_run(run_id).data.metrics if key.startswith(("train/", "val/", "data/", "best/"))]
        return {key: [(m.step, m.value) for m in self.client.get_metric_history(run_id, key)] for key in keys}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("user")
    (folder / "documents").mkdir()
    (folder / "elsewhere").mkdir()
    for name, text in sorted(topics.items())[:24]:
        (folder / "documents" / f"{name}.txt").write_text(text[:1500], encoding="utf-8")
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "tiny.yaml").write_text(EXPERIMENT.replace("DOCUMENTS", str(folder / "documents")))
    (folder / "planted.py").write_text(PLANTED)
    return Place(folder)


@pytest.fixture(scope="module")
def whole(place: Place) -> Any:
    """A run from start to end, released: what others are compared with."""
    code, output = place.train("+experiment=tiny", "tracking.experiment=whole")
    assert code == 0, output
    (run,) = place.runs("whole")
    return run


def test_a_run_leaves_its_evidence(place: Place, whole: Any) -> None:
    assert whole.info.status == "FINISHED"
    metrics, params, tags = whole.data.metrics, whole.data.params, whole.data.tags
    assert metrics["best/val_loss"] < place.histories(whole.info.run_id)["val/loss"][0][1] - 0.5
    assert 0 < metrics["val/unigram_loss"] < 5.8  # below ln 300, the loss of knowing nothing
    assert [step for step, _ in place.histories(whole.info.run_id)["train/loss"]] == list(range(1, 21))
    assert [step for step, _ in place.histories(whole.info.run_id)["val/loss"]] == [0, 5, 10, 15, 20]
    assert params["optimizer.lr"] == "0.01" and params["trainer.total_steps"] == "20"
    for tag in ("forge.identity", "forge.blas", "forge.device", "forge.versions", "forge.data_digest", "forge.valid_digest", "forge.base"):
        assert tags[tag], tag
    assert tags["forge.stop_reason"] == "the budget is used up"
    assert [i.dataset.name for i in whole.inputs.dataset_inputs] == ["folder"]
    files = {a.path for a in place.client.list_artifacts(whole.info.run_id)}
    assert {"config", "data", "images", "dashboard.png", "dashboard_dark.png", "report.html", "evaluation"} <= files
    assert [name for name in metrics if find(name) is None] == []
    (best,) = place.client.search_logged_models(
        [whole.info.experiment_id], f"source_run_id = '{whole.info.run_id}' AND tags.`forge.best` = 'true'"
    )
    assert best.params["step"] == str(int(metrics["best/step"])) and Path(best.tags["forge.checkpoint"]).is_dir()
    config = Path(place.client.download_artifacts(whole.info.run_id, "config/config.yaml")).read_text()
    assert "lr: 0.01" in config and "${" not in config
    dashboards = [a.path for a in place.client.list_artifacts(whole.info.run_id, "images") if a.path.endswith(".png")]
    assert len(dashboards) == 5  # one an evaluation


def test_nothing_else_appears_in_the_root_nor_where_the_command_is_typed(place: Place, whole: Any) -> None:
    assert list((place.folder / "elsewhere").iterdir()) == []
    assert (place.folder / "home" / "mlruns" / "artifacts" / "models").is_dir()
    assert {p.name for p in (place.folder / "home").iterdir()} == {"mlflow.db", "mlruns"}
    assert {p.name for p in (place.folder / "home" / "mlruns").iterdir()} == {"artifacts", "cache", "checkpoints", "hydra"}


def test_the_same_command_gives_the_same_numbers(place: Place, whole: Any) -> None:
    code, output = place.train("+experiment=tiny", "tracking.experiment=again")
    assert code == 0, output
    (again,) = place.runs("again")
    assert place.histories(again.info.run_id) == place.histories(whole.info.run_id)
    assert again.data.tags["forge.identity"] == whole.data.tags["forge.identity"]
    # The twin is no better, so the alias stays where it was.
    assert place.client.get_model_version_by_alias("forge-tiny", "champion").run_id == whole.info.run_id
    assert "stays champion" in output


@pytest.mark.parametrize("step", [1, 5, 13])
def test_killed_and_gone_on_with_is_as_never_killed(place: Place, whole: Any, step: int) -> None:
    name = f"killed{step}"
    arguments = ("+experiment=tiny", f"tracking.experiment={name}", "release.enabled=false")
    code, _ = place.train(*arguments, FORGE_TEST_STEP=str(step), FORGE_TEST_SIGNAL=str(int(signal.SIGKILL)))
    assert code == -signal.SIGKILL
    assert place.runs(name)[0].info.status == "RUNNING"  # nobody was left to say otherwise
    code, output = place.train(*arguments, "resume=auto")
    assert code == 0 and "goes on" in output, output
    (run,) = place.runs(name)  # the same one
    assert run.info.status == "FINISHED"
    expected = place.histories(whole.info.run_id)
    assert place.histories(run.info.run_id) == expected


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_a_kind_stop_is_killed_with_a_checkpoint_of_that_step(place: Place, number: signal.Signals, name: str) -> None:
    arguments = ("+experiment=tiny", f"tracking.experiment={name}")
    code, output = place.train(*arguments, FORGE_TEST_STEP="7", FORGE_TEST_SIGNAL=str(int(number)))
    assert code == 128 + number, output
    assert "Traceback" not in output
    (run,) = place.runs(name)
    assert run.info.status == "KILLED" and run.data.tags["forge.cause"] == f"stopped by signal {int(number)}"
    assert (place.folder / "home" / "mlruns" / "checkpoints" / run.info.run_id / "step-00000007").is_dir()
    code, output = place.train(*arguments, f"resume={run.info.run_id}", "release.enabled=false")
    assert code == 0, output
    assert place.runs(name)[0].info.status == "FINISHED"


def test_a_tag_set_in_the_ui_stops_the_run_kindly(place: Place) -> None:
    process = place.train("+experiment=tiny", "tracking.experiment=tag", "trainer.budget=100_000 steps", "trainer.keep=0", wait=False)
    try:
        for _ in range(300):
            time.sleep(0.2)
            if (runs := place.runs_so_far("tag")) and "train/loss" in runs[0].data.metrics:
                break
        place.client.set_tag(runs[0].info.run_id, "forge.stop", "true")
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    (run,) = place.runs("tag")
    assert (process.returncode, run.info.status) == (130, "KILLED"), output
    assert run.data.tags["forge.cause"] == "stopped by the tag forge.stop in MLflow" and "forge.stop" not in run.data.tags
    last = max(place.histories(run.info.run_id)["train/loss"])[0]
    assert (place.folder / "home" / "mlruns" / "checkpoints" / run.info.run_id / f"step-{last:08d}").is_dir()


def test_two_processes_are_one_run_with_the_losses_of_one_process(place: Place, whole: Any) -> None:
    arguments = ("+experiment=tiny", "tracking.experiment=two", "release.enabled=false")
    _, output = place.train(*arguments, processes=2)
    (run,) = place.runs("two")
    assert run.info.status == "FINISHED", output
    one, two = place.histories(whole.info.run_id), place.histories(run.info.run_id)
    assert one.keys() == two.keys()
    for key, points in one.items():
        assert [step for step, _ in two[key]] == [step for step, _ in points], key
        assert [value for _, value in two[key]] == pytest.approx([value for _, value in points], rel=1e-5, abs=1e-5), key


def test_a_mistake_in_the_data_is_a_failed_run_with_its_cause(place: Place) -> None:
    code, output = place.train("+experiment=tiny", "tracking.experiment=mistake", "data.path=/nowhere/at/all")
    assert code == 3
    assert "error: path=/nowhere/at/all: there is no such folder" in output and "Traceback" not in output
    (run,) = place.runs("mistake")
    assert run.info.status == "FAILED" and "there is no such folder" in run.data.tags["forge.cause"]


def test_a_bug_keeps_its_traceback_and_fails_the_run(place: Place) -> None:
    (place.folder / "planted_bug.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Bug:\n    def __call__(self, snapshot):\n        return 1 / 0\n"
    )
    code, output = place.train(
        "+experiment=tiny", "tracking.experiment=bug", "callbacks.planted._target_=planted_bug.Bug", "allowed_targets=[planted_bug.]"
    )
    assert code == 1 and "ZeroDivisionError" in output
    assert place.runs("bug")[0].info.status == "FAILED"


def test_a_sweep_is_one_parent_with_children_and_one_version(place: Place) -> None:
    arguments = ("-m", "+experiment=tiny", "tracking.experiment=sweep", "release.name=forge-sweep", "optimizer.lr=0.0001,0.01")
    code, output = place.train(*arguments)
    assert code == 0, output
    parent, *children = place.runs("sweep")
    assert parent.info.status == "FINISHED"
    assert [c.data.tags["mlflow.parentRunId"] for c in children] == [parent.info.run_id] * 2
    assert [c.info.run_name for c in children] == ["lr=0.0001", "lr=0.01"]
    losses = {c.info.run_name: c.data.metrics["best/val_loss"] for c in children}
    assert losses["lr=0.01"] < losses["lr=0.0001"]
    assert parent.data.metrics["best/val_loss"] == losses["lr=0.01"]
    assert parent.data.tags["best/child"] == "lr=0.01"
    assert len({c.data.tags["forge.valid_digest"] for c in children}) == 1  # the same validation tokens
    (version,) = place.client.search_model_versions("name='forge-sweep'")
    assert version.run_id == children[1].info.run_id
    assert place.client.get_model_version_by_alias("forge-sweep", "champion").version == version.version
    table = json.loads(Path(place.client.download_artifacts(parent.info.run_id, "sweep/children.json")).read_text())
    assert [row[1] for row in table["data"]] == ["lr=0.01", "lr=0.0001"]


def test_a_sweep_s_child_gone_on_with_alone_is_not_released(place: Place) -> None:
    """The sweep chooses among its children; one of them alone has won nothing."""
    arguments = ("+experiment=tiny", "tracking.experiment=orphan", "release.name=forge-orphan", "optimizer.lr=0.001")
    code, output = place.train("-m", *arguments, FORGE_TEST_STEP="7", FORGE_TEST_SIGNAL="9")
    assert code == 1 and "killed by SIGKILL" in output, output
    child = next(run for run in place.runs("orphan") if "mlflow.parentRunId" in run.data.tags)
    code, output = place.train(*arguments, f"resume={child.info.run_id}")
    assert code == 0, output
    assert place.client.search_model_versions("name='forge-orphan'") == []


def test_a_run_of_another_root_is_not_gone_on_with(place: Place) -> None:
    """Two roots share a store: the checkpoints of one are not the other's."""
    arguments = (
        "+experiment=tiny",
        "tracking.experiment=roots",
        "release.enabled=false",
        f"tracking.uri=sqlite:///{place.folder}/home/mlflow.db",
    )
    place.train(*arguments, FORGE_TEST_STEP="7", FORGE_TEST_SIGNAL="9")
    (run,) = place.runs("roots")
    other = {"FORGE_HOME": str(place.folder / "other")}
    code, output = place.train(*arguments, f"resume={run.info.run_id}", **other)
    assert code == 7 and "its checkpoints are not here" in output
    code, output = place.train(*arguments, "resume=auto", **other)
    assert code == 0 and "so a new one starts" in output, output
    assert [r.info.status for r in place.runs("roots")] == ["RUNNING", "FINISHED"]


def test_children_measured_on_other_tokens_are_not_compared(place: Place) -> None:
    arguments = ("-m", "+experiment=tiny", "tracking.experiment=apart", "release.name=forge-apart", "data.split_seed=1,2")
    code, output = place.train(*arguments)
    assert code == 0 and "measured on different validation tokens" in output, output
    assert place.client.search_model_versions("name='forge-apart'") == []


def test_one_failed_child_leaves_the_others(place: Place) -> None:
    arguments = ("-m", "+experiment=tiny", "tracking.experiment=half", "release.enabled=false", "schedule.warmup=20 steps,1 steps")
    code, output = place.train(*arguments)
    assert code == 1, output
    parent, *children = place.runs("half")
    assert [c.info.status for c in children] == ["FAILED", "FINISHED"]
    assert parent.data.metrics["sweep/failed"] == 1 and parent.info.status == "FINISHED"
    assert "leave none of the run's 20" in output and "leave none of the run's 20" in parent.data.tags["mlflow.note.content"]


def test_the_registered_model_holds_no_pickle_and_its_lineage(place: Place, whole: Any) -> None:
    version = place.client.get_model_version_by_alias("forge-tiny", "champion")
    assert float(version.tags["forge.val_loss"]) == pytest.approx(whole.data.metrics["best/val_loss"], abs=1e-4)
    assert version.tags["forge.data_digest"] == whole.data.tags["forge.data_digest"]
    folder = Path(place.client.get_model_version_download_uri(version.name, version.version).removeprefix("file://"))
    here = f"source_run_id = '{whole.info.run_id}' AND model_type != 'checkpoint'"
    (model,) = place.client.search_logged_models([whole.info.experiment_id], here)
    (noted,) = json.loads(model.tags["mlflow.modelVersions"])
    assert (noted["name"], str(noted["version"])) == ("forge-tiny", "1")
    (measured,) = [m for m in model.metrics if m.key == "release/val_loss/folder"]
    assert measured.value == pytest.approx(whole.data.metrics["best/val_loss"], abs=1e-4)
    assert (measured.dataset_name, measured.dataset_digest) == ("folder", whole.inputs.dataset_inputs[0].dataset.digest)
    names = [p.name for p in folder.rglob("*") if p.is_file()]
    assert "model.safetensors" in names and "pyfunc.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]


def test_the_next_run_starts_from_the_registered_one(place: Place, whole: Any) -> None:
    """Its first validation loss is that of the model it starts from."""
    arguments = ("+experiment=tiny", "tracking.experiment=next", "release.enabled=false", "adapter=lora")
    model = (
        "model=registry",
        "model.uri=models:/forge-tiny@champion",
        "~model.vocab_size",
        "~model.hidden_size",
        "~model.layers",
        "~model.heads",
    )
    code, output = place.train(*arguments, *model, "~model.kv_heads", "~model.head_dim", "~model.mlp_size")
    assert code == 0, output
    (run,) = place.runs("next")
    assert place.histories(run.info.run_id)["val/loss"][0][1] == pytest.approx(whole.data.metrics["best/val_loss"], abs=1e-4)
    assert re.match(r"registry models:/forge-tiny@champion models:/forge-tiny/\d+", run.data.tags["forge.base"])


@pytest.fixture
def served(place: Place, whole: Any) -> Iterator[Callable[[Any], tuple[int, Any]]]:
    """`mlflow models serve` typed as it stands in the README, in the root; a function that posts a body to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = ["mlflow", "models", "serve", "-m", "models:/forge-tiny@champion", "--env-manager", "local", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=place.folder / "home", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{port}"

    def post(body: Any) -> tuple[int, Any]:
        request = urllib.request.Request(f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield post
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_the_champion_answers_over_http(served: Callable[[Any], tuple[int, Any]]) -> None:
    status, answer = served({"prompt": "The for statement", "max_tokens": 8, "temperature": 0})
    assert status == 200
    assert answer["model"] == "forge-tiny" and isinstance(answer["choices"][0]["text"], str)
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 8 and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    status, answer = served({"prompt": "The for statement", "max_tokens": -1})
    assert status == 400 and "max_tokens" in answer["message"] and "Traceback" not in json.dumps(answer)
