"""One run, from documents to a registered model: open the run, build, train, record, release."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from forge.assemble import Parts, assemble, plan, planned, store_of
from forge.config import Config
from forge.data import ledger
from forge.errors import ConfigError, DataError, TrackingError
from forge.models import device, trainable_parameters
from forge.progress import Display
from forge.release import Released, release
from forge.reports import lengths
from forge.reports.dashboard import draw
from forge.signals import Interrupts
from forge.spec import History, Ledger, Plan, Result, RunFacts, Snapshot, series
from forge.tracking import provenance, registry, resume, store
from forge.tracking.run import Run
from forge.tracking.run import run as open_run
from forge.training import checkpoint
from forge.training.engine import fit
from forge.training.evaluate import baseline, scores_on_test


@dataclass(frozen=True)
class Outcome:
    """A run that came to its end. Losses of outcomes with one `valid_digest` were measured on the same tokens."""

    run_id: str
    valid_digest: str
    result: Result
    released: Released | None


def train(config: Config, overrides: list[str]) -> Outcome:
    """Train, and release unless a sweep will choose among its children. Raises ForgeError, and Stopped on a signal."""
    run_id, named_checkpoint = _to_resume(config)
    with Interrupts() as interrupts, open_run(config.tracking, config.identity, run_id) as run:
        print(f"run {run.name} ({run.id}){' goes on' if run.resumed else ''}", flush=True)
        _record_configuration(run, config, overrides)
        parts = assemble(config, partial(registry.fetch, config.tracking.uri))
        optimizer = config.optimizer()
        steps = plan(config, parts.data, _peak(optimizer))
        account = planned(parts.data, steps)
        _record_parts(run, config, parts, steps, account)
        if broken := ledger.broken(account, config.data.limits):
            raise DataError("\n".join(broken))
        checkpoints = store_of(config, parts, run.id)
        facts = _facts(config, run, steps, parts)
        first = checkpoint.step_of(named_checkpoint) if named_checkpoint else checkpoints.last_step()
        with interrupts.patient(), Display(steps.total_steps, first) as display:

            def picture(history: History, status: str) -> Figure:
                evaluated, losses = series(history, "val/loss")
                best_step = min(zip(losses, evaluated, strict=True))[1] if losses else None
                return draw(history, replace(facts, status=status, best_step=best_step))

            def emit(metrics: Mapping[str, float], step: int) -> None:
                run.log(metrics, step)
                display.show(metrics, step)

            def watch(snapshot: Snapshot) -> None:
                if config.tracking.dashboard:
                    run.image(picture(snapshot.history, "training"), "dashboard", snapshot.step)

            result = fit(
                parts.loaded.model,
                parts.data,
                config.objective,
                optimizer,
                steps,
                config.callbacks,
                checkpoints,
                emit,
                resume=named_checkpoint,
                stop=interrupts.asked,
                watch=watch,
            )
            run.tags({"forge.stop_reason": result.reason})
            if config.tracking.dashboard:
                run.figure(picture(result.history, result.reason), "dashboard.png")
        run.summary({"best/val_loss": result.best_loss, "best/step": result.best_step} | _realised(result))
        print(f"{result.reason}; best validation loss {result.best_loss:.4f} at step {result.best_step}")
        if parts.data.test:
            checkpoint.load_weights(parts.loaded.model, checkpoints.at(result.best_step))
            run.summary(scores_on_test(parts.loaded.model, parts.data))
        released = None
        if config.release.enabled and not run.parent:  # a sweep chooses among its children
            released = release(config, parts, checkpoints.at(result.best_step), run.id)
            run.summary({"release/max_logit_difference": released.max_logit_difference})
            print(released.sentence(config.release.alias))
        run.describe(_summary(config, parts, result, released))
    return Outcome(run.id, parts.data.ledger.valid_digest, result, released)


def _realised(result: Result) -> dict[str, float]:
    """Each source's share of all target tokens that were trained on."""
    prefix = "train/share/"
    last = {key: value for _, metrics in result.history for key, value in metrics.items() if key.startswith(prefix)}
    return {f"data/{key.removeprefix(prefix)}/share_realised": value for key, value in last.items()}


def _peak(optimizer: Any) -> float:
    try:
        return float(optimizer.learning_rate)
    except KeyError as error:
        raise ConfigError(f"{type(optimizer).__name__} has no learning rate to schedule: set optimizer.learning_rate") from error


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


def _summary(config: Config, parts: Parts, result: Result, released: Released | None) -> str:
    """The run's description in MLflow (Markdown)."""
    below = baseline(parts.data)["val/unigram_loss"] - result.best_loss
    lines = [
        f"Best validation loss **{result.best_loss:.4f}** nats a token at step {result.best_step}, {below:.2f} below a unigram model.",
        f"Ended at step {result.step}: {result.reason}.",
    ]
    if released:
        lines.append(f"`{released.sentence(config.release.alias)}`")
    return "\n\n".join(lines)


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


def _record_configuration(run: Run, config: Config, overrides: list[str]) -> None:
    run.tags(device.describe())
    run.text(config.yaml(), "config/config.yaml")
    run.text("\n".join(overrides), "config/overrides.txt")
    if diff := provenance.dirty_diff():
        run.text(diff, "config/uncommitted.diff")
    run.params(_curated(config))


def _record_parts(run: Run, config: Config, parts: Parts, steps: Plan, account: Ledger) -> None:
    run.data(account, {name: s.source for name, s in config.data.sources.items()})
    run.table(ledger.table(account), "data/ledger_table.json")
    run.figure(lengths.draw(parts.data.lengths, config.data.sequence_length), "data/lengths.png")
    run.tags({"forge.base": str(parts.loaded.lineage)})
    run.params(
        {
            "model.trainable_parameters": trainable_parameters(parts.loaded.model),
            "trainer.total_steps": steps.total_steps,
            "data.packing": parts.data.ledger.packing,
        }
    )
    run.summary(baseline(parts.data))


def _curated(config: Config) -> dict[str, Any]:
    """The settings that people compare runs by; the whole configuration is an artifact."""
    tree = config.resolved
    flat = {
        f"{group}.{key}": value for group in ("model", "adapter", "optimizer", "trainer", "schedule") for key, value in tree[group].items()
    }
    flat["schedule.shape"] = tree["schedule"]["shape"]["_target_"]
    flat |= {f"data.sources.{name}.weight": s.weight for name, s in config.data.sources.items()}
    flat |= {"data.sequence_length": config.data.sequence_length, "seed": config.seed}
    return {key: value for key, value in flat.items() if not key.endswith("_partial_")}


def _shown(config: Config, parts: Parts) -> dict[str, str]:
    """The settings on the dashboard, functions by their bare names."""
    tree = config.resolved
    return {
        "base": f"{parts.loaded.config['model_type']} ({parts.loaded.lineage.kind})",
        "trained": f"{trainable_parameters(parts.loaded.model) / 1e6:.3g} M parameters",
        **{group: tree[group]["_target_"].rpartition(".")[2] for group in ("adapter", "optimizer")},
        "peak lr": f"{tree['optimizer'].get('lr', tree['optimizer'].get('learning_rate'))}",
        "schedule": tree["schedule"]["shape"]["_target_"].rpartition(".")[2],
        "rows a step": f"{config.trainer.micro_batch} × {config.trainer.accumulate}",
        "tokens a row": str(config.data.sequence_length),
        "seed": str(config.seed),
    }


def _facts(config: Config, run: Run, steps: Plan, parts: Parts) -> RunFacts:
    return RunFacts(
        title=f"{config.name} / {run.name}",
        status="starting",
        total_steps=steps.total_steps,
        config=_shown(config, parts),
        planned_lr=[steps.lr(step) for step in range(1, steps.total_steps + 1)],
        unigram_loss=baseline(parts.data)["val/unigram_loss"],
    )
