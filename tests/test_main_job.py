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
from pathlib import Path
from typing import Any

import pytest

from forge.reports.metrics import find
from tests.place import TINY, Life, Place, Told, clean, looks_at

pytestmark = pytest.mark.slow


def whole_run(place: Place) -> Any:
    """From start to end with everything, released: what others are compared with."""
    code, output = place.train("+experiment=tiny", "tracking.experiment=whole")
    assert code == 0, output
    (run,) = place.runs("whole")
    return run


@pytest.fixture(scope="module")
def whole(tales: Told) -> Any:
    return tales.start(whole_run).result()


@looks_at(whole_run)
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
    names = {p.name for p in (place.folder / "home").iterdir()}
    assert names - {"mlflow.db-journal"} == {"mlflow.db", "mlruns"}  # SQLite's own while someone writes
    assert {p.name for p in (place.folder / "home" / "mlruns").iterdir()} == {"artifacts", "audit.jsonl", "cache", "checkpoints", "hydra"}


def again(place: Place) -> Life:
    return place.life("again", "release.enabled=true")


@looks_at(again, after=whole_run)
def test_the_same_command_gives_the_same_numbers(place: Place, whole: Any, told: Life) -> None:
    assert told.code == 0, told.output
    (run,) = told.runs
    assert place.histories(run.info.run_id) == place.histories(whole.info.run_id)
    assert run.data.tags["forge.identity"] == whole.data.tags["forge.identity"]
    # The twin is no better, so the alias stays where it was.
    assert place.client.get_model_version_by_alias("forge-tiny", "champion").run_id == whole.info.run_id
    assert "stays champion" in told.output


def killed(place: Place, step: int) -> tuple[Life, Life]:
    name = f"killed{step}"
    first = place.life(name, FORGE_TEST_STEP=str(step), FORGE_TEST_SIGNAL=str(int(signal.SIGKILL)))
    return first, place.life(name, "resume=auto")


@pytest.mark.parametrize("step", [1, 13])
@looks_at(killed)
def test_killed_and_gone_on_with_is_as_never_killed(place: Place, whole: Any, told: tuple[Life, Life], step: int) -> None:
    first, second = told
    assert first.code == -signal.SIGKILL, first.output
    assert first.runs[0].info.status in ("RUNNING", "FAILED")  # nobody was left to say otherwise, but the next to start
    assert second.code == 0, second.output
    (run,) = second.runs  # the same one
    assert run.info.status == "FINISHED"
    assert place.histories(run.info.run_id) == place.histories(whole.info.run_id)


def roots(place: Place) -> tuple[Life, Life, Life]:
    """A run is killed at an evaluation. Another root that shares the store tries to go on with it, then the run's own does."""
    first = place.life("roots", FORGE_TEST_STEP="5", FORGE_TEST_SIGNAL=str(int(signal.SIGKILL)))
    other = {"FORGE_HOME": str(place.folder / "other")}
    shared = f"tracking.uri=sqlite:///{place.folder}/home/mlflow.db"
    named = place.life("roots", shared, f"resume={first.runs[0].info.run_id}", **other)
    return named, place.life("roots", shared, "resume=auto", **other), place.life("roots", "resume=auto")


@looks_at(roots)
def test_a_run_of_another_root_is_not_gone_on_with(place: Place, whole: Any, told: tuple[Life, Life, Life]) -> None:
    """The checkpoints of one root are not the other's."""
    named, new, own = told
    assert named.code == 7 and "its checkpoints are not here" in named.output
    assert new.code == 0 and "so a new one starts" in new.output, new.output
    assert len(new.runs) == 2 and new.runs[0].info.status != "FINISHED"
    assert own.code == 0, own.output
    assert [run.info.status for run in own.runs] == ["FINISHED", "FINISHED"]
    assert [place.histories(run.info.run_id) for run in own.runs] == [place.histories(whole.info.run_id)] * 2


def stopped(place: Place) -> tuple[Life, bool, Life]:
    first = place.life("stopped", FORGE_TEST_STEP="7", FORGE_TEST_SIGNAL=str(int(signal.SIGINT)))
    run_id = first.runs[0].info.run_id
    saved = place.checkpoint(run_id, 7).is_dir()
    return first, saved, place.life("stopped", f"resume={run_id}")


@looks_at(stopped)
def test_a_kind_stop_is_killed_with_a_checkpoint_of_that_step(place: Place, whole: Any, told: tuple[Life, bool, Life]) -> None:
    first, saved, second = told
    assert first.code == 130 and "Traceback" not in first.output, first.output
    assert first.runs[0].info.status == "KILLED" and first.runs[0].data.tags["forge.cause"] == "stopped by signal 2"
    assert saved
    (run,) = second.runs
    assert second.code == 0 and run.info.status == "FINISHED", second.output
    assert place.histories(run.info.run_id) == place.histories(whole.info.run_id)


def two(place: Place) -> Life:
    return place.life("two", processes=2)


@looks_at(two)
def test_two_processes_are_one_run_with_the_losses_of_one_process(place: Place, whole: Any, told: Life) -> None:
    (run,) = told.runs
    assert run.info.status == "FINISHED", told.output
    assert (whole.data.tags["forge.processes"], run.data.tags["forge.processes"]) == ("1", "2")
    expected, found = place.histories(whole.info.run_id), place.histories(run.info.run_id)
    assert expected.keys() == found.keys()
    for key, points in expected.items():
        assert [step for step, _ in found[key]] == [step for step, _ in points], key
        assert [value for _, value in found[key]] == pytest.approx([value for _, value in points], rel=1e-5, abs=1e-5), key


def mistake(place: Place) -> Life:
    return place.life("mistake", "data.path=/nowhere/at/all")


@looks_at(mistake)
def test_a_mistake_in_the_data_is_a_failed_run_with_its_cause(told: Life) -> None:
    assert told.code == 3
    assert "error: path=/nowhere/at/all: there is no such folder" in told.output and "Traceback" not in told.output
    (run,) = told.runs
    assert run.info.status == "FAILED" and "there is no such folder" in run.data.tags["forge.cause"]


def test_the_registered_model_holds_no_pickle_and_its_lineage(place: Place, whole: Any) -> None:
    version = place.client.get_model_version_by_alias("forge-tiny", "champion")
    assert float(version.tags["forge.val_loss"]) == pytest.approx(whole.data.metrics["best/val_loss"], abs=1e-4)
    assert version.tags["forge.data_digest"] == whole.data.tags["forge.data_digest"]
    folder = Path(place.client.get_model_version_download_uri(version.name, version.version).removeprefix("file://"))
    models = place.client.search_logged_models([whole.info.experiment_id], f"source_run_id = '{whole.info.run_id}'")
    (model,) = [found for found in models if found.model_type != "checkpoint"]
    (noted,) = json.loads(model.tags["mlflow.modelVersions"])
    assert (noted["name"], str(noted["version"])) == ("forge-tiny", "1")
    (measured,) = [m for m in model.metrics if m.key == "release/val_loss/folder"]
    assert measured.value == pytest.approx(whole.data.metrics["best/val_loss"], abs=1e-4)
    assert (measured.dataset_name, measured.dataset_digest) == ("folder", whole.inputs.dataset_inputs[0].dataset.digest)
    names = [p.name for p in folder.rglob("*") if p.is_file()]
    assert "model.safetensors" in names and "pyfunc.py" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]


def following(place: Place) -> Life:
    model = ("model=registry", "model.uri=models:/forge-tiny@champion", *(f"~model.{key}" for key in TINY))
    return place.life("following", "adapter=lora", *model)


@looks_at(following, after=whole_run)
def test_the_next_run_starts_from_the_registered_one(place: Place, whole: Any, told: Life) -> None:
    """Its first validation loss is that of the model it starts from."""
    assert told.code == 0, told.output
    (run,) = told.runs
    assert place.histories(run.info.run_id)["val/loss"][0][1] == pytest.approx(whole.data.metrics["best/val_loss"], abs=1e-4)
    assert re.match(r"registry models:/forge-tiny@champion models:/forge-tiny/\d+", run.data.tags["forge.base"])


def served(place: Place) -> list[tuple[int, Any]]:
    """`mlflow models serve` typed as it stands in the README, in the root; its answers to a right and a wrong question."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = clean() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["mlflow", "models", "serve", "-m", "models:/forge-tiny@champion", "--env-manager", "local", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=place.folder / "home", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        asked: dict[str, Any] = {"prompt": "The for statement", "temperature": 0}
        return [_post(port, {**asked, "max_tokens": count}) for count in (8, -1)]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _post(port: int, body: Any) -> tuple[int, Any]:
    address = f"http://127.0.0.1:{port}/invocations"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@looks_at(served, after=whole_run)
def test_the_champion_answers_over_http(told: list[tuple[int, Any]]) -> None:
    (status, answer), (refused, why) = told
    assert status == 200
    assert answer["model"] == "forge-tiny" and isinstance(answer["choices"][0]["text"], str)
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 8 and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert refused == 400 and "max_tokens" in why["message"] and "Traceback" not in json.dumps(why)
