"""Following runs from a store that others write to: what is shown, how it ends, and that nothing is changed. DSH-5."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from forge import watch
from forge.errors import DataError, TrackingError
from forge.settings import TrackingSpec
from forge.tracking import live, store
from forge.tracking.run import Run
from forge.tracking.run import run as open_run

ROOT = Path(__file__).parents[1]
Watch = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def make_spec(home: Path) -> Callable[..., TrackingSpec]:
    """make_spec(**changes): tracking settings."""
    settings: dict[str, Any] = {"uri": None, "experiment": "watched", "run_name": None, "parent_run": None, "dashboard": True, "tags": {}}
    return lambda **changes: TrackingSpec(**(settings | changes))


@pytest.fixture
def look(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Watch:
    """look(*words, columns=80) -> (exit code, lines without what is empty, stderr); no line of a view is wider than that."""

    def at(*words: str, columns: int = 80) -> tuple[int, list[str], str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        code = watch.main(list(words))
        out, errors = capsys.readouterr()
        view = [line for line in out.splitlines() if "  step " not in line and not line.startswith("forge: ")]  # lines for a file apart
        assert max([0, *map(len, view)]) <= columns
        return code, [" ".join(line.split()) for line in out.splitlines() if line.strip()], errors

    return at


def train(run: Run, upto: int, start: int = 0) -> None:
    """Steps of a run of 40, with evaluations every 10 of two sources; the lowest is at 20."""
    if start == 0:
        run.params({"trainer.total_steps": 40})
    for step in range(start, upto + 1):
        metrics = {"train/loss": 5 - step / 40, "perf/eta_s": (40 - step) * 0.5, "perf/tokens_per_s": 1000.0} if step else {}
        if step % 10 == 0:
            value = 4 + abs(step - 20) / 10
            metrics |= {"val/loss": value, "val/loss/code": value - 1, "val/loss/prose": value + 1, "perf/eval_s": 1.0}
        run.log(metrics, step)


def eventually(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def finished(make_spec: Any) -> Run:
    with open_run(make_spec(run_name="whole"), "i") as run:
        train(run, 40)
        run.tags({"forge.stop_reason": "the budget is used up", "forge.best_reason": "step 20: 4.0000 nats, the lowest of 5 saved"})
    return run


def test_a_run_that_ended_is_shown_whole(look: Watch, finished: Run) -> None:
    code, lines, errors = look("whole")
    assert (code, errors) == (0, "")
    assert lines[0] == f"whole ({finished.id[:8]}) FINISHED"
    assert re.fullmatch(r"training ━+ 40/40 0:0\d", lines[1])
    assert re.fullmatch(r"loss 4.000 [▁-█]+", lines[2])
    assert lines[3:5] == ["validation 6.000 at step 40 lowest 4.000 at step 20", "speed 1,000 tokens/s"]
    assert lines[5:11] == [
        "step validation code prose",
        "0 6.000 5.000 7.000",
        "10 5.000 4.000 6.000",
        "20 4.000 3.000 5.000 lowest",
        "30 5.000 4.000 6.000",
        "40 6.000 5.000 7.000",
    ]
    assert lines[11:] == ["FINISHED: the budget is used up", "best checkpoint: step 20: 4.0000 nats, the lowest of 5 saved"]


@pytest.mark.parametrize("columns", [40, 60])
def test_it_fits_a_narrow_terminal(look: Watch, finished: Run, columns: int) -> None:
    assert look(finished.id[:8], columns=columns)[0] == 0


def test_a_run_that_failed_gives_its_cause_and_1(look: Watch, make_spec: Any) -> None:
    with pytest.raises(DataError), open_run(make_spec(run_name="broken"), "i") as run:
        raise DataError("a.txt: is empty")
    assert look(run.id)[:2] == (1, [f"broken ({run.id[:8]}) FAILED", "FAILED: a.txt: is empty"])
    with pytest.raises(KeyboardInterrupt), open_run(make_spec(run_name="broken"), "i") as run:
        train(run, 20)
        raise KeyboardInterrupt
    code, lines, _ = look("broken")  # the newest of that name
    assert (code, lines[0], lines[-1]) == (0, f"broken ({run.id[:8]}) KILLED", "KILLED: interrupted")
    assert re.fullmatch(r"training ━+ 20/40 0:0\d", lines[1])  # nothing is left to wait for


def test_the_newest_that_runs_is_shown_once(look: Watch, make_spec: Any, finished: Run) -> None:
    with open_run(make_spec(run_name="older"), "i"), open_run(make_spec(run_name="newer"), "i") as run:
        train(run, 20)
        eventually(lambda: live.look(run._client, run.id).course.step == 20)
        code, lines, _ = look("--once")
        assert (code, lines[0]) == (0, f"newer ({run.id[:8]}) RUNNING")
        # 19 steps left of 0.5 s after the first … : half of the way, and two evaluations of 1 s
        assert re.fullmatch(r"training ━+ 20/40 0:0\d eta 0:\d\d", lines[1])
        assert lines[3] == "validation 4.000 at step 20 the lowest"


def test_a_run_is_followed_to_its_end(look: Watch, make_spec: Any) -> None:
    """Into a file: a line at each evaluation that a look sees, then the whole."""
    opened = threading.Event()
    goes_on = threading.Event()

    def training() -> None:
        with open_run(make_spec(run_name="followed"), "i") as run:
            train(run, 10)
            eventually(lambda: live.look(run._client, run.id).course.step == 10)
            opened.set()
            goes_on.wait(20)
            train(run, 40, start=11)

    thread = threading.Thread(target=training)
    thread.start()
    opened.wait(20)
    threading.Timer(0.5, goes_on.set).start()
    code, lines, _ = look("followed", "--every", "0.05")
    thread.join()
    assert code == 0
    told = [line for line in lines if " step " in line and line.startswith("followed")]
    assert told[0].startswith("followed RUNNING step 10/40 loss 4.750 val 5.000 (lowest) 1,000 tokens/s eta")
    assert told[-1].startswith("followed FINISHED step 40/40 loss 4.000 val 6.000")
    assert "FINISHED" in lines


def test_a_sweep_is_a_table_of_its_runs(look: Watch, make_spec: Any) -> None:
    with open_run(make_spec(run_name="sweep lr"), "s", tags={"forge.sweep": "lr"}) as parent:
        parent.tags({"forge.children": "3"})
        with open_run(make_spec(run_name="lr=1", parent_run=parent.id), "a") as first:
            train(first, 40)
            first.summary({"best/val_loss": 4.0, "best/step": 20})
        with pytest.raises(DataError), open_run(make_spec(run_name="lr=2", parent_run=parent.id), "b"):
            raise DataError("oops")
        with open_run(make_spec(run_name="lr=3", parent_run=parent.id), "c") as third:
            train(third, 10)
            eventually(lambda: live.look(third._client, third.id).course.step == 10)
            code, lines, _ = look("--once")  # the newest that runs is a part of the sweep
    assert (code, lines[0][: -len("0:00")]) == (0, f"sweep lr ({parent.id[:8]}) RUNNING 2 of 3 ended, ")
    assert lines[1] == "run status step best"
    assert re.fullmatch(r"lr=1 FINISHED 40/40 4.0000 \S+", lines[2])
    assert lines[3] == "lr=2 FAILED - -"
    assert re.fullmatch(r"lr=3 RUNNING 10/40 5.0000 \S+", lines[4])
    assert lines[5] == "lr=3"  # the one that runs, in full
    assert re.fullmatch(r"training ━+ 10/40 0:0\d eta 0:\d\d", lines[6])


@pytest.mark.parametrize(("tag", "styles"), [("forge.sweep", ["bold green", ""]), ("forge.chain", ["", ""])])
def test_of_a_chain_s_stages_none_is_the_best(make_spec: Any, tag: str, styles: list[str]) -> None:
    """Each learns from data of its own."""
    with open_run(make_spec(run_name="family"), "f", tags={tag: "a b"}) as parent:
        for name, loss in (("a", 4.0), ("b", 5.0)):
            with open_run(make_spec(run_name=name, parent_run=parent.id), name) as child:
                train(child, 10)
                child.summary({"best/val_loss": loss})
        best = watch._children(live.look(parent._client, parent.id), 80, 5).columns[3]
    assert [(str(cell), cell.style) for cell in best.cells if isinstance(cell, Text)] == [
        ("4.0000", styles[0]),
        ("5.0000", styles[1]),
    ]


def test_a_run_that_was_killed_hard_is_told_by_its_silence(look: Watch, home: Path) -> None:
    seen = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - 300))
    beat = f'{{"host": "h", "pid": 1, "process_started": "2026-05-01T09:00:00+00:00", "seen": "{seen}"}}'
    client = store.connect(None)
    made = client.create_run(store.experiment(client, "watched"), run_name="silent", tags={"forge.heartbeat": beat})
    assert re.search(r"RUNNING no sign of life for 5:0\d$", look("silent", "--once")[1][0])
    client.set_terminated(made.info.run_id, "FAILED")


def test_where_the_store_is_away_for_a_while_it_looks_again(make_spec: Any, look: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = live.look
    answers: Iterator[str] = iter(["here", "away", "away", "here"])
    with open_run(make_spec(run_name="patient"), "i") as run:
        train(run, 10)

        def flaky(*arguments: Any) -> Any:
            if (answer := next(answers, "end")) == "away":
                raise TrackingError("the tracking store can't be read (database is locked)")
            if answer == "end":
                run._client.set_terminated(run.id, "FINISHED")
            return looks(*arguments)

        monkeypatch.setattr(live, "look", flaky)
        code, lines, _ = look("patient", "--every", "0.01")
    assert code == 0
    assert lines.count("forge: the tracking store can't be read (database is locked); looking again") == 1


def test_mistakes_are_one_line_each(look: Watch, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines, errors = look("nobody")
    assert (code, lines, errors.count("\n")) == (7, [], 1)
    assert errors.startswith("error: nobody: no run has this id or name; the newest are ") and "whole" in errors
    for words in (("--every", "0"), ("--every", "soon"), ("a", "b"), ("--never",)):
        code, lines, errors = look(*words)
        assert (code, lines, errors.count("\n")) == (2, [], 1), errors
        assert errors.endswith("write python -m forge.watch [-h] [--uri URI] [--once] [--every SECONDS] [RUN]\n")
    client = store.connect(None)
    for left in client.search_runs([e.experiment_id for e in client.search_experiments()], "attributes.status = 'RUNNING'"):
        client.set_terminated(left.info.run_id, "FAILED")  # other tests'
    code, _, errors = look("--once")
    assert code == 7 and errors.startswith("error: no run is running; name one to look at: the newest are ")


@pytest.mark.parametrize("how", ["home", "variable", "option"])
def test_where_there_is_no_store_none_is_made(look: Watch, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = []
    if how == "home":
        monkeypatch.setenv("FORGE_HOME", str(tmp_path / "nowhere"))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    elif how == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    else:
        words = ["--uri", f"sqlite:///{tmp_path}/nowhere/mlflow.db"]
    code, lines, errors = look("any", *words)
    assert (code, lines, errors.count("\n")) == (7, [], 1)
    assert errors.startswith(f"error: there is no tracking store at sqlite:///{tmp_path}/nowhere/mlflow.db; ")
    assert not (tmp_path / "nowhere").exists()


def test_looking_writes_nothing_and_loads_no_mlx(finished: Run, home: Path) -> None:
    """The file of the store is the same, byte for byte; in a process of its own."""
    if not store.uri(None).startswith("sqlite"):
        pytest.skip("a server's files are its own")
    before = (home / "mlflow.db").read_bytes()
    code = f"import sys; from forge.watch import main; print(main(['{finished.id}']), 'mlx' in sys.modules, 'hydra' in sys.modules)"
    environment = os.environ | {"FORGE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr
    assert (home / "mlflow.db").read_bytes() == before
