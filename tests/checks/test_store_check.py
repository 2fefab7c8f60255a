"""What is said of tracking stores: real ones, broken ones, and servers that do not answer. None is changed by being looked at."""

import json
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from forge.checks import Finding
from forge.checks import store as checks
from forge.tracking import heartbeat
from forge.tracking import store as tracking


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with a run that ended, one that this process works on, one whose process is gone, and one from elsewhere."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client: MlflowClient = tracking.connect(None)
        beat = json.loads(heartbeat.now())
        gone, elsewhere = {**beat, "process_started": "2001-01-01T00:00:00+00:00"}, {**beat, "host": "elsewhere"}
        for name, tag in {"ended": beat, "alive": beat, "dead": gone, "far": elsewhere, "foreign": None}.items():
            run = client.create_run("0", run_name=name, tags={heartbeat.TAG: json.dumps(tag)} if tag else {})
            if name == "ended":
                client.set_terminated(run.info.run_id)
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the test's own."""
    folder = Path(shutil.copytree(made, tmp_path / "home"))
    monkeypatch.setenv("FORGE_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def look(uri: str | None = None) -> dict[str, Finding]:
    return {one.name: one for one in checks.store(uri)}


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_store_is_told_with_its_runs_and_left_as_it_is(home: Path) -> None:
    before = content(home)
    found = look()
    assert f"{home / 'mlflow.db'}: 5 runs in 1 experiment" in found["store"].said
    assert found["store schema"].state == found["store writable"].state == "ok"
    left = found["unfinished runs"]
    assert left.state == "note" and "resume=auto" in left.way_out
    assert left.said.startswith("1 run RUNNING whose process is gone: dead (")
    assert left.said.endswith("1 at work here, 2 RUNNING elsewhere or not forge's")
    assert content(home) == before


def test_the_newest_of_mlflow_s_tables_is_read_off_its_files() -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert checks._revisions()[0] == _get_latest_schema_revision()


@pytest.mark.parametrize(
    ("version", "said", "way_out"),
    [("older", "of an older MLflow", "mlflow db upgrade"), ("newer", "probably newer", "--upgrade mlflow")],
)
def test_tables_of_another_mlflow_are_a_problem(home: Path, version: str, said: str, way_out: str) -> None:
    newest, known = checks._revisions()
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", [min(known - {newest}) if version == "older" else "0123456789ab"])
        database.commit()
    found = look()["store schema"]
    assert found.state == "problem" and said in found.said and way_out in found.way_out


def _noise(file: Path) -> None:
    file.write_bytes(os.urandom(50_000))


def _hole(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(100_000)
        stream.write(b"\xff" * 400_000)


def _page(file: Path) -> None:
    """One page of an index that no count of runs goes through."""
    with closing(sqlite3.connect(file)) as database:
        (number,) = database.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'experiment_tags'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as stream:
        stream.seek((number - 1) * size)
        stream.write(bytes(size))


def _other(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE notes (text)")


@pytest.mark.parametrize("fault", [_noise, _hole, _page, _other, lambda file: (file.unlink(), file.mkdir())])
def test_a_file_that_is_no_store_is_one_problem(home: Path, fault: object) -> None:
    fault(home / "mlflow.db")  # type: ignore[operator]
    found = look()["store"]
    assert found.state == "problem" and "move it aside" in found.way_out


@pytest.mark.parametrize("there", [True, False])
def test_a_store_that_is_yet_to_be_made_is_fine_and_not_made(home: Path, there: bool) -> None:
    (home / "mlflow.db").unlink()
    if there:
        (home / "mlflow.db").touch()
    assert {one.state for one in look().values()} == {"ok"}
    assert (home / "mlflow.db").exists() == there


def test_a_store_that_another_process_holds_is_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_BUSY_S", 0.1)
    with closing(sqlite3.connect(home / "mlflow.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        assert look()["store writable"].state == "note"


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_server_that_never_answers_keeps_nobody_waiting(deaf: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_WAIT_S", 0.5)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{deaf}")
    began = time.monotonic()
    (found,) = look().values()
    assert time.monotonic() - began < 5
    assert found.state == "problem" and found.said == f"http://…@127.0.0.1:{deaf}: does not answer (no answer within 0.5 s)"


def test_a_server_that_is_away_is_told_in_few_words_and_without_its_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (found,) = look(f"http://user:secret@127.0.0.1:{free.getsockname()[1]}").values()
    assert found.state == "problem" and found.said.endswith("does not answer (Connection refused)") and "secret" not in found.said


def test_a_folder_of_files_is_no_store(home: Path) -> None:
    (found,) = look("./mlruns").values()
    assert found.state == "problem" and "sqlite:///" in found.way_out
