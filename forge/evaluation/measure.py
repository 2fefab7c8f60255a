"""Everything that a model is measured by, without training it: losses on held-out text, answers, the retention suite, tasks of others.

Costs a pass over the full validation set and over the test rows, and what forge.evaluation.examine says. Memory: one model at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from forge import evidence
from forge.assemble import Parts
from forge.evaluation import samples
from forge.evaluation.answers import Answer
from forge.evaluation.examine import Examined, examine
from forge.reports import documents
from forge.settings import EvaluationSpec
from forge.spec import Data, Metrics
from forge.tracking.run import Run
from forge.training.evaluate import Full, full, scores_on_test

Which = Literal["base", "final"]


@dataclass(frozen=True)
class Measured:
    """One model's. `test`: test/… where rows are kept aside. `data` is what it was measured on, as its tokenizer cuts it."""

    lineage: str
    data: Data
    full: Full
    test: Metrics
    examined: Examined
    samples: Sequence[Answer]

    def metrics(self, which: Which) -> dict[str, float]:
        """<which>/…; of the tuned model test/… too."""
        losses = {key.replace("final/", f"{which}/", 1): value for key, value in self.full.metrics.items()}
        return {**losses, **(self.test if which == "final" else {}), **self.examined.metrics(which, self.data)}


def measure(parts: Parts, spec: EvaluationSpec) -> Measured:
    """The model as it is now. Raises ConfigError where a task of the harness can't be had."""
    loaded, data = parts.loaded, parts.data
    found = examine(loaded, data, spec)
    return Measured(
        str(loaded.lineage),
        data,
        full(loaded.model, data),
        scores_on_test(loaded.model, data),
        found,
        samples.at_the_end(loaded, data, spec, found.answers),
    )


def record(run: Run, which: Which, found: Measured, spec: EvaluationSpec) -> None:
    """Metrics, and the files by which runs are compared."""
    run.summary(found.metrics(which))
    file = documents.BASE_FILE if which == "base" else documents.FILE
    run.text(documents.text(found.data.full_digest, found.full.documents, found.data.unweighted), file)
    evidence.examined(run, which, found.examined, found.data, spec.max_new_tokens)


def table(models: Mapping[Which, Measured]) -> list[tuple[str, dict[Which, float]]]:
    """What was measured, by name below base/ and final/, and each model's value; test/… and the harness's under their own names.

    Where there is one source alone, its numbers are those of all.
    """
    sources = {source for found in models.values() for source in found.data.valid_full}
    alone = f"/{sources.pop()}" if len(sources) == 1 else None
    values: dict[str, dict[Which, float]] = {}
    for which, found in models.items():
        for name, value in found.metrics(which).items():
            if alone is None or not name.endswith(alone):
                values.setdefault(name.removeprefix(f"{which}/"), {})[which] = value
    return sorted(values.items(), key=lambda pair: _place(pair[0]))


_ORDER = ("loss", "perplexity", "bits_per_byte", "test", "answers", "exact_match", "f1", "bleu", "rouge1", "rouge2", "rougeL", "ended")


def _place(name: str) -> tuple[int, str]:
    first = name.partition("/")[0]
    return (_ORDER.index(first) if first in _ORDER else len(_ORDER), name)
