"""One run, from documents to a registered model: open the run, build, train, record, release."""

import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from forge import estimate, evidence
from forge.assemble import Parts, assemble, plan, planned, setup_of, store_of, update_of
from forge.config import Config
from forge.data import ledger
from forge.errors import DataError, TrackingError
from forge.progress import Display
from forge.release import Released, release
from forge.signals import Interrupts
from forge.spec import Metrics, Plan, Result, Snapshot
from forge.tracking import registry, resume, store
from forge.tracking.run import Run
from forge.tracking.run import run as open_run
from forge.training import checkpoint
from forge.training.checkpoint import Store
from forge.training.engine import fit
from forge.training.evaluate import forgetting, full_scores, scores_on_test
from forge.training.memory import Bound, limited
from forge.training.update import Update


@dataclass(frozen=True)
class Outcome:
    """A run that came to its end. Losses of outcomes with one `valid_digest` were measured on the same tokens."""

    run_id: str
    valid_digest: str
    result: Result
    released: Released | None


@dataclass(frozen=True)
class _Job:
    """What a run trains, and with what."""

    config: Config
    parts: Parts
    update: Update
    steps: Plan
    checkpoints: Store

    @classmethod
    def of(cls, config: Config, run_id: str) -> "_Job":
        parts = assemble(config, partial(registry.fetch, config.tracking.uri))
        update = update_of(config, parts.loaded.model)
        return cls(config, parts, update, plan(config, parts.data, update.peak), store_of(config, parts, run_id))

    def limited(self) -> AbstractContextManager[Bound]:
        """MLX under trainer.memory_limit."""
        return limited(self.config.trainer.memory_limit, setup_of(self.config, self.parts.loaded))


def train(config: Config, overrides: list[str]) -> Outcome:
    """Train, and release unless a sweep will choose among its children.

    Raises ForgeError, and Stopped on a signal.
    """
    with Interrupts() as interrupts:
        return _lead(config, overrides, interrupts)


def _lead(config: Config, overrides: list[str], interrupts: Interrupts) -> Outcome:
    run_id, named = _to_resume(config)
    with open_run(config.tracking, config.identity, run_id) as run:
        print(f"run {run.name} ({run.id}){' goes on' if run.resumed else ''}", flush=True)
        evidence.configuration(run, config, overrides)
        started = time.perf_counter()
        job = _Job.of(config, run.id)
        account = planned(job.parts.data, job.steps)
        evidence.parts(run, config, job.parts, job.steps, account)
        if broken := ledger.broken(account, config.data.limits):
            raise DataError("\n".join(broken))
        forecast = estimate.kept(config.identity)
        if forecast:
            run.text(json.dumps(vars(forecast), indent=2), "plan/plan.json")
        result = _fit(run, job, named, interrupts)
        run.summary({"best/val_loss": result.best_loss, "best/step": result.best_step} | evidence.realised(result))
        print(f"{result.reason}; best checkpoint: {result.best_why}")
        scores = _score(job, result)
        run.summary(scores)
        if forecast and not run.resumed:
            run.summary(estimate.score(forecast, result, time.perf_counter() - started))
        released = None
        if config.release.enabled and not run.parent:  # a sweep chooses among its children
            released = release(config, job.parts, job.checkpoints.at(result.best_step), run.id)
            run.summary({"release/max_logit_difference": released.max_logit_difference})
            print(released.sentence(config.release.alias))
        run.describe(evidence.description(config, job.parts, result, scores, released))
    return Outcome(run.id, job.parts.data.ledger.valid_digest, result, released)


def _fit(run: Run, job: _Job, named: Path | None, interrupts: Interrupts) -> Result:
    """Train, and show it: in the terminal, as metrics, and as a dashboard at each evaluation."""
    config, dashboard = job.config, job.config.tracking.dashboard
    facts = evidence.facts(config, run, job.steps, job.parts)
    first = checkpoint.step_of(named) if named else job.checkpoints.last_step()
    with interrupts.patient(run.asked_to_stop) as asked, Display(job.steps.total_steps, first) as display, job.limited() as bound:

        def emit(metrics: Metrics, step: int) -> None:
            run.log(metrics, step)
            display.show(metrics, step)

        def watch(snapshot: Snapshot) -> None:
            if dashboard:
                history = list(snapshot.history)  # drawn in the background, while training adds to it
                run.image(lambda: evidence.picture(facts, history, "training"), "dashboard", snapshot.step)

        result = fit(
            job.parts.loaded.model,
            job.parts.data,
            config.objective,
            job.update,
            job.steps,
            config.callbacks,
            job.checkpoints,
            emit,
            resume=named,
            stop=asked,
            watch=watch,
            bound=bound,
        )
        run.tags({"forge.stop_reason": result.reason, "forge.best_reason": result.best_why})
        if dashboard:
            run.figure(evidence.picture(facts, result.history, result.reason), "dashboard.png")
    return result


def _score(job: _Job, result: Result) -> Metrics:
    """The chosen checkpoint on the full validation set, against the base, and on the test rows."""
    model, data = job.parts.loaded.model, job.parts.data
    checkpoint.load_weights(model, job.checkpoints.at(result.best_step))
    final = full_scores(model, data)
    base = {key.replace("base/", "final/", 1): value for key, value in result.history[0][1].items()}
    return {**final, **forgetting(final, base), **scores_on_test(model, data)}


def next_steps(config: Config, run_id: str, released: Released | None) -> str:
    """What to type to look at a run and to serve what it released."""
    command, address = store.page(config.tracking.uri, run_id)
    lines = [f"Look at it:  {command or address}"] + ([f"             {address}"] if command else [])
    if released:
        name = f"models:/{config.release.name}@{config.release.alias}"
        body = '{"prompt": "shutil.copy(src, dst)", "max_tokens": 60}'
        lines += [
            f"Serve it:    {store.prefix(config.tracking.uri)}mlflow models serve -m {name} --env-manager local --port 5001",
            f"Ask it:      curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{body}'",
        ]
    return "\n".join(lines)


def _to_resume(config: Config) -> tuple[str | None, Path | None]:
    """The run to go on with and, when one was named, the checkpoint; (None, None) for a new run."""
    if config.resume is None:
        return None, None
    if config.resume == "auto":
        found = resume.unfinished(config.tracking, config.identity)
        if found is None:
            print("resume=auto: no unfinished run of this configuration, so a new one starts")
        return found, None
    folder = Path(config.resume).expanduser()
    if folder.is_dir():
        folder = checkpoint.last_in(folder) or folder  # a run's whole folder means its last checkpoint
        return resume.resumable(config.tracking, checkpoint.run_id(folder)), folder
    if "/" in config.resume:
        raise TrackingError(f"resume={config.resume}: there is no such checkpoint folder; use resume=auto or a run's id")
    return resume.resumable(config.tracking, config.resume), None
