"""One run, from documents to a registered model: open the run, build, train, record, release.

Under mlx.launch each process is a rank: the first one leads, and alone has a run, prints, saves and releases; the others train with it.
"""

import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forge import blas, estimate, evidence, paths
from forge.assemble import Parts, assemble, plan, planned, setup_of, store_of, update_of
from forge.config import Config
from forge.data import ledger
from forge.errors import DataError, TrackingError
from forge.evaluation import samples
from forge.evaluation.answers import Answer
from forge.evaluation.asking import Asking
from forge.evaluation.examine import examine
from forge.evaluation.harness import require
from forge.evaluation.samples import Sample
from forge.evidence import Ended
from forge.progress import Display
from forge.release import Released, release
from forge.reports import documents
from forge.signals import Interrupts
from forge.spec import Emit, Metrics, Plan, Result, Snapshot
from forge.tracking import registry, resume
from forge.tracking.run import Run
from forge.tracking.run import run as open_run
from forge.training import checkpoint, memory
from forge.training.checkpoint import Store
from forge.training.engine import fit
from forge.training.evaluate import Full, forgetting, full, scores_on_test
from forge.training.memory import Bound, limited
from forge.training.update import Update
from forge.training.world import World, world


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
    def of(cls, config: Config, run_id: str, ranks: World) -> "_Job":
        with ranks.in_turn():  # what the first process downloads and prepares, the others find
            parts = assemble(config, partial(registry.fetch, config.tracking.uri))
        ranks.require_same("data", parts.data.ledger.digest)
        update = update_of(config, parts.loaded.model)
        return cls(config, parts, update, plan(config, parts.data, update.peak), store_of(config, parts, run_id))

    def fit(self, emit: Emit, **hooks: Any) -> Result:
        """engine.fit with all that the job holds."""
        model, data, config = self.parts.loaded.model, self.parts.data, self.config
        return fit(model, data, config.objective, self.update, self.steps, config.callbacks, self.checkpoints, emit, **hooks)

    def limited(self) -> AbstractContextManager[Bound]:
        """MLX under trainer.memory_limit."""
        return limited(self.config.trainer.memory_limit, setup_of(self.config, self.parts.loaded))

    def asking(self, bound: Bound) -> Asking:
        return Asking(bound, self.config.evaluation, len(self.parts.data.valid_full), self.config.data.sequence_length)


def train(config: Config, overrides: list[str]) -> Outcome | None:
    """Train, and release unless a sweep will choose among its children; None on a process that follows.

    Raises ForgeError, and Stopped on a signal.
    """
    require(config.evaluation.harness)
    ranks = world()  # before signals are handled: processes that wait for each other can't be interrupted otherwise
    blas.share_cores(ranks.on_machine)
    with Interrupts() as interrupts, ranks.quiet():
        ranks.require_same("configuration", config.identity)
        if ranks.first:
            return _lead(config, overrides, ranks, interrupts)
        _follow(config, ranks, interrupts)
        return None


def _lead(config: Config, overrides: list[str], ranks: World, interrupts: Interrupts) -> Outcome:
    run_id, named = _to_resume(config)
    with open_run(config.tracking, config.identity, run_id) as run, ranks.telling(lambda why: run.close("FAILED", why)):
        print(f"run {run.name} ({run.id}){' goes on' if run.resumed else ''}", flush=True)
        evidence.configuration(run, config, overrides, ranks.size)
        job = _Job.of(config, ranks.agree(run.id) or "", ranks)
        account = planned(job.parts.data, job.steps)
        evidence.data_and_model(run, config, job.parts, job.steps, account)
        if broken := ledger.broken(account, config.data.limits):
            raise DataError("\n".join(broken))
        forecast = estimate.kept(config.identity)
        if forecast:
            run.text(json.dumps(vars(forecast), indent=2), "plan/plan.json")
        started = time.perf_counter()
        shown: list[Sample] = []
        with job.limited() as bound:
            asking = job.asking(bound)
            ended = _fit(run, job, named, ranks, interrupts, asking, shown)
            result = ended.result
            run.summary({"best/val_loss": result.best_loss, "best/step": result.best_step} | evidence.realised(result))
            print(f"{result.reason}; best checkpoint: {result.best_why}")
            for one in ended.advice:
                print(f"{one.severity}: {one.headline} ({one.why})" + (f"; try {one.override}" if one.override else ""))
            checkpoint.load_weights(job.parts.loaded.model, job.checkpoints.at(result.best_step))
            scores = _scores(run, job, result)
            run.summary(scores)
            written = _examine(run, job, result, asking)
        seconds = time.perf_counter() - started - asking.seconds
        scored = estimate.score(forecast, result, seconds, asking.peaks) if forecast and not run.resumed else []
        run.summary({f"plan/{one.name}_ratio": one.ratio for one in scored})
        compared = [(one.words, one.estimated, one.measured) for one in scored]
        evidence.report(run, config, overrides, job.parts, account, ended, scores, compared, shown, written)
        released = None
        if config.releases(run.parent):
            released = release(config, job.parts, job.checkpoints.at(result.best_step), run.id)
            run.summary({"release/max_logit_difference": released.max_logit_difference})
            print(released.sentence())
        run.describe(evidence.description(config, job.parts, result, scores, released))
    return Outcome(run.id, job.parts.data.ledger.valid_digest, result, released)


def _follow(config: Config, ranks: World, interrupts: Interrupts) -> None:
    """Train with the first process, and leave the rest to it."""
    with ranks.telling(lambda why: None):
        job = _Job.of(config, ranks.agree(None) or "", ranks)
        if ledger.broken(planned(job.parts.data, job.steps), config.data.limits):
            return  # the first process says so
        with interrupts.patient(agree=ranks.any) as asked, job.limited() as bound:
            job.fit(lambda metrics, step: None, stop=asked, bound=bound, world=ranks)


def _fit(run: Run, job: _Job, named: Path | None, ranks: World, interrupts: Interrupts, asking: Asking, shown: list[Sample]) -> Ended:
    """Train, and show it: in the terminal, as metrics, and as a dashboard and samples at each evaluation; these go to `shown` too."""
    bound = asking.bound
    first = checkpoint.step_of(named) if named else job.checkpoints.last_step()
    with interrupts.patient(run.asked_to_stop, ranks.any) as asked, Display(job.steps.total_steps, first) as display:
        facts = evidence.facts(job.config, run, job.steps, job.parts, (bound.limit or memory.total()) / 2**30)

        def emit(metrics: Metrics, step: int) -> None:
            run.log(metrics, step)
            display.show(metrics, step)

        def watch(snapshot: Snapshot) -> None:
            evidence.so_far(run, job.config, facts, snapshot.history, job.checkpoints)
            with asking.at(snapshot.step):
                made = [(snapshot.step, each) for each in samples.so_far(job.parts.loaded, job.parts.data, job.config.evaluation)]
            evidence.sampled(run, made)
            shown.extend(made)

        def base(measured: Full) -> None:
            run.text(_documents(job, measured), documents.BASE_FILE)
            with asking.at(0):
                found = examine(job.parts.loaded, job.parts.data, job.config.evaluation)
            evidence.examined(run, "base", found, job.parts.data, job.config.evaluation.max_new_tokens)

        result = job.fit(emit, resume=named, stop=asked, watch=watch, base=base, bound=bound, world=ranks)
        return evidence.at_the_end(run, job.config, facts, result, job.checkpoints)


def _scores(run: Run, job: _Job, result: Result) -> dict[str, float]:
    """The chosen checkpoint, whose weights the model holds, on the full validation set, against the base, and on the test rows.

    Also keeps each document's loss, by which runs are compared.
    """
    model, data = job.parts.loaded.model, job.parts.data
    final = full(model, data)
    if final.documents:
        run.text(_documents(job, final), documents.FILE)
    base = {key.replace("base/", "final/", 1): value for key, value in result.history[0][1].items()}
    return {**final.metrics, **forgetting(final.metrics, base), **scores_on_test(model, data)}


def _examine(run: Run, job: _Job, result: Result, asking: Asking) -> list[Answer]:
    """What the chosen checkpoint, whose weights the model holds, answers. Returns what it wrote that is to be read."""
    loaded, data, spec = job.parts.loaded, job.parts.data, job.config.evaluation
    with asking.at(result.step):
        found = examine(loaded, data, spec)
        written = samples.at_the_end(loaded, data, spec, found.answers)
    evidence.examined(run, "final", found, data, spec.max_new_tokens)
    return written


def _documents(job: _Job, measured: Full) -> str:
    return documents.text(job.parts.data.full_digest, measured.documents, job.parts.data.unweighted)


def _to_resume(config: Config) -> tuple[str | None, Path | None]:
    """The run to go on with and, when one was named, the checkpoint; (None, None) for a new run."""
    if config.resume is None:
        return None, None
    if config.resume == "auto":
        found = resume.unfinished(config.tracking, config.identity)
        if found is None:
            print("resume=auto: no unfinished run of this configuration, so a new one starts")
        return found, None
    folder = paths.given("resume", config.resume)
    if folder.is_dir():
        folder = checkpoint.last_in(folder) or folder  # a run's whole folder means its last checkpoint
        return resume.resumable(config.tracking, checkpoint.run_id(folder)), folder
    if "/" in config.resume:
        raise TrackingError(f"resume={config.resume}: there is no such checkpoint folder; use resume=auto or a run's id")
    return resume.resumable(config.tracking, config.resume), None
