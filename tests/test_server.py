"""The main job on an MLflow server with PostgreSQL and an S3-compatible store behind it: tracking=server. TRK-5."""

import signal
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.place import Place

pytestmark = pytest.mark.slow


def test_a_run_is_killed_goes_on_is_released_and_a_sweep_starts_from_it(place: Place, server: str) -> None:
    def train(*words: str, **environment: str) -> Any:
        return place.train("+experiment=tiny", "tracking=server", f"tracking.uri={server}", *words, **environment)

    client = MlflowClient(server, server)  # the registry too: other tests set one for the whole process
    code, output = train(FORGE_TEST_STEP="12", FORGE_TEST_SIGNAL=str(int(signal.SIGKILL)))
    assert code == -signal.SIGKILL, output
    code, output = train("resume=auto")
    assert code == 0, output
    assert f"{server}/#/experiments/" in output
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(1, 21))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert {"dashboard.png", "report.html"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    assert client.get_model_version_by_alias("forge-tiny", "champion").run_id == run.info.run_id

    sizes = [f"~model.{key}" for key in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "mlp_size")]
    after = ("tracking.experiment=after", "model=registry", "model.uri=models:/forge-tiny@champion", *sizes)
    code, output = train("-m", *after, "seed=1,2")
    assert code == 0, output
    runs = client.search_runs([client.get_experiment_by_name("after").experiment_id])
    (parent,) = [found for found in runs if "forge.sweep" in found.data.tags]
    children = [found for found in runs if found.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2 and {found.info.status for found in runs} == {"FINISHED"}
    for child in children:
        first = client.get_metric_history(child.info.run_id, "val/loss")[0]
        assert first.value == pytest.approx(run.data.metrics["best/val_loss"], abs=1e-3)
    assert place.runs("tiny") == []  # nothing was kept beside the server
