"""What is written down of a run besides its metrics: configuration, data, base, plan, pictures, and its description."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from forge.assemble import Parts
from forge.config import Config, dotted
from forge.data import ledger
from forge.evaluation.answers import Answer
from forge.evaluation.examine import Examined
from forge.evaluation.samples import Sample, rows
from forge.models import device, trainable_parameters
from forge.release import Released
from forge.reports import html, lengths, questions
from forge.reports.advice import Advice, advise
from forge.reports.dashboard import draw
from forge.spec import Data, History, Ledger, Metrics, Plan, Result, RunFacts
from forge.tracking import provenance
from forge.tracking.run import Run
from forge.training.checkpoint import Store
from forge.training.choice import ROWS_FILE, Saved
from forge.training.evaluate import baseline

_NOT_AGAIN = ("resume=", "tracking.", "hydra.", "callbacks.pruning=")  # overrides of this run alone: where it reports to

_SAMPLES = "evaluation/samples"


@dataclass(frozen=True)
class Ended:
    """Training's end, as it is shown."""

    result: Result
    facts: RunFacts
    advice: Sequence[Advice]


def configuration(run: Run, config: Config, overrides: list[str], processes: int) -> None:
    """`processes`: that train together; from three on sums depend on how many in the last digits, as dropout does from two on."""
    run.tags(device.describe() | {"forge.processes": str(processes)})
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


def facts(config: Config, run: Run, steps: Plan, parts: Parts, memory_gib: float) -> RunFacts:
    """What is known when training starts."""
    return RunFacts(
        title=f"{config.name} / {run.name}",
        status="training",
        total_steps=steps.total_steps,
        config=_shown(config, parts),
        planned_lr=[steps.lr(step) for step in range(1, steps.total_steps + 1)],
        unigram_loss=baseline(parts.data)["val/unigram_loss"],
        settings=dict(dotted(config.resolved)),
        memory_gib=memory_gib,
    )


def so_far(run: Run, config: Config, facts: RunFacts, history: History, checkpoints: Store) -> None:
    """After each evaluation: the checkpoints that are kept, and the dashboard."""
    saved = checkpoints.evaluated()
    run.checkpoints({one.step: one.path for one in saved})
    if config.tracking.dashboard:
        points = list(history)  # drawn in the background, while training adds to it
        run.image(lambda: draw(points, replace(facts, saved=_losses(saved))), "dashboard", points[-1][0])


def sampled(run: Run, samples: Sequence[Sample]) -> None:
    """The samples of one evaluation, in a file of its step."""
    if samples:
        run.text(json.dumps(rows(samples), indent=1, ensure_ascii=False), f"{_SAMPLES}/step-{samples[0][0]:08d}.json")


def sampled_before(run: Run, samples: Sequence[Sample], last: int) -> list[dict[str, Any]]:
    """The rows of the evaluations before the first of this life's `samples`, or up to step `last` where it made none, from the files of
    their steps. What an earlier life did after the checkpoint that this one went on from is no part of the run."""
    end = samples[0][0] if samples else last + 1
    return [row for _, text in sorted(run.texts(_SAMPLES).items()) for row in json.loads(text) if row["step"] < end]


def examined(run: Run, which: Literal["base", "final"], found: Examined, data: Data, max_new_tokens: int) -> None:
    """What one of the two models was asked, and what came of it."""
    run.summary(found.metrics(which, data))
    if found.answers:
        run.text(found.file(data, max_new_tokens), questions.BASE_FILE if which == "base" else questions.FILE)
    if found.kept:
        names = ("kind", "prompt", "answer", "followed")
        ending = "_base" if which == "base" else ""
        run.table({name: [getattr(each, name) for each in found.kept] for name in names}, f"evaluation/retention{ending}.json")


def at_the_end(run: Run, config: Config, facts: RunFacts, result: Result, checkpoints: Store) -> Ended:
    """How training ended, also where it was stopped: the checkpoint that was chosen, the dashboard, and what to try next."""
    saved = checkpoints.evaluated()
    run.checkpoints({one.step: one.path for one in saved})
    run.best(result.best_step)
    run.text(json.dumps(next(one.rows for one in saved if one.step == result.best_step)), ROWS_FILE)
    pruned = {"forge.pruned": result.reason} if result.reason.startswith("pruned") else {}
    run.tags({"forge.stop_reason": result.reason, "forge.best_reason": result.best_why, **pruned})
    facts = replace(facts, status=result.reason, best_step=result.best_step, best_why=result.best_why, saved=_losses(saved))
    advice = advise(result.history, facts)
    if config.tracking.dashboard:
        for theme, file in (("light", "dashboard.png"), ("dark", "dashboard_dark.png")):
            run.figure(draw(result.history, facts, theme, advice), file)
    return Ended(result, facts, advice)


def report(
    run: Run,
    config: Config,
    overrides: Sequence[str],
    parts: Parts,
    account: Ledger,
    ended: Ended,
    scores: Metrics,
    plan: Sequence[tuple[str, float, float]],
    samples: Sequence[Sample],
    written: Sequence[Answer],
) -> None:
    """The whole run as one page. `scores`: final/… and test/… of the chosen checkpoint; `plan`: what was estimated, how much, and what it
    came to; `samples`: of each evaluation of this life; `written`: the chosen checkpoint's, which the page shows."""
    own = again(overrides)
    best = ended.result.best_step
    read = [*sampled_before(run, samples, ended.result.step), *rows(samples)]
    if table := [*(row for row in read if row["step"] != best), *rows([(best, each) for each in written])]:
        run.table({name: [row.get(name) for row in table] for name in table[-1]}, "evaluation/samples.json")
    page = html.page(
        ended.result.history,
        ended.facts,
        run_id=run.id,
        command=shlex.join(["python", "-m", "forge.train", *own]),
        advice=ended.advice,
        scores=scores,
        plan=plan,
        samples=[(each.asked + "\n" * each.question, each.text) for each in written],
        ledger=ledger.table(account),
        config=config.yaml(),
        overrides=own,
    )
    run.text(page, "report.html")


def again(overrides: Sequence[str]) -> list[str]:
    """Those of the overrides that make a run like this one."""
    return [override for override in overrides if not override.startswith(_NOT_AGAIN)]


def description(config: Config, parts: Parts, result: Result, scores: Mapping[str, float], released: Released | None) -> str:
    """The run's description in MLflow (Markdown)."""
    below = baseline(parts.data)["val/unigram_loss"] - result.best_loss
    beside = f"{abs(below):.2f} {'below' if below >= 0 else 'above'} a unigram model"
    lines = [
        f"Best validation loss **{result.best_loss:.4f}** nats a token, {beside}. Chosen: {result.best_why}.",
        f"Ended at step {result.step}: {result.reason}.",
    ]
    if "final/loss" in scores:
        lines.insert(1, f"On the full validation set: {scores['final/loss']:.4f}.")
    if released:
        lines.append(f"`{released.sentence()}`")
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


def _losses(saved: Sequence[Saved]) -> list[tuple[int, float]]:
    return [(one.step, one.loss) for one in saved]
