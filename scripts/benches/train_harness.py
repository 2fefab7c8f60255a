"""What a run costs besides its steps: the share of the time between its first and its last step that is no step and no evaluation.

Runs the quickstart as a user does, once with logging alone and once with everything on, in a root of its own, and reads its MLflow store.
Takes five minutes.

A step is forward, backward and update (perf/step_s); evaluations are perf/eval_s where the run reports it, else part of the cost.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_WAYS = {
    "logging alone": ["trainer.eval_every=100%", "trainer.save_every=100%", "tracking.dashboard=false"],
    "everything on": [],
}


def main(quick: bool) -> None:
    for name, overrides in _WAYS.items():
        with tempfile.TemporaryDirectory(prefix="forge-bench-") as home:
            _train([*overrides, "release.enabled=false", *(["trainer.budget=60 steps"] if quick else [])], home)
            steps, stepped, evaluated, wall = _times(home)
        cost = 1 - (stepped + evaluated) / wall
        print(f"{name}: {steps} steps in {wall:.1f} s, of which steps {stepped:.1f}, evaluations {evaluated:.1f}; the rest is {cost:.2%}")


def _train(overrides: list[str], home: str) -> None:
    environment = {**os.environ, "FORGE_HOME": home, "PYTHONPATH": str(_HERE.parents[1])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "forge.train", "+experiment=quickstart", *overrides]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"the quickstart failed:\n{ended.stdout[-1000:]}\n{ended.stderr[-2000:]}")


def _times(home: str) -> tuple[int, float, float, float]:
    """Steps, their seconds, the evaluations' and the wall clock's, from the end of the first step to the end of the last but one.

    A step's metrics are sent after its evaluation, and the last one's after what closes the run.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = next(each for each in client.search_experiments() if each.name == "quickstart")
    run = client.search_runs([experiment.experiment_id])[0].info.run_id
    first, *steps, _ = sorted(client.get_metric_history(run, "perf/step_s"), key=lambda metric: metric.step)
    within = range(first.step + 1, steps[-1].step + 1)
    evaluations = [metric.value for metric in client.get_metric_history(run, "perf/eval_s") if metric.step in within]
    return len(steps), sum(metric.value for metric in steps), sum(evaluations), (steps[-1].timestamp - first.timestamp) / 1000


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
