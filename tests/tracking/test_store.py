import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forge.errors import ConfigError, TrackingError
from forge.tracking import registry, store


def test_a_model_s_name_is_no_way_out_of_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a remote store's models are kept, whatever names it lets pass."""
    monkeypatch.setattr(store, "local_folder", lambda where: None)
    monkeypatch.setattr(registry, "_resolve", lambda client, uri: uri)
    with pytest.raises(ConfigError, match=r"^\.\./3: a name has no empty part, `\.` or `\.\.`; nothing outside .*models is touched"):
        registry.fetch(None, "models:/../3")
    assert not (home / "mlruns" / "cache" / "3").exists()


def test_the_default_places_are_mlflows_own(home: Path) -> None:
    assert store.uri(None) == f"sqlite:///{home}/mlflow.db"
    client = store.connect(None)
    found = client.get_experiment(store.experiment(client, "places"))
    assert found.artifact_location == (home / "mlruns" / "artifacts").as_uri()
    assert (home / "mlflow.db").is_file()


def test_the_environment_names_another_store_and_the_configuration_wins(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert store.uri(None) == "http://127.0.0.1:1"
    assert store.uri("sqlite:///x.db") == "sqlite:///x.db"


def test_a_store_that_cannot_be_opened_is_one_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_text("this is no database, but long enough to be taken for one" * 20)
    with pytest.raises(TrackingError, match="can't be opened") as error:
        store.connect(f"sqlite:///{tmp_path}/broken.db")
    assert "\n" not in str(error.value)


def test_a_deleted_experiment_is_named(home: Path) -> None:
    client = store.connect(None)
    client.delete_experiment(store.experiment(client, "gone"))
    with pytest.raises(TrackingError, match="'gone' was deleted"):
        store.experiment(client, "gone")


WRITER = """
import sys
from pathlib import Path
from forge.settings import TrackingSpec
from forge.tracking.run import run

tags = {"number": sys.argv[1]}
spec = TrackingSpec(uri=None, experiment="e", run_name=None, parent_run=None, dashboard=False, tags=tags, system_metrics=1)
with run(spec, "i") as opened:
    for step in range(100):
        opened.log({f"group/{name}": float(step) for name in range(50)}, step)
        if step % 20 == 0:
            opened.log({"val/loss": float(step)}, step)
            opened.checkpoints({step: Path(f"/x/step-{step:08d}")})
            opened.tags({"at": str(step)})
    opened.best(80)
"""


@pytest.mark.slow
def test_eight_that_start_at_once_on_a_store_that_is_not_there_lose_nothing(tmp_path: Path) -> None:
    """Without the lock, two that open a new SQLite file at once destroy it."""
    settings: dict[str, Any] = {"FORGE_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    settings |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    start = partial(subprocess.Popen, env=settings, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = [start([sys.executable, "-c", WRITER, str(number)]) for number in range(8)]
    for process in started:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, output, errors) == (0, "", "")
    client = store.connect(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "e"]
    found = client.search_runs([experiment])
    assert sorted(r.data.tags["number"] for r in found) == list("01234567")
    for each in found:
        assert (each.info.status, each.data.tags["at"]) == ("FINISHED", "80") and "forge.lost_metrics" not in each.data.tags
        assert [(m.step, m.value) for m in client.get_metric_history(each.info.run_id, "group/49")] == [(s, s) for s in range(100)]
        assert len(each.data.metrics.keys() & {f"group/{name}" for name in range(50)}) == 50
        (model,) = client.search_logged_models([experiment], f"source_run_id = '{each.info.run_id}'")
        assert (model.params["step"], model.tags["forge.best"]) == ("80", "true")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM metrics WHERE key LIKE 'group/%'").fetchone() == (8 * 50 * 100,)
