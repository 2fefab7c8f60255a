"""What is written down of a run besides its metrics: configuration, data, base, plan, pictures, and its description."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from forge.assemble import Parts
from forge.config import Config
from forge.data import ledger
from forge.models import device, trainable_parameters
from forge.release import Released
from forge.reports import lengths
from forge.reports.dashboard import draw
from forge.spec import History, Ledger, Plan, Result, RunFacts, series
from forge.tracking import provenance
from forge.tracking.run import Run
from forge.training.evaluate import baseline


def configuration(run: Run, config: Config, overrides: list[str]) -> None:
    run.tags(device.describe())
    run.text(config.yaml(), "config/config.yaml")
    run.text("\n".join(overrides), "config/overrides.txt")
    if diff := provenance.dirty_diff():
        run.text(diff, "config/uncommitted.diff")
    run.params(_curated(config))


def data_and_model(run: Run, config: Config, parts: Parts, steps: Plan, account: Ledger) -> None:
    run.data(account, {name: s.source for name, s in config.data.sources.items()})
    run.table(ledger.table(account), "data/ledger_table.json")
    run.figure(lengths.draw(parts.data.lengths, config.data.sequence_length), "data/lengths.png")
    run.tags({"forge.base": str(parts.loaded.lineage), "forge.full_digest": parts.data.full_digest})
    run.params(
        {
            "model.trainable_parameters": trainable_parameters(parts.loaded.model),
            "trainer.total_steps": steps.total_steps,
            "data.packing": parts.data.ledger.packing,
        }
    )
    run.summary(baseline(parts.data))


def realised(result: Result) -> dict[str, float]:
    """Each source's share of all target tokens that were trained on."""
    prefix = "train/share/"
    last = {key: value for _, metrics in result.history for key, value in metrics.items() if key.startswith(prefix)}
    return {f"data/{key.removeprefix(prefix)}/share_realised": value for key, value in last.items()}


def facts(config: Config, run: Run, steps: Plan, parts: Parts) -> RunFacts:
    return RunFacts(
        title=f"{config.name} / {run.name}",
        status="starting",
        total_steps=steps.total_steps,
        config=_shown(config, parts),
        planned_lr=[steps.lr(step) for step in range(1, steps.total_steps + 1)],
        unigram_loss=baseline(parts.data)["val/unigram_loss"],
    )


def picture(facts: RunFacts, history: History, status: str, best_step: int | None = None) -> Figure:
    """The dashboard as it stands; the lowest validation loss is marked until the best checkpoint is chosen."""
    evaluated, losses = series(history, "val/loss")
    lowest = min(zip(losses, evaluated, strict=True))[1] if losses else None
    return draw(history, replace(facts, status=status, best_step=lowest if best_step is None else best_step))


def description(config: Config, parts: Parts, result: Result, scores: Mapping[str, float], released: Released | None) -> str:
    """The run's description in MLflow (Markdown)."""
    below = baseline(parts.data)["val/unigram_loss"] - result.best_loss
    lines = [
        f"Best validation loss **{result.best_loss:.4f}** nats a token, {below:.2f} below a unigram model. Chosen: {result.best_why}.",
        f"Ended at step {result.step}: {result.reason}.",
    ]
    if "final/loss" in scores:
        lines.insert(1, f"On the full validation set: {scores['final/loss']:.4f}.")
    if released:
        lines.append(f"`{released.sentence(config.release.alias)}`")
    return "\n\n".join(lines)


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
