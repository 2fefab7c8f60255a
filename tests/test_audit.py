"""mlruns/audit.jsonl: what was deleted, moved or overridden."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from forge import audit

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    monkeypatch.setattr(audit, "_told", False)
    return tmp_path


def test_a_note_says_when_who_what_on_what_and_why(root: Path) -> None:
    audit.note("delete checkpoint", root / "step-00000050", "pruned")
    audit.note("move alias", "models:/schön@champion", "loss 1.2 is below\n1.3")
    first, second = [json.loads(line) for line in (root / "mlruns" / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    time = datetime.fromisoformat(first.pop("time"))
    assert time.tzinfo is not None
    assert first == {"pid": os.getpid(), "what": "delete checkpoint", "on": str(root / "step-00000050"), "why": "pruned"}
    assert (second["on"], second["why"]) == ("models:/schön@champion", "loss 1.2 is below\n1.3")
    assert [note["what"] for note in audit.read()] == ["delete checkpoint", "move alias"]


def test_nothing_noted_is_nothing_read() -> None:
    assert list(audit.read()) == []


def test_a_line_that_was_cut_short_hides_itself_alone(root: Path) -> None:
    audit.note("override", "a", "b")
    with audit.file().open("a") as file:
        file.write('{"time": "2026')
    audit.note("override", "c", "d")
    audit.note("override", "e", "f")
    assert [note["on"] for note in audit.read()] == ["a", "c", "e"]


def test_what_can_not_be_noted_is_said_once_and_stops_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "mlruns").write_text("a file where the folder should be")
    audit.note("delete cache", "a", "b")
    audit.note("delete cache", "a", "b")
    (line,) = capsys.readouterr().err.splitlines()
    assert "audit.jsonl can't be written" in line


def test_a_link_in_its_place_is_not_followed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "elsewhere").write_text("")
    (root / "mlruns").mkdir()
    audit.file().symlink_to(root / "elsewhere")
    audit.note("override", "a", "b")
    assert (root / "elsewhere").read_text() == "" and "can't be written" in capsys.readouterr().err


def test_processes_at_once_write_whole_lines(root: Path) -> None:
    code = "from forge import audit\nfor n in range(200): audit.note('override', str(n) + 'x' * 300, 'y' * 300)"
    environment = os.environ | {"FORGE_HOME": str(root), "PYTHONPATH": str(ROOT)}
    several = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(timeout=60) for process in several] == [0, 0, 0]
    lines = audit.file().read_text().splitlines()
    assert len(lines) == 600 and all(len(json.loads(line)["why"]) == 300 for line in lines)
