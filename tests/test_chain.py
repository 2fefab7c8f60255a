"""Two stages in one command: each a run in a process of its own, the second from what the first registered. TRN-3."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forge.assemble import assemble
from forge.jobs import preflight
from forge.spec import Data
from forge.tracking import registry
from tests.place import Life, Place, looks_at

pytestmark = pytest.mark.slow

_CHAIN = """
# @package _global_
name: chained
stages:
  cpt: [+experiment=tiny]
  ift: [+experiment=tiny_ift]
"""
_LET_PASS = ("release.max_degenerate=1", "release.min_ended=0", "release.max_regression=10", "tracking.dashboard=false")


@pytest.fixture(scope="module")
def place(place: Place) -> Place:
    """With a chain of the tiny experiment on documents, and the same on dialogues."""
    conf = place.folder / "conf" / "experiment"
    tiny = (conf / "tiny.yaml").read_text()
    model = next(line for line in tiny.splitlines() if line.startswith("model:"))
    ift = tiny.replace(f"{model}\n", "").replace("/documents", "/dialogues")
    (conf / "tiny_ift.yaml").write_text(ift.replace("/data: folder", "/data: folder\n  - override /model: registry"))
    (conf / "chained.yaml").write_text(_CHAIN)
    for folder in ("dialogues", "others"):
        (place.folder / folder).mkdir()
        for number in range(40):
            dialogue(place.folder / folder / f"{number}.json", f"What is number {number}?", f"It is {number % 7}.")
    return place


def dialogue(file: Path, question: str, answer: str) -> None:
    turns = [("user", question), ("assistant", answer)]
    file.write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}))


def start(place: Place, experiment: str, *arguments: str, **environment: str) -> Any:
    return place.start(
        "+experiment=chained", f"tracking.experiment={experiment}", f"name={experiment}", *_LET_PASS, *arguments, **environment
    )


def life(place: Place, experiment: str, *arguments: str, **environment: str) -> Life:
    return place.end(experiment, start(place, experiment, *arguments, **environment))


def statuses(life: Life) -> list[str]:
    return [run.info.status for run in life.runs]


# ---- to its end -------------------------------------------------------------------------------------------------------


def whole(place: Place) -> list[Life]:
    """From start to end, the same command again, then with other dialogues."""
    lives = [life(place, "whole"), life(place, "whole")]
    more = place.folder / "dialogues" / "more.json"
    dialogue(more, "One more?", "Yes.")
    lives.append(life(place, "whole"))
    more.unlink()
    return lives


@looks_at(whole)
def test_a_chain_is_one_parent_with_a_run_a_stage_each_from_the_version_before(place: Place, told: list[Life]) -> None:
    assert told[0].code == 0 and statuses(told[0]) == ["FINISHED"] * 3, told[0].output
    parent, cpt, ift = told[0].runs
    assert [run.info.run_name for run in told[0].runs] == ["cpt ift", "cpt", "ift"]
    assert [run.data.tags["mlflow.parentRunId"] for run in (cpt, ift)] == [parent.info.run_id] * 2
    assert ift.data.tags["forge.base"] == "registry models:/forge-whole-cpt/1 models:/forge-whole-cpt/1"
    for stage, run in (("cpt", cpt), ("ift", ift)):
        assert [file.path for file in place.client.list_artifacts(run.info.run_id, "log")] == ["log/output.txt"]
        assert not {"forge.swept", "forge.cause", "forge.went_on_after"} & run.data.tags.keys()
        assert place.client.get_model_version(f"forge-whole-{stage}", "1").run_id == run.info.run_id
    assert parent.data.metrics["best/val_loss"] == ift.data.metrics["best/val_loss"]
    assert parent.data.tags["best/run_id"] == ift.info.run_id
    table = json.loads(Path(place.client.download_artifacts(parent.info.run_id, "chain/stages.json")).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["stage"], row["version"]) for row in rows] == [("cpt", "models:/forge-whole-cpt/1"), ("ift", "models:/forge-whole-ift/1")]
    assert rows[0]["data"] != rows[1]["data"] and rows[1]["best_val_loss"] < rows[1]["first_val_loss"]
    assert [row["from"] for row in rows][1] == "registry models:/forge-whole-cpt/1"
    assert rows[0]["f1"] is None and rows[1]["f1"] == ift.data.metrics["final/f1"]
    assert "| scratch qwen3&emsp; |" in parent.data.tags["mlflow.note.content"]
    losses, scores = (f"{rows[1][a]:.4f} → {rows[1][b]:.4f}" for a, b in (("first_val_loss", "best_val_loss"), ("base_f1", "f1")))
    assert f"| registry models:/forge-whole-cpt/1 | {losses} | {scores} | models:/forge-whole-ift/1 |" in parent.data.tags[
        "mlflow.note.content"
    ].replace("&emsp;", "")
    assert f"ift: validation loss {losses} nats a token, F1 of answers {scores}\n" in told[0].output
    assert f"python -m forge.compare {ift.info.run_id[:8]}@base {ift.info.run_id[:8]}" in told[0].output
    assert "python -m forge.chat model=models:/forge-whole-ift/1" in told[0].output


@looks_at(whole)
def test_only_the_instructed_model_has_a_chat_template(place: Place, told: list[Life]) -> None:
    assert [bool(list(folder(place, f"models:/forge-whole-{stage}/1").glob("*.jinja"))) for stage in ("cpt", "ift")] == [False, True]


@looks_at(whole)
def test_the_first_validation_loss_is_that_of_the_registered_version(
    place: Place, told: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured one conversation at a time with mlx-lm's own model."""
    from mlx_lm.utils import load_model

    ift = told[0].runs[2]
    first = next(m.value for m in place.client.get_metric_history(ift.info.run_id, "val/loss") if m.step == 0)
    monkeypatch.setenv("FORGE_HOME", str(place.folder / "home"))
    model_folder = folder(place, "models:/forge-whole-cpt/1")
    asked = preflight(
        ["--config-dir", str(place.folder / "conf"), "+experiment=tiny_ift", f"model={model_folder}", "callbacks.planted=null"]
    )
    assert asked
    data: Data = assemble(asked.configs[0], lambda uri: pytest.fail(uri)).data
    assert data.ledger.valid_digest == ift.data.tags["forge.valid_digest"]
    model, _ = load_model(model_folder)
    total, count = 0.0, 0
    for batch in data.valid["folder"]:
        for tokens_T, mask_T, segments_T in zip(batch.tokens_BT, batch.mask_BT, batch.segments_BT, strict=True):
            for segment in range(1, int(segments_T.max()) + 1):
                ids, targets = tokens_T[segments_T == segment], mask_T[segments_T == segment][1:]
                logits = np.asarray(model(mx.array(ids[None, :-1]))[0], dtype=np.float64)
                losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), ids[1:]]
                total, count = total + float(losses[targets].sum()), count + int(targets.sum())
    assert first == pytest.approx(total / count, abs=1e-6)


@looks_at(whole)
def test_the_same_command_again_trains_nothing_and_new_data_only_what_depends_on_it(place: Place, told: list[Life]) -> None:
    _, second, third = told
    assert second.code == 0 and len(second.runs) == 3 and "this chain came to its end" in second.output, second.output
    assert third.code == 0 and "the data changed since this chain was run" in third.output, third.output
    assert len(third.runs) == 6 and third.runs[0].info.status == "FINISHED"


# ---- broken off -------------------------------------------------------------------------------------------------------


def broken(place: Place) -> list[Life]:
    """Its first stage is killed, its second one stopped with the chain by Ctrl-C, then nothing is wrong any more."""
    arguments = ("ift.callbacks.planted.kind=slow", f"ift.data.path={place.folder}/others")
    killed = life(place, "broken", *arguments, FORGE_TEST_SIGNAL="9")
    process = start(place, "broken", *arguments, FORGE_TEST_FAULTS="slow")
    until_tuned(place, "broken", 7)
    os.kill(process.pid, signal.SIGINT)
    return [killed, place.end("broken", process), life(place, "broken", *arguments)]


def until_tuned(place: Place, experiment: str, steps: int) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        tuned = [run for run in place.runs(experiment) if run.info.run_name == "ift" and len(place.losses(run.info.run_id)) >= steps]
        if tuned:
            return
        time.sleep(0.2)
    raise AssertionError(f"{experiment}: the second stage took no {steps} steps")


@looks_at(broken)
def test_a_stage_that_dies_ends_the_chain_with_its_cause(told: list[Life]) -> None:
    parent, cpt = told[0].runs
    assert told[0].code == 1 and statuses(told[0]) == ["FAILED"] * 2, told[0].output
    assert "the stage cpt failed: killed by SIGKILL" in parent.data.tags["forge.cause"]
    assert "killed by SIGKILL" in cpt.data.tags["forge.cause"] and "Traceback" not in told[0].output
    assert "the same command again goes on with it" in told[0].output.splitlines()[-1]


@looks_at(broken)
def test_ctrl_c_lets_the_stage_save_and_ends_both_as_killed(told: list[Life]) -> None:
    assert told[1].code == 130 and statuses(told[1]) == ["KILLED", "FINISHED", "KILLED"], told[1].output
    assert "the same command again goes on with the chain" in told[1].output
    assert "resume=auto" not in told[1].output


@looks_at(broken)
def test_the_same_command_goes_on_with_what_is_left(place: Place, told: list[Life]) -> None:
    _, second, third = told
    assert third.code == 0 and statuses(third) == ["FINISHED"] * 3, third.output
    assert [run.info.run_id for run in third.runs] == [run.info.run_id for run in second.runs]
    assert third.runs[1].info.end_time == second.runs[1].info.end_time  # not trained again
    for run in third.runs[1:]:
        assert [step for step, _ in third.losses[run.info.run_id]] == list(range(1, 21))  # no step twice
    assert len(place.client.search_model_versions("name='forge-broken-cpt'")) == 1
    ift = third.runs[2].info.run_id
    assert third.losses[ift][: len(second.losses[ift])] == second.losses[ift]


def folder(place: Place, uri: str) -> Path:
    found, _ = registry.fetch(f"sqlite:///{place.folder}/home/mlflow.db", uri)
    return found
