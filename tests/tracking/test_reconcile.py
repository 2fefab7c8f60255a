"""Runs that a death left RUNNING, and the heartbeat by which they are known."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from forge import paths
from forge.tracking import heartbeat, resume, store
from forge.tracking.names import here
from forge.tracking.reconcile import reconcile
from forge.tracking.run import run

SEEN = datetime(2026, 5, 1, 11, 24, 33, tzinfo=UTC)


def record(run_id: str) -> Any:
    return store.connect(None).get_run(run_id)


@pytest.fixture(scope="module")
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def leave(home: Path, dead_pid: int, request: pytest.FixtureRequest) -> Callable[..., str]:
    """leave(**changes) -> id: a run as kill -9 leaves it, started from this root by a process that is gone."""

    def make(
        pid: int = dead_pid, started: datetime = SEEN, seen: datetime = SEEN, root: str = "", status: str = "RUNNING", **more: str
    ) -> str:
        client = store.connect(None)
        beat = {"host": "studio", "pid": pid, "process_started": started.isoformat(), "seen": seen.isoformat()}
        tags = {"forge.identity": "i", "forge.root": root or here(), "forge.heartbeat": json.dumps(beat)}
        begun = int(started.timestamp() * 1000)
        experiment = store.experiment(client, request.node.name)
        made = client.create_run(experiment, start_time=begun, tags=tags | more, run_name="left").info.run_id
        client.update_run(made, status=status)
        return str(made)

    return make


def test_an_open_run_says_who_works_on_it(make_spec: Any) -> None:
    with run(make_spec(), "i") as opened:
        beat = heartbeat.read(record(opened.id).data.tags["forge.heartbeat"])
    assert beat and (beat.host, beat.pid) == (platform.node(), os.getpid()) and beat.lives()
    assert abs(beat.seen_s - time.time()) < 10
    started = datetime.fromisoformat(beat.process_started).timestamp()
    assert abs(started - psutil.Process().create_time()) < 1.0


def test_it_beats_while_it_is_open_and_no_longer(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)
    with run(make_spec(), "i") as opened:
        client = store.connect(None)
        client.set_tag(opened.id, "forge.heartbeat", "none so far")
        until = time.monotonic() + 5
        while record(opened.id).data.tags["forge.heartbeat"] == "none so far" and time.monotonic() < until:
            time.sleep(0.01)
        assert heartbeat.read(record(opened.id).data.tags["forge.heartbeat"])
    client.set_tag(opened.id, "forge.heartbeat", "")
    time.sleep(0.2)
    assert record(opened.id).data.tags["forge.heartbeat"] == "" and record(opened.id).info.status == "FINISHED"


def test_a_run_that_was_taken_for_dead_takes_that_back(make_spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop slept; another machine's start ended its run."""
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)
    with run(make_spec(), "i") as opened:
        client = store.connect(None)
        client.set_tag(opened.id, "forge.cause", "ended without a word")
        client.set_terminated(opened.id, "FAILED")
        until = time.monotonic() + 5
        while "forge.cause" in record(opened.id).data.tags and time.monotonic() < until:
            time.sleep(0.01)
        assert record(opened.id).info.status == "RUNNING" and "forge.cause" not in record(opened.id).data.tags
    assert record(opened.id).info.status == "FINISHED"


def test_a_beat_that_comes_late_does_not_open_a_run_that_ended(make_spec: Any) -> None:
    with run(make_spec(), "i") as opened:
        pass
    heartbeat.beat(store.connect(None), opened.id, ended=lambda: True)
    assert record(opened.id).info.status == "FINISHED"


@pytest.mark.parametrize("status", ["RUNNING", "SCHEDULED"])
def test_a_run_whose_process_is_gone_is_failed_from_when_it_was_last_seen(
    leave: Any, make_spec: Any, dead_pid: int, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = leave(status=status)
    for step, file in ((4, "sha256.json"), (16, "sha256.json"), (20, "state.json")):  # the last one is not whole
        (paths.checkpoints(left) / f"step-{step:08d}").mkdir(parents=True)
        (paths.checkpoints(left) / f"step-{step:08d}" / file).touch()
    with run(make_spec(), "another"):
        pass
    last_seen = "last seen at 2026-05-01 11:24:33 UTC"
    cause = f"its process (pid {dead_pid} on studio) ended without a word, {last_seen}; resume=auto goes on from step 16"
    found = record(left)
    assert (found.info.status, found.data.tags["forge.cause"]) == ("FAILED", cause)
    assert found.info.end_time == SEEN.timestamp() * 1000
    assert f"forge: run left ({left[:8]}) is FAILED now: {cause}\n" in capsys.readouterr().out


def test_a_pid_that_is_another_process_s_by_now_is_not_the_run_s(leave: Any) -> None:
    left = leave(pid=os.getpid())  # which started long after that run
    reconcile(store.connect(None))
    assert record(left).info.status == "FAILED"


def test_a_run_from_elsewhere_is_dead_ten_minutes_after_its_last_beat(leave: Any) -> None:
    now = datetime.now(UTC)
    fresh, stale = (leave(root="other:/home/x", seen=now - timedelta(minutes=minutes)) for minutes in (9, 11))
    waiting = leave(root="other:/home/x", status="SCHEDULED")  # nobody beats for it yet
    reconcile(store.connect(None))
    assert [record(each).info.status for each in (fresh, stale, waiting)] == ["RUNNING", "FAILED", "SCHEDULED"]
    assert record(stale).data.tags["forge.cause"].endswith("; resume=auto goes on with it there")


@pytest.mark.parametrize(
    ("tag", "way"),
    [
        ("forge.sweep", "the same command goes on with the sweep"),
        ("forge.chain", "the same command goes on with the chain"),
        ("mlflow.parentRunId", "it had saved nothing, so the same command starts it over"),
    ],
)
def test_a_sweep_s_and_a_chain_s_way_on_is_their_command(leave: Any, tag: str, way: str) -> None:
    left = leave(**{tag: "a b"})
    reconcile(store.connect(None))
    assert record(left).data.tags["forge.cause"].endswith(f"; {way}")


@pytest.mark.parametrize("tag", ["", "nobody", "[1]", '{"host": "h"}', '{"host": "h", "pid": 1, "process_started": "?", "seen": "?"}'])
def test_a_run_without_a_heartbeat_of_ours_is_not_ours_to_judge(leave: Any, tag: str) -> None:
    left = leave(**{"forge.heartbeat": tag})
    reconcile(store.connect(None))
    assert record(left).info.status == "RUNNING"


def test_one_that_lives_or_is_worked_on_or_ended_is_left_alone(leave: Any) -> None:
    ended, locked, gone_on_with = leave(status="KILLED"), leave(), leave()
    living = leave(pid=os.getpid(), started=datetime.fromtimestamp(psutil.Process().create_time(), UTC))
    with store.lock(f"run-{locked}"):
        reconcile(store.connect(None), but=gone_on_with)
    assert [record(each).info.status for each in (ended, locked, gone_on_with, living)] == ["KILLED", "RUNNING", "RUNNING", "RUNNING"]


def test_a_child_is_left_to_its_parent_as_long_as_that_one_is_at_work(leave: Any, dead_pid: int) -> None:
    """Which knows more: that it was killed by SIGKILL, say."""
    parent = leave(pid=os.getpid(), started=datetime.fromtimestamp(psutil.Process().create_time(), UTC))
    child = leave(**{"mlflow.parentRunId": parent})
    reconcile(store.connect(None))
    assert record(child).info.status == record(parent).info.status == "RUNNING"
    store.connect(None).set_tag(parent, "forge.heartbeat", record(child).data.tags["forge.heartbeat"])
    reconcile(store.connect(None))
    assert record(child).info.status == record(parent).info.status == "FAILED"


def test_two_starts_at_once_tell_it_once(leave: Any, capsys: pytest.CaptureFixture[str]) -> None:
    left, client, together = leave(), store.connect(None), threading.Barrier(4)

    def start() -> None:
        together.wait()
        reconcile(client)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().out.count(left[:8]) == 1
    assert record(left).info.status == "FAILED"


@pytest.mark.slow
def test_a_run_is_killed_told_failed_and_gone_on_with(make_spec: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, sys, time\nfrom forge.settings import TrackingSpec\nfrom forge.tracking.run import run\n"
        "spec = TrackingSpec(uri=None, experiment=sys.argv[1], run_name=None, parent_run=None, dashboard=False, tags={})\n"
        "with run(spec, 'mine') as opened:\n    print(opened.id, flush=True)\n    time.sleep(60)\n"
    )
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code, make_spec().experiment], env=settings, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    left = process.stdout.readline().strip()
    try:
        reconcile(store.connect(None))
        assert record(left).info.status == "RUNNING"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with run(make_spec(), "another"):
            pass
        assert record(left).info.status == "FAILED"
        assert f"pid {process.pid} on {platform.node()}" in record(left).data.tags["forge.cause"]
        assert "it had saved nothing" in capsys.readouterr().out
        with run(make_spec(), "mine", resume_id=resume.unfinished(make_spec(), "mine")) as again:
            assert again.id == left and record(left).info.status == "RUNNING" and "forge.cause" not in record(left).data.tags
        assert record(left).info.status == "FINISHED"
    finally:
        process.kill()
        process.communicate()


def test_a_dead_run_does_not_end_before_its_start_or_its_last_step(leave: Callable[..., str], home: Path) -> None:
    """Seen at its start, logged a minute after it: a heartbeat is up to half a minute old."""
    client = store.connect(None)
    logged, silent = leave(), leave(seen=SEEN - timedelta(minutes=5))
    minute_after = int(SEEN.timestamp() * 1000) + 60_000
    client.log_metric(logged, "train/loss", 1.0, timestamp=minute_after, step=3)
    reconcile(client)
    assert record(logged).info.end_time == minute_after
    assert record(silent).info.end_time == record(silent).info.start_time
