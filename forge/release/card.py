"""The model card, README.md in the model's folder: Markdown with the front matter that the Hugging Face hub reads, the dashboard beside it.

Every number in it was measured; what is not known is left out or called unknown. Costs the drawing of the dashboard, half a second.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge.assemble import Parts
from forge.config import Config, dotted, relevant
from forge.data import ledger
from forge.release.gate import Measured, Verdict
from forge.release.history import Past
from forge.release.origin import UNKNOWN, Origin
from forge.release.table import markdown
from forge.reports.dashboard import draw
from forge.spec import RunFacts
from forge.tracking import provenance
from forge.training.evaluate import baseline

_LEDGER = ("weight", "rows_in", "rows_train", "rows_valid", "rows_test", "rows_dropped", "rows_bad", "tokens_train", "targets_train")


@dataclass(frozen=True)
class Subject:
    """What a card is about. `recipe`: how the model was quantised; `table`: rows of all models that were compared."""

    config: Config
    parts: Parts
    past: Past
    origin: Origin
    name: str
    run_id: str
    checkpoint: str
    recipe: str | None
    measured: Measured
    verdict: Verdict
    table: Sequence[Sequence[str]]


def write(subject: Subject, folder: Path) -> None:
    """README.md, dashboard.png where the run has a history, and the base's licence, into `folder`."""
    if subject.origin.file:
        shutil.copyfile(subject.origin.file, folder / subject.origin.file.name)
    pictured = bool(subject.past.history) and subject.config.tracking.dashboard
    if pictured:
        _dashboard(subject).savefig(folder / "dashboard.png")
    (folder / "README.md").write_text(provenance.redact(_card(subject, pictured)), encoding="utf-8")


def _card(subject: Subject, pictured: bool) -> str:
    from huggingface_hub import ModelCard

    sections = {
        "Results": _results(subject, pictured),
        "Data": _data(subject),
        "How it was made": _made(subject),
        "How to use it": _use(subject),
        "Limits": _limits(subject),
    }
    body = "\n\n".join([f"# {subject.name}", _summary(subject), *(f"## {title}\n\n{text}" for title, text in sections.items())])
    return str(ModelCard(f"---\n{_front_matter(subject).to_yaml()}\n---\n\n{body}\n"))


def _front_matter(subject: Subject) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    loss = subject.measured.loss
    measures = {"loss": (loss, "Loss (nats a token)"), "perplexity": (math.exp(min(loss, 700)), "Perplexity")}
    named: dict[str, Any] = {
        "task_type": "text-generation",
        "task_name": "Text generation",
        "dataset_name": "held-out rows",
    }
    return ModelCardData(
        base_model=subject.origin.base,
        license=subject.origin.license,
        datasets=_datasets(subject.config),
        library_name="mlx",
        pipeline_tag="text-generation",
        tags=["forge", "mlx", *(["quantised", subject.recipe] if subject.recipe else [])],
        metrics=list(measures),
        model_name=subject.name,
        eval_results=[
            EvalResult(dataset_type="held-out", metric_type=kind, metric_value=value, metric_name=title, **named)
            for kind, (value, title) in measures.items()
        ],
        **dict[str, Any](subject.origin.fields),
    )


def _datasets(config: Config) -> list[str]:
    """Hub ids where sources are of the hub, else the sources' own names."""
    nodes = {name: each.source for name, each in config.data.sources.items()}
    hub = "forge.data.sources.hub."
    return [str(node["id"]) if str(node["_target_"]).startswith(hub) and "id" in node else name for name, node in nodes.items()]


def _summary(subject: Subject) -> str:
    lineage, kind = subject.parts.loaded.lineage, subject.parts.loaded.config["model_type"]
    revision = "" if lineage.revision == subject.origin.base else f" ({lineage.revision})"  # a registered version is its own
    base = "made from nothing" if subject.origin.base is None else f"adapted from `{subject.origin.base}`{revision}"
    packed = f", quantised by the recipe `{subject.recipe}` to {subject.measured.bits:.2f} bits a weight" if subject.recipe else ""
    said = f" (says its {subject.origin.said_by})" if subject.origin.said_by and subject.origin.license != UNKNOWN else ""
    licence = "" if subject.origin.base is None else f" Licence of the base: {subject.origin.license}{said}."
    return f"A language model of the {kind} architecture, {base}{packed}.{licence}"


def _results(subject: Subject, pictured: bool) -> str:
    scores, base = subject.measured.scores, subject.past.base
    sources = sorted(key for key in scores if key.startswith("val/loss"))
    rows = [["set", "base", "this model"]]
    for key in sources:
        before = f"{base[key]:.4f}" if base and key in base else "–"
        rows.append([key.removeprefix("val/loss").strip("/") or "all together", before, f"{scores[key]:.4f}"])
    unigram = baseline(subject.parts.data)["val/unigram_loss"]
    bits = scores.get("val/bits_per_byte")
    lines = [
        f"Validation loss in nats a token, on rows that were not trained on; token frequencies alone reach {unigram:.4f}."
        + (f" In bits per byte of text: {bits:.4f}." if bits is not None else ""),
        markdown(rows),
        "What was compared before it was registered:",
        markdown(subject.table),
        "\n".join(f"- {check.name}: {_WORDS[check.passed]}: {check.words}" for check in subject.verdict.checks),
    ]
    return "\n\n".join([*lines, "![The training run](dashboard.png)"] if pictured else lines)


_WORDS = {True: "passed", False: "**refused**", None: "not judged"}


def _data(subject: Subject) -> str:
    account, config = subject.parts.data.ledger, subject.config
    table = ledger.table(account)
    names = [name for name in table if name != "count"]
    at = {str(name): row for row, name in enumerate(table["count"])}
    rows = [["count", *names]]
    rows += [[count, *(_number(table[name][at[count]]) for name in names)] for count in _LEDGER if count in at]
    rows.append(["digest", *(f"`{account.source_digests[name][:16]}`" for name in names)])
    targets = "; ".join(f"{name}: `{each.source['_target_']}`" for name, each in config.data.sources.items())
    return "\n\n".join(
        [
            f"Sources: {targets}. Weights are shares of the training tokens.",
            markdown(rows),
            f"Digest of all text `{account.digest[:16]}`, of the validation tokens `{account.valid_digest[:16]}`. Rows: {account.packing}.",
        ]
    )


def _number(value: object) -> str:
    return "–" if value is None else f"{value:,.10g}" if isinstance(value, int | float) else str(value)


def _made(subject: Subject) -> str:
    settings = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in dotted(relevant(subject.config.resolved)))
    return "\n\n".join(
        [
            f"Run `{subject.run_id}`, checkpoint `{subject.checkpoint}`, configuration `{subject.config.identity}`.",
            f"<details><summary>Settings that can change the result</summary>\n\n```yaml\n{settings}\n```\n\n</details>",
        ]
    )


def _use(subject: Subject) -> str:
    uri = f"models:/{subject.name}/VERSION"
    return "\n".join(
        [
            "```sh",
            f"mlflow models serve -m {uri} --env-manager local    # /invocations takes OpenAI chat and completion bodies",
            f"python -m forge.serve model={uri}                   # OpenAI routes, streaming",
            "mlx_lm.generate --model FOLDER --prompt '…'         # FOLDER is the one that holds this file",
            "```",
        ]
    )


def _limits(subject: Subject) -> str:
    lines = [
        "It was measured on held-out rows of its own training sources: other text may go worse. Truth, bias and safety were not measured.",
        f"It saw at most {subject.config.data.sequence_length:,} tokens at once in training.",
    ]
    if subject.origin.base and subject.origin.license == UNKNOWN:
        lines.append("The base's files name no licence: find out what it may be used for before you pass this model on.")
    if subject.recipe:
        lines.append("Quantisation loses accuracy: the table above says how much on held-out text.")
    lines += [f"Not judged: {check.name}, since {check.words}." for check in subject.verdict.checks if check.passed is None]
    return "\n".join(f"- {line}" for line in lines)


def _dashboard(subject: Subject) -> Any:
    past = subject.past
    facts = RunFacts(
        title=f"{subject.config.name} / {subject.run_id[:8]}",
        status=f"released {subject.checkpoint}",
        total_steps=max(step for step, _ in past.history),
        best_step=past.step,
        unigram_loss=baseline(subject.parts.data)["val/unigram_loss"],
        saved=[(past.step, past.loss)] if past.loss is not None else [],
        settings=dict(dotted(subject.config.resolved)),
    )
    return draw(past.history, facts)
