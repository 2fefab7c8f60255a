"""A sweep's children fail, are killed and are stopped each alone; the same command again does what is left, and nothing twice."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.place import Life, Place, documents, looks_at

pytestmark = pytest.mark.slow

FAULTS = "callbacks.planted.kind=none,raise,kill,memory"


def statuses(life: Life) -> list[str]:
    return [run.info.status for run in life.runs]


def released(name: str) -> tuple[str, ...]:
    return "release.enabled=true", f"release.name={name}"


# ---- faults -----------------------------------------------------------------------------------------------------------


def faults(place: Place) -> list[Life]:
    """Three of four children die, then nothing is wrong any more, then nothing is left to do."""
    arguments = ("-m", FAULTS, "trainer.memory_limit=0.2 GB", *released("faults"))
    return [place.life("faults", *arguments, FORGE_TEST_FAULTS=kinds) for kinds in ("raise kill memory", "", "")]


@looks_at(faults)
def test_each_child_fails_alone_with_its_cause(place: Place, told: list[Life]) -> None:
    life = told[0]
    parent, *children = life.runs
    assert life.code == 1 and statuses(life) == ["FINISHED", "FINISHED", "FAILED", "FAILED", "FAILED"], life.output
    causes = [c.data.tags.get("forge.cause", "") for c in children]
    assert causes[1] == "ValueError: planted"
    assert causes[2].startswith("killed by SIGKILL; the system's memory running out is the usual reason: set trainer.memory_limit")
    assert "memory peaked at" in causes[3] and "above trainer.memory_limit=0.2 GB" in causes[3]
    assert all(cause in parent.data.tags["mlflow.note.content"] for cause in causes[1:])
    assert (parent.data.metrics["sweep/finished"], parent.data.metrics["sweep/failed"]) == (1, 3)
    for child in children:
        assert [a.path for a in place.client.list_artifacts(child.info.run_id, "log")] == ["log/output.txt"]
    log = Path(place.client.download_artifacts(children[1].info.run_id, "log/output.txt")).read_text()
    assert "Traceback" in log and "ValueError: planted" in log
    assert "Traceback" not in Path(place.client.download_artifacts(children[3].info.run_id, "log/output.txt")).read_text()


@looks_at(faults)
def test_the_same_command_does_what_is_left(place: Place, told: list[Life]) -> None:
    first, second, third = told
    assert second.code == 0, second.output
    assert [run.info.run_id for run in second.runs] == [run.info.run_id for run in first.runs]  # no new run
    parent, *children = second.runs
    assert statuses(second) == ["FINISHED"] * 5
    assert children[0].info.end_time == first.runs[1].info.end_time  # not trained again
    for child in children:
        losses, before = second.losses[child.info.run_id], first.losses[child.info.run_id]
        assert [step for step, _ in losses] == list(range(1, 21))  # no step twice
        assert losses[: len(before)] == before  # none, where the kill came before they were sent
    assert (parent.data.metrics["sweep/finished"], parent.data.metrics["sweep/failed"]) == (4, 0)
    (version,) = place.client.search_model_versions("name='faults'")  # the winner is the first: the four are equal
    assert parent.data.tags["best/child"] == "kind=none" and version.run_id == children[0].info.run_id
    assert third.code == 0 and "this sweep came to its end" in third.output and "sweep.again=true" in third.output
    assert len(third.runs) == 5


# ---- two at once ------------------------------------------------------------------------------------------------------


def rates(place: Place) -> Life:
    return place.life("rates", "-m", "optimizer.lr=0.0001,0.01", "sweep.jobs=2", *released("rates"))


@looks_at(rates)
def test_a_sweep_is_one_parent_with_ranked_children_and_one_version(place: Place, told: Life) -> None:
    assert told.code == 0 and statuses(told) == ["FINISHED"] * 3, told.output
    parent, *children = told.runs
    assert [c.info.run_name for c in children] == ["lr=0.0001", "lr=0.01"]
    assert [c.data.tags["mlflow.parentRunId"] for c in children] == [parent.info.run_id] * 2
    losses = [c.data.metrics["best/val_loss"] for c in children]
    assert losses[1] < losses[0] and parent.data.metrics["best/val_loss"] == losses[1]
    assert [row["child"] for row in place.table(parent.info.run_id)] == ["lr=0.01", "lr=0.0001"]
    assert (parent.data.tags["best/child"], parent.data.tags["best/run_id"]) == ("lr=0.01", children[1].info.run_id)
    assert len({c.data.tags["forge.valid_digest"] for c in children}) == 1  # the same validation tokens
    for child in children:
        words = Path(place.client.download_artifacts(child.info.run_id, "config/overrides.txt")).read_text().split()
        assert "evaluation.answers=0" in words  # each would have its base asked once more
    (version,) = place.client.search_model_versions("name='rates'")
    assert version.run_id == children[1].info.run_id
    assert place.client.get_model_version_by_alias("rates", "champion").version == version.version


@looks_at(rates)
def test_several_run_at_once(told: Life) -> None:
    _, first, second = told.runs
    assert second.info.start_time < first.info.end_time


# ---- started twice at once --------------------------------------------------------------------------------------------


def twins(place: Place) -> list[Life]:
    """The same sweep typed in two terminals in the same second."""
    both = [place.begin("twins", "-m", "seed=1,2", *released("twins")) for _ in range(2)]
    return sorted((place.end("twins", process) for process in both), key=lambda life: life.code)


@looks_at(twins)
def test_of_two_sweeps_started_at_once_the_second_is_refused(place: Place, told: list[Life]) -> None:
    first, second = told
    assert (first.code, second.code) == (0, 7), first.output + second.output
    assert second.output.strip() == (
        "error: this sweep is being run by another process; wait for it, or start another with sweep.again=true"
    )
    assert statuses(first) == ["FINISHED"] * 3 and len(place.client.search_model_versions("name='twins'")) == 1


# ---- stopped ----------------------------------------------------------------------------------------------------------


def stopped(place: Place) -> tuple[Life, bool, Life]:
    """The parent gets SIGTERM while its first child trains; then that child is gone on with alone."""
    arguments = ("callbacks.planted.kind=slow", *released("stopped"))
    process = place.begin("stopped", "-m", *arguments, "seed=1,2", FORGE_TEST_FAULTS="slow")
    child = place.until_training("stopped")
    os.killpg(process.pid, signal.SIGTERM)
    life = place.end("stopped", process)
    saved = place.checkpoint(child.info.run_id, life.losses[child.info.run_id][-1][0]).is_dir()
    return life, saved, place.life("stopped", *arguments, "seed=1", f"resume={child.info.run_id}")


@looks_at(stopped)
def test_a_signal_stops_child_and_parent_kindly_and_the_rest_is_not_started(place: Place, told: tuple[Life, bool, Life]) -> None:
    life, saved, _ = told
    assert life.code == 143 and "Traceback" not in life.output, life.output
    assert statuses(life) == ["KILLED", "KILLED"], life.output
    assert saved and life.runs[1].data.tags["forge.cause"] == "stopped by signal 2"  # it says so itself, with a checkpoint of that step
    assert [row["child"] for row in place.table(life.runs[0].info.run_id)] == ["seed=1"]


@looks_at(stopped)
def test_a_child_gone_on_with_alone_is_not_released(place: Place, told: tuple[Life, bool, Life]) -> None:
    """The sweep chooses among its children; one of them alone has won nothing."""
    *_, life = told
    assert life.code == 0 and statuses(life) == ["KILLED", "FINISHED"], life.output
    assert place.client.search_model_versions("name='stopped'") == []


# ---- killed, and the data changes -------------------------------------------------------------------------------------


def changed(place: Place) -> tuple[float, Life, Life]:
    """Ctrl-C twice; then the same command with a document more. Its children have different validation texts."""
    folder = documents(place.folder / "changing")
    arguments = ("-m", f"data.path={folder}", "callbacks.planted.kind=slow", "data.split_seed=1,2", *released("changed"))
    process = place.begin("changed", *arguments, FORGE_TEST_FAULTS="slow")
    place.until_training("changed", after=6)  # from then on a step takes a second
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    killed = place.end("changed", process)
    took = time.monotonic() - begun
    (folder / "new.txt").write_text("Words that were not there before, in a document of their own.\n" * 5)
    return took, killed, place.life("changed", *arguments)


@looks_at(changed)
def test_a_second_ctrl_c_kills(place: Place, told: tuple[float, Life, Life]) -> None:
    took, life, _ = told
    assert life.code == 130 and took < 20, life.output
    assert statuses(life) == ["KILLED", "KILLED"], life.output


@looks_at(changed)
def test_a_child_whose_data_changed_is_trained_anew(told: tuple[float, Life, Life]) -> None:
    _, killed, life = told
    assert life.code == 0 and life.output.count("the data changed") == 1, life.output
    parent, *children = life.runs
    assert parent.info.run_id == killed.runs[0].info.run_id
    assert sorted(c.info.status for c in children) == ["FINISHED", "FINISHED", "KILLED"]
    assert parent.data.metrics["sweep/finished"] == 2  # those of today


@looks_at(changed)
def test_children_measured_on_other_tokens_are_not_compared(place: Place, told: tuple[float, Life, Life]) -> None:
    _, _, life = told
    assert "measured on different validation tokens" in life.output
    assert place.client.search_model_versions("name='changed'") == []


# ---- orphans ----------------------------------------------------------------------------------------------------------


def orphans(place: Place) -> tuple[Any, Life]:
    """The parent is killed while its first child trains; the same command goes on with that, which then is stopped by its tag."""
    arguments = ("-m", "callbacks.planted.kind=slow,none", "trainer.budget=30 steps")
    process = place.begin("orphans", *arguments, FORGE_TEST_FAULTS="slow")
    child = place.until_training("orphans")
    process.kill()
    process.communicate()
    for _ in range(300):
        time.sleep(0.2)
        if (child := place.client.get_run(child.info.run_id)).info.status != "RUNNING":
            break
    steps = len(place.losses(child.info.run_id))
    process = place.begin("orphans", *arguments, FORGE_TEST_FAULTS="slow")
    place.until_training("orphans", after=steps)
    place.client.set_tag(child.info.run_id, "forge.stop", "true")
    return (child, steps), place.end("orphans", process)


@looks_at(orphans)
def test_a_parent_that_is_killed_takes_its_child_along_kindly_and_can_go_on(told: tuple[Any, Life]) -> None:
    (child, before), life = told
    assert (child.info.status, child.data.tags["forge.cause"]) == ("KILLED", "stopped by signal 15")
    assert len(life.runs) == 3 and life.runs[1].info.run_id == child.info.run_id, life.output
    steps = [step for step, _ in life.losses[child.info.run_id]]
    assert len(steps) > before and steps == list(range(1, len(steps) + 1))  # none twice


@looks_at(orphans)
def test_the_tag_of_one_child_stops_it_alone(place: Place, told: tuple[Any, Life]) -> None:
    _, life = told
    assert life.code == 0 and statuses(life) == ["FINISHED", "KILLED", "FINISHED"], life.output
    parent, child, _ = life.runs
    assert child.data.tags["forge.cause"] == "stopped by the tag forge.stop in MLflow" and "forge.stop" not in child.data.tags
    assert parent.data.metrics["sweep/failed"] == 0
    last = life.losses[child.info.run_id][-1][0]
    assert last < 30 and place.checkpoint(child.info.run_id, last).is_dir()
