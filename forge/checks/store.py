"""The tracking store: where it is, whether it answers, whether MLflow's tables are of this version, and runs that a death left open.

A local store is read with sqlite3, which makes and changes nothing, in milliseconds. Another one is asked through MLflow, for at most
_WAIT_S seconds: a server that is away keeps nobody waiting.
"""

import os
import platform
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from forge import paths
from forge.checks import Finding
from forge.errors import TrackingError

T = TypeVar("T")

_WAIT_S = 8.0
_BUSY_S = 2.0
_SHOWN = 3
_CHECKED = 500 * 10**6  # bytes: a larger file is not read through, which takes a second a GB or more
_LONGEST = 160  # characters of another program's error
_FILE = "sqlite:///"
_BEAT = "SELECT value FROM tags WHERE tags.run_uuid = runs.run_uuid AND key = 'forge.heartbeat'"
_RUNNING = f"SELECT run_uuid, name, ({_BEAT}) FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
_REVISION, _BEFORE = (re.compile(rf"^{name}\s*=\s*['\"](\w+)['\"]", re.MULTILINE) for name in ("revision", "down_revision"))


def store(configured: str | None = None) -> Iterator[Finding]:
    """`configured`: a uri in place of MLFLOW_TRACKING_URI and of mlflow.db at the root."""
    where = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"{_FILE}{paths.root() / 'mlflow.db'}"
    if where.startswith(_FILE):
        yield from _local(Path(where.removeprefix(_FILE)))
    else:
        yield from _elsewhere(where)


def _local(file: Path) -> Iterator[Finding]:
    if not file.exists():
        yield Finding("store", "ok", f"{file}: not there yet; the first run makes it")
        return
    try:
        with closing(_opened(file, "ro")) as database:
            yield from _looked_at(file, database)
    except sqlite3.Error as error:
        yield Finding("store", "problem", f"{file}: is no store that can be read ({error})", _put_aside(file))
        return
    yield _writable(file)


def _looked_at(file: Path, database: sqlite3.Connection) -> Iterator[Finding]:
    """Raises sqlite3.Error."""
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        yield Finding("store", "ok", f"{file}: empty; the first run makes MLflow's tables")
        return
    if not {"runs", "experiments", "alembic_version"} <= tables:
        yield Finding("store", "problem", f"{file}: a database without MLflow's tables", _put_aside(file))
        return
    if file.stat().st_size < _CHECKED and (said := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        yield Finding("store", "problem", f"{file}: damaged ({said})", _put_aside(file))
        return
    (runs,), (experiments,) = (database.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("runs", "experiments"))
    yield Finding(
        "store", "ok", f"{file}: {_number(runs, 'run')} in {_number(experiments, 'experiment')}, {file.stat().st_size / 10**6:.1f} MB"
    )
    yield _schema(file, database.execute("SELECT version_num FROM alembic_version").fetchone())
    yield _left_running(database.execute(_RUNNING).fetchall())


def _schema(file: Path, row: tuple[str] | None) -> Finding:
    found, (expected, known) = row[0] if row else "none", _revisions()
    if not expected or found == expected:
        return Finding("store schema", "ok", f"{found}, this MLflow's" if expected else found)
    if found in known:
        way_out = f"copy {file}, then: mlflow db upgrade {_FILE}{file}"
        return Finding("store schema", "problem", f"{found} is of an older MLflow, and this one's is {expected}", way_out)
    return Finding("store schema", "problem", f"{found} is of another, probably newer, MLflow", "pip install --upgrade mlflow")


def _revisions() -> tuple[str, set[str]]:
    """The newest revision of MLflow's tables, and all. Read off its files, since importing it takes a second or two."""
    found = find_spec("mlflow")
    folders = [Path(place) / "store" / "db_migrations" / "versions" for place in (found.submodule_search_locations or [] if found else [])]
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in folder.glob("*.py")]
    own = {match[1] for text in texts if (match := _REVISION.search(text))}
    newest = own - {match[1] for text in texts if (match := _BEFORE.search(text))}
    return (newest.pop(), own) if len(newest) == 1 else ("", own)


def _left_running(rows: list[tuple[str, str | None, str | None]]) -> Finding:
    """Of each run that says RUNNING: id, name, sign of life. Only those of this machine can be told to be dead."""
    if not rows:
        return Finding("unfinished runs", "ok", "none is RUNNING")
    from forge.tracking import heartbeat

    beats = {f"{name or 'a run'} ({run_id[:8]})": heartbeat.read(tag) for run_id, name, tag in rows}
    here = {run: beat.lives() for run, beat in beats.items() if beat and beat.host == platform.node()}
    dead = [run for run, lives in here.items() if not lives]
    rest = f"{len(here) - len(dead)} at work here, {len(rows) - len(here)} RUNNING elsewhere or not forge's"
    if not dead:
        return Finding("unfinished runs", "ok", rest)
    named = ", ".join(dead[:_SHOWN]) + (f" and {len(dead) - _SHOWN} more" if len(dead) > _SHOWN else "")
    said = f"{_number(len(dead), 'run')} RUNNING whose process is gone: {named}; {rest}"
    return Finding("unfinished runs", "note", said, "go on with one by resume=auto; or start any run, which sets them to FAILED")


def _writable(file: Path) -> Finding:
    """By the lock that writing takes, which is given back at once: nothing is written."""
    try:
        with closing(_opened(file, "rw")) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return Finding("store writable", "note", f"{file}: another process has held it for {_BUSY_S:g} s", "look again in a moment")
        return Finding("store writable", "problem", f"{file}: {error}", f"give yourself the right to write {file} and its folder")
    if not os.access(file.parent, os.W_OK):  # sqlite puts its journal beside the file
        return Finding("store writable", "problem", f"{file.parent}: can't be written", f"give yourself the right to write {file.parent}")
    return Finding("store writable", "ok", "yes")


def _opened(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(file))}?mode={mode}", uri=True, timeout=_BUSY_S, isolation_level=None)


def _put_aside(file: Path) -> str:
    return f"put back a copy of {file}, or move it aside: the next run makes a new one, and the checkpoints stay"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


# ---- a server, or another database ------------------------------------------------------------------------------------


def _elsewhere(where: str) -> Iterator[Finding]:
    shown = _hidden(where)
    if "://" not in where and where != "databricks":
        way_out = "set MLFLOW_TRACKING_URI to http://…, postgresql+psycopg2://… or sqlite:///…, or unset it"
        yield Finding("store", "problem", f"{shown}: MLflow's folders of files are no longer a store", way_out)
        return
    try:
        running = _within(_WAIT_S, lambda: _asked(where))
    except TrackingError as error:
        way_out = "start that server, or correct or unset MLFLOW_TRACKING_URI"
        yield Finding("store", "problem", f"{shown}: does not answer ({_hidden(str(error))})", way_out)
        return
    yield Finding("store", "ok", f"{shown}: answers; {_number(running, 'run')} RUNNING")


def _asked(where: str) -> int:
    """How many runs run. Raises TrackingError, with what lies at the bottom of it."""
    from forge.tracking import store as tracking
    from forge.tracking.tries import STORE_ERRORS

    try:
        client = tracking.connect(where)
        experiments = [found.experiment_id for found in client.search_experiments()]
        return len(client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000))
    except (*STORE_ERRORS, TrackingError) as error:
        raise TrackingError(_bottom(error)) from error


def _bottom(error: BaseException) -> str:
    """Of the errors that led to each other, the first one's words."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    said = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"


def _hidden(text: str) -> str:
    """Without names and passwords in addresses."""
    return re.sub(r"//[^/@\s]*@", "//…@", text)


def _within(seconds: float, task: Callable[[], T]) -> T:
    """What the task gives, in a thread that is left behind where it takes longer. Raises TrackingError then, and what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(task())
        except BaseException as error:  # handed to the thread that waits for it
            errors.append(error)

    thread = threading.Thread(target=work, name="store-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TrackingError(f"no answer within {seconds:g} s")
    return results[0]
