import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from forge.errors import DataError, Stopped, TrackingError
from forge.signals import Interrupts
from forge.spec import Ledger
from forge.tracking import resume, store, tries
from forge.tracking.run import run


def record(run_id: str) -> Any:
    return store.connect(None).get_run(run_id)


def points(run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in store.connect(None).get_metric_history(run_id, key)]


def test_a_normal_end_is_finished_and_holds_all_that_was_logged(make_spec: Any) -> None:
    ledger = Ledger({"data/a/rows_in": 5}, digest="d" * 64, valid_digest="v" * 64, source_digests={"a": "s" * 64})
    with run(make_spec(run_name="mine", tags={"team": "x"}), "identity1") as opened:
        opened.params({"optimizer.lr": 0.1})
        opened.log({"train/loss": 2.0}, 1)
        opened.data(ledger, {"a": {"_target_": "forge.data.sources.files.folder", "path": "p"}})
        opened.text("hello", "config/config.yaml")
        opened.image(lambda: Figure(figsize=(1, 1)), "dashboard", 1)
    found = record(opened.id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "mine")
    assert found.data.params == {"optimizer.lr": "0.1"}
    assert found.data.metrics == {"train/loss": 2.0, "data/a/rows_in": 5.0}
    assert found.data.tags["forge.identity"] == "identity1" and found.data.tags["team"] == "x"
    assert found.data.tags["forge.valid_digest"] == "v" * 64
    dataset = found.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("a", "s" * 36)
    client = store.connect(None)
    assert {a.path for a in client.list_artifacts(opened.id)} == {"config", "data", "images"}
    assert any("dashboard" in a.path and "step+1+" in a.path.replace("%", "+") for a in client.list_artifacts(opened.id, "images"))


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (DataError("no such folder"), "FAILED", "no such folder"),
        (ZeroDivisionError("oops"), "FAILED", "ZeroDivisionError: oops"),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
        (Stopped(signal.SIGTERM), "KILLED", "stopped by signal 15"),
    ],
)
def test_each_death_is_told_apart(make_spec: Any, error: BaseException, status: str, cause: str) -> None:
    with pytest.raises(type(error)), run(make_spec(), "i") as opened:
        opened.log({"train/loss": 1.5}, 7)
        raise error
    assert record(opened.id).info.status == status
    assert record(opened.id).data.tags["forge.cause"] == cause
    assert points(opened.id, "train/loss") == [(7, 1.5)]  # nothing is lost by dying


def test_going_on_logs_no_step_twice_and_changes_no_parameter(make_spec: Any) -> None:
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "i") as first:
        first.params({"a": 1})
        for step in range(1, 5):
            first.log({"train/loss": float(step)}, step)
        raise KeyboardInterrupt
    assert resume.unfinished(make_spec(), "i") == first.id
    with run(make_spec(), "i", resume_id=first.id) as second:
        assert record(first.id).info.status == "RUNNING"
        second.params({"a": 2})
        for step in range(3, 7):  # the last checkpoint was at step 2
            second.log({"train/loss": float(step)}, step)
    assert second.id == first.id
    assert points(first.id, "train/loss") == [(step, float(step)) for step in range(1, 7)]
    assert record(first.id).data.params == {"a": "1"}
    assert record(first.id).info.status == "FINISHED"


def test_a_summary_is_logged_again_where_it_changed(make_spec: Any) -> None:
    """Going back to an earlier checkpoint may choose another one."""
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "i") as first:
        first.summary({"best/step": 20, "data/rows": 5})
        raise KeyboardInterrupt
    with run(make_spec(), "i", resume_id=first.id) as second:
        second.summary({"best/step": 10, "data/rows": 5})
    assert points(first.id, "best/step") == [(0, 20.0), (0, 10.0)] and points(first.id, "data/rows") == [(0, 5.0)]
    assert record(first.id).data.metrics == {"best/step": 10.0, "data/rows": 5.0}


def test_going_on_forgets_why_the_earlier_life_ended(make_spec: Any) -> None:
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "i") as first:
        first.tags({"forge.stop_reason": "stopped by SIGINT"})
        raise KeyboardInterrupt
    with pytest.raises(DataError), run(make_spec(), "i", resume_id=first.id):
        raise DataError("gone")
    assert record(first.id).info.status == "FAILED"
    assert record(first.id).data.tags["forge.cause"] == "gone" and "forge.stop_reason" not in record(first.id).data.tags


def test_a_run_that_a_parent_made_and_another_process_opens_has_not_stopped(make_spec: Any) -> None:
    """As a sweep makes its children. One that had logged steps goes on."""
    client = store.connect(None)
    made = client.create_run(store.experiment(client, make_spec().experiment)).info.run_id
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "i", resume_id=made) as first:
        assert not {"forge.cause", "forge.stop_reason", "forge.went_on_after"} & record(made).data.tags.keys()
        first.log({"train/loss": 1.0}, 3)
        raise KeyboardInterrupt
    with run(make_spec(), "i", resume_id=made):
        assert record(made).data.tags["forge.went_on_after"] == "3"


@pytest.mark.parametrize("error", [None, DataError("no such folder")])
def test_a_signal_while_the_rest_is_sent_leaves_no_run_that_seems_to_go_on(make_spec: Any, error: Exception | None) -> None:
    stuck = threading.Event()

    def hang() -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        stuck.wait(20)

    with pytest.raises(Stopped), Interrupts(), run(make_spec(), "i") as opened:
        opened._writer.call(hang)
        if error:
            raise error
    stuck.set()
    assert record(opened.id).info.status == "KILLED"
    assert record(opened.id).data.tags["forge.cause"] == "stopped by signal 15"


def test_a_store_that_is_away_at_the_end_does_not_hide_what_ended_the_run(
    make_spec: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: Any) -> None:
        raise MlflowException("the server is down")

    with pytest.raises(DataError, match="no such folder"), run(make_spec(), "i"):
        monkeypatch.setattr(tries, "PAUSES_S", ())
        monkeypatch.setattr(MlflowClient, "set_terminated", away)
        raise DataError("no such folder")
    assert "MLflow could not be told that the run is FAILED (the server is down)" in capsys.readouterr().out


def test_only_an_unfinished_run_of_the_same_identity_is_gone_on_with(make_spec: Any) -> None:
    assert resume.unfinished(make_spec(), "i") is None
    with run(make_spec(), "i") as finished:
        assert resume.unfinished(make_spec(), "i") is None  # this process works on it
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "other"):
        raise KeyboardInterrupt
    assert resume.unfinished(make_spec(), "i") is None
    with pytest.raises(TrackingError, match="this run is finished"):
        resume.resumable(make_spec(), finished.id)
    with pytest.raises(TrackingError, match="has no such run"):
        resume.resumable(make_spec(), "0" * 32)


def test_a_run_that_another_process_trains_is_left_alone(make_spec: Any) -> None:
    with run(make_spec(), "i") as opened:
        code = (
            "from filelock import FileLock, Timeout\nimport sys\n"
            "try:\n    FileLock(sys.argv[1]).acquire(timeout=0)\nexcept Timeout:\n    print('held')"
        )
        lock = store.lock(f"run-{opened.id}").lock_file
        assert subprocess.run([sys.executable, "-c", code, lock], capture_output=True, text=True).stdout.strip() == "held"


def test_a_child_names_its_parent(make_spec: Any) -> None:
    with run(make_spec(), "p") as parent, run(make_spec(parent_run=parent.id), "c") as child:
        pass
    assert record(child.id).data.tags["mlflow.parentRunId"] == parent.id


def test_secrets_of_the_environment_reach_no_param_tag_or_artifact(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    with pytest.raises(DataError), run(make_spec(tags={"note": "token hf_verysecret"}), "i") as opened:
        opened.params({"model.token": "hf_verysecret"})
        opened.text("token: hf_verysecret", "config/config.yaml")
        raise DataError("could not log in with hf_verysecret")
    found = record(opened.id)
    client = store.connect(None)
    everything = [*found.data.params.values(), *found.data.tags.values()]
    everything.append(Path(client.download_artifacts(opened.id, "config/config.yaml")).read_text())
    assert not any("hf_verysecret" in text for text in everything)
    assert sum("<HF_TOKEN>" in text for text in everything) == 4


def test_a_picture_is_drawn_in_the_background(make_spec: Any) -> None:
    drawn_by = []

    def draw() -> Figure:
        drawn_by.append(threading.current_thread())
        return Figure(figsize=(0.1, 0.1), dpi=100, facecolor="blue")

    with run(make_spec(), "i") as opened:
        opened.image(draw, "picture", 2)
    assert drawn_by and threading.main_thread() not in drawn_by
    client = store.connect(None)
    (path,) = [a.path for a in client.list_artifacts(opened.id, "images") if a.path.endswith(".png")]
    pixels = np.asarray(Image.open(client.download_artifacts(opened.id, path)).convert("RGB"))
    assert tuple(pixels[5, 5]) == (0, 0, 255)


def test_a_picture_that_cannot_be_drawn_is_told_with_its_reason(
    make_spec: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw() -> Figure:
        raise ZeroDivisionError("an empty axis")

    monkeypatch.setattr(tries, "PAUSES_S", ())
    with run(make_spec(), "i") as opened:
        opened.image(draw, "picture", 2)
    assert "1 metrics, images or notes could not be sent to MLflow (ZeroDivisionError: an empty axis)" in capsys.readouterr().out
    assert record(opened.id).info.status == "FINISHED" and record(opened.id).data.tags["forge.lost_metrics"] == "1"


def test_a_sweeps_child_is_not_gone_on_with_by_a_run_of_its_own(make_spec: Any) -> None:
    """It would train to its end under the sweep, and release nothing."""
    with pytest.raises(KeyboardInterrupt), run(make_spec(parent_run="p" * 32), "i"):
        raise KeyboardInterrupt
    assert resume.unfinished(make_spec(), "i") is None
