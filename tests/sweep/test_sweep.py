"""A sweep's children fail, are killed and are stopped each alone; the same command again does what is left, and nothing twice."""

import os
import signal
import time
from typing import Any

import pytest

pytestmark = pytest.mark.slow

KINDS = "callbacks.planted.kind=none,raise,kill,memory"


def test_each_child_fails_alone_and_the_same_command_does_what_is_left(place: Any) -> None:
    arguments = ("tracking.experiment=faults", KINDS, "trainer.memory_limit=0.2 GB", "release.enabled=true", "release.name=faults")
    place.plant("raise", "kill", "memory")
    code, output = place.sweep(*arguments)
    assert code == 1, output
    parent, *children = place.runs("faults")
    assert [c.info.status for c in children] == ["FINISHED", "FAILED", "FAILED", "FAILED"], output
    causes = [c.data.tags.get("forge.cause", "") for c in children]
    assert causes[1] == "ValueError: planted"
    assert causes[2].startswith("killed by SIGKILL; the system's memory running out is the usual reason: set trainer.memory_limit")
    assert "memory peaked at" in causes[3] and "above trainer.memory_limit=0.2 GB" in causes[3]
    assert all(cause in parent.data.tags["mlflow.note.content"] for cause in causes[1:])
    assert (parent.data.metrics["sweep/finished"], parent.data.metrics["sweep/failed"]) == (1, 3)
    assert [row["status"] for row in place.table(parent.info.run_id)] == ["FINISHED", "FAILED", "FAILED", "FAILED"]
    for child in children:
        assert {a.path for a in place.client.list_artifacts(child.info.run_id, "sweep")} == {"sweep/log.txt"}
    saved = {c.info.run_id: place.losses(c.info.run_id) for c in children}

    place.plant()
    code, output = place.sweep(*arguments)
    assert code == 0, output
    again, *healed = place.runs("faults")
    assert [r.info.run_id for r in (again, *healed)] == [r.info.run_id for r in (parent, *children)]  # no new run
    assert [c.info.status for c in healed] == ["FINISHED"] * 4
    assert healed[0].info.end_time == children[0].info.end_time  # not trained again
    for child in healed:
        now = place.losses(child.info.run_id)
        assert [step for step, _ in now] == list(range(1, 21))  # no step twice
        assert now[: len(saved[child.info.run_id])] == saved[child.info.run_id]
    assert again.data.metrics["sweep/finished"] == 4 and again.data.metrics["sweep/failed"] == 0
    (version,) = place.client.search_model_versions("name='faults'")  # the winner is still the first: the four are equal
    assert again.data.tags["best/child"] == "kind=none" and version.run_id == children[0].info.run_id

    code, output = place.sweep(*arguments)
    assert code == 0 and "this sweep came to its end" in output and "sweep.again=true" in output
    assert len(place.runs("faults")) == 5


def test_a_child_whose_data_changed_is_trained_anew(place: Any) -> None:
    arguments = ("tracking.experiment=changed", "callbacks.planted.kind=none,raise", "data.split_seed=3")
    place.plant("raise")
    assert place.sweep(*arguments)[0] == 1
    document = place.folder / "documents" / "new.txt"
    document.write_text("Words that were not there before, in a document of their own.\n" * 5)
    try:
        place.plant()
        code, output = place.sweep(*arguments)
    finally:
        document.unlink()
    assert code == 0 and output.count("the data changed") == 2, output
    parent, *children = place.runs("changed")
    assert sorted(c.info.status for c in children) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    assert parent.data.metrics["sweep/finished"] == 2  # those of today


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_child_and_parent_kindly_and_the_rest_is_not_started(place: Any, number: signal.Signals, code: int) -> None:
    name = number.name
    place.plant("slow")
    arguments = (f"tracking.experiment={name}", "callbacks.planted.kind=slow", "seed=1,2")
    process = place.start(*arguments)
    place.until_training(name)
    os.killpg(process.pid, number)  # as a terminal does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in output, output
    parent, child = place.runs(name)
    assert (parent.info.status, child.info.status) == ("KILLED", "KILLED"), output
    assert [row["child"] for row in place.table(parent.info.run_id)] == ["seed=1"]
    last = place.losses(child.info.run_id)[-1][0]
    assert (place.folder / "home" / "mlruns" / "checkpoints" / child.info.run_id / f"step-{last:08d}").is_dir()


def test_a_second_ctrl_c_kills(place: Any) -> None:
    place.plant("slow")
    process = place.start("tracking.experiment=twice", "callbacks.planted.kind=slow", "trainer.budget=1000 steps")
    child = place.until_training("twice")
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - begun < 20, output
    assert place.client.get_run(child.info.run_id).info.status == "KILLED"
    assert all(run.info.status == "KILLED" for run in place.runs("twice")), output


def test_a_parent_that_is_killed_takes_its_child_along_kindly_and_can_go_on(place: Any) -> None:
    place.plant("slow")
    arguments = ("tracking.experiment=orphans", "callbacks.planted.kind=slow", "seed=1,2")
    process = place.start(*arguments)
    child = place.until_training("orphans")
    process.kill()
    process.communicate()
    for _ in range(100):
        time.sleep(0.2)
        if (child := place.client.get_run(child.info.run_id)).info.status != "RUNNING":
            break
    assert (child.info.status, child.data.tags["forge.cause"]) == ("KILLED", "stopped by signal 15")
    before = place.losses(child.info.run_id)
    place.plant()
    code, output = place.sweep(*arguments)
    assert code == 0, output
    parent, *children = place.runs("orphans")
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    after = place.losses(child.info.run_id)
    assert after[: len(before)] == before and [step for step, _ in after] == list(range(1, 21))


def test_the_tag_of_one_child_stops_it_alone(place: Any) -> None:
    place.plant("slow")
    process = place.start("tracking.experiment=tagged", "callbacks.planted.kind=slow,none", "trainer.budget=60 steps")
    child = place.until_training("tagged")
    place.client.set_tag(child.info.run_id, "forge.stop", "true")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    parent, *children = place.runs("tagged")
    assert [c.info.status for c in children] == ["KILLED", "FINISHED"] and parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/failed"] == 0


def test_several_at_once_share_the_cores_and_are_ranked_as_one_by_one(place: Any) -> None:
    place.plant()
    code, output = place.sweep("tracking.experiment=pool", "optimizer.lr=0.0001,0.01,0.001", "sweep.jobs=2")
    assert code == 0, output
    parent, *children = place.runs("pool")
    assert [row["child"] for row in place.table(parent.info.run_id)] == ["lr=0.01", "lr=0.001", "lr=0.0001"]
    first, second, _ = children
    assert second.info.start_time < first.info.end_time  # at the same time
    assert parent.data.tags["best/run_id"] == second.info.run_id
