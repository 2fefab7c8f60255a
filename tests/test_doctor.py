"""python -m forge.doctor as a user meets it: text, JSON, exit codes, and that it changes nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forge import doctor
from forge.checks import Finding, disk, selftest
from tests.place import clean

ROOT = Path(__file__).parents[1]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("FORGE_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    return folder


def examine(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = doctor.main(list(argv))
    return code, capsys.readouterr().out


def test_a_sound_machine_is_told_line_by_line_and_nothing_is_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = examine(capsys, "--quick")
    lines = out.splitlines()
    assert {"machine", "matrix products", "versions", "optional parts", "environment", "disk", "tracking store"} <= set(lines)
    assert "self-test" not in lines
    assert code == int(any(line.startswith("PROBLEM") for line in lines))
    assert all(" -> " in line for line in lines if line.startswith(("NOTE", "PROBLEM", "off")))
    assert list(home.iterdir()) == []


def test_a_problem_is_exit_code_1_and_named_at_the_end(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "room", lambda: [Finding("disk of root", "problem", "full", "make room")])
    code, out = examine(capsys, "--quick")
    assert code == 1
    assert "PROBLEM disk of root           full -> make room" in out.splitlines()
    assert out.splitlines()[-1].endswith("disk of root") or "disk of root" in out.splitlines()[-1]


def test_notes_are_no_failure(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_sections", lambda uri, quick: [("all", [Finding("a", "note", "b", "c"), Finding("d", "off", "e", "f")])])
    assert examine(capsys) == (
        0,
        "all\nNOTE    a                      b -> c\noff     d                      e -> f\n\nnothing is wrong; 1 thing to note\n",
    )


def test_json_is_one_object_with_every_finding(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def chatty() -> Any:
        yield selftest._run("resume", lambda: (print("noise") is None and False, "another loss"), "report it")

    monkeypatch.setattr(selftest, "run", chatty)
    code, out = examine(capsys, "--json")
    told = json.loads(out)
    last = told["findings"][-1]
    assert code == 1 and told["problems"] >= 1
    assert (last["section"], last["name"], last["state"], last["said"], last["way_out"]) == (
        "self-test",
        "resume",
        "problem",
        "another loss",
        "report it",
    )
    assert isinstance(last["seconds"], float)


def test_a_store_can_be_named(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out = examine(capsys, "--quick", "--uri", f"sqlite:///{tmp_path}/other.db")
    assert f"{tmp_path}/other.db: not there yet" in out


def test_a_wrong_option_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--quik"]) == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --quik")


@pytest.mark.slow
def test_an_interrupt_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    places = {"TMPDIR": str(tmp_path / "tmp"), "FORGE_HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "forge.doctor"], env=clean() | places, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        for line in process.stdout:
            if "adapter's start" in line:
                break
        os.kill(process.pid, signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == "forge: not looked at to the end; nothing was changed\n"
    assert process.returncode == 130
    assert list((tmp_path / "tmp").iterdir()) == list(home.iterdir()) == []
