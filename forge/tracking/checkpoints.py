"""A run's checkpoints as MLflow logged models, at their step and with their validation metrics, so that search_logged_models ranks them.

Those alone that are on disk: one that is pruned or abandoned takes its model with it, so that a run of 1,000 evaluations shows the few
that can be loaded. A model holds no files. Its tag forge.checkpoint names the folder on the machine of forge.root, and forge.best is
"true" at the one that was chosen. Takes some 20 ms a checkpoint in a local store, on the writer's thread.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities import Run as RunRecord
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from forge.spec import Metrics

KIND = "checkpoint"  # the models' type, which tells them from the one that was released
FOLDER, BEST = "forge.checkpoint", "forge.best"
_LOSS = "val/loss"
_PAGE = 100


@dataclass(frozen=True)
class Scores:
    """A checkpoint's val/… metrics, and when they were logged (ms since 1970; None: in an earlier life)."""

    metrics: Metrics
    logged_ms: int | None


@dataclass
class _Known:
    """A model in the store. `whole`: all was said of it."""

    id: str
    loss: float | None
    whole: bool
    listed: bool = False  # among the run's outputs


@dataclass
class Checkpoints:
    """All of it belongs to the writer's thread, and may be called again after it failed half way."""

    client: MlflowClient
    record: RunRecord
    _models: dict[int, _Known] | None = field(default=None, init=False)

    def keep(self, kept: Mapping[int, Path], scores: Mapping[int, Scores]) -> None:
        """Make the models those of `kept`, by step."""
        models = self._found()
        for step, model in list(models.items()):
            given = scores.get(step)
            if step not in kept or (given and model.loss not in (None, given.metrics[_LOSS])):  # another checkpoint of that step
                self.client.delete_logged_model(model.id)
                del models[step]
        for step, folder in kept.items():
            if not (step in models and models[step].whole):
                self._log(step, folder, scores.get(step))

    def best(self, step: int) -> None:
        """Tag that step's model, and no other."""
        for each, model in self._found().items():
            self.client.set_logged_model_tags(model.id, {BEST: str(each == step).lower()})

    def _log(self, step: int, folder: Path, scores: Scores | None) -> None:
        models, run_id = self._found(), self.record.info.run_id
        if step not in models:
            made = self.client.create_logged_model(
                self.record.info.experiment_id,
                name=folder.name,
                source_run_id=run_id,
                tags={FOLDER: str(folder), MLFLOW_MODEL_IS_EXTERNAL: "true"},
                params={"step": str(step)},
                model_type=KIND,
            )
            models[step] = _Known(made.model_id, scores.metrics[_LOSS] if scores else None, whole=False)
        model = models[step]
        if scores:
            self.client.log_batch(run_id, metrics=self._metrics(step, model.id, scores))
        if not model.listed:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.id, step)])
            model.listed = True
        self.client.finalize_logged_model(model.id, "READY")
        model.whole = True

    def _metrics(self, step: int, model_id: str, scores: Scores) -> list[Metric]:
        """At the very time at which the run has them: MLflow logs a model's metrics to its run too, and drops what is there already."""
        values = {name: value for name, value in scores.metrics.items() if name.startswith("val/") and math.isfinite(value)}
        times = {} if scores.logged_ms else self._logged_before(step, values)
        now = scores.logged_ms or int(time.time() * 1000)
        return [Metric(name, value, times.get(name, now), step, model_id=model_id) for name, value in values.items()]

    def _logged_before(self, step: int, values: Metrics) -> dict[str, int]:
        histories = {name: self.client.get_metric_history(self.record.info.run_id, name) for name in values}
        return {name: m.timestamp for name, metrics in histories.items() for m in metrics if (m.step, m.value) == (step, values[name])}

    def _found(self) -> dict[int, _Known]:
        """By step; what earlier lives left, the first time."""
        if self._models is None:
            outputs = self.record.outputs.model_outputs if self.record.outputs else []
            listed = {output.model_id for output in outputs}
            self._models = {}
            for model in self._search():
                known = _Known(model.model_id, _loss(model), str(model.status) == "READY", model.model_id in listed)
                if (step := int(model.params["step"])) in self._models:  # made twice, where an answer of the server was lost
                    self.client.delete_logged_model(model.model_id)
                else:
                    self._models[step] = known
        return self._models

    def _search(self) -> list[LoggedModel]:
        found: list[LoggedModel] = []
        token = None
        while True:
            where = f"source_run_id = '{self.record.info.run_id}' AND model_type = '{KIND}'"
            page = self.client.search_logged_models([self.record.info.experiment_id], where, max_results=_PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def _loss(model: LoggedModel) -> float | None:
    return next((metric.value for metric in model.metrics or [] if metric.key == _LOSS), None)
