import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forge.errors import TrackingError
from forge.tracking import store


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


@pytest.mark.slow
def test_processes_that_make_one_store_at_once_lose_nothing(tmp_path: Path) -> None:
    """Without the lock, two that open a new SQLite file at once destroy it."""
    code = (
        "from forge.settings import TrackingSpec\nfrom forge.tracking.run import run\n"
        "spec = TrackingSpec(uri=None, experiment='e', run_name=None, parent_run=None, dashboard=False, tags={})\n"
        "with run(spec, 'i') as opened:\n    [opened.log({'m': float(s)}, s) for s in range(50)]\n"
    )
    environment: dict[str, Any] = {
        "FORGE_HOME": str(tmp_path),
        "PATH": "",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    client = store.connect(f"sqlite:///{tmp_path}/mlflow.db")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert [r.info.status for r in found] == ["FINISHED"] * 4
    assert all(len(client.get_metric_history(r.info.run_id, "m")) == 50 for r in found)
