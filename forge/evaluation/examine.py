"""What a model is asked at the end, besides its loss on held-out text: answers, the retention suite, and tasks of others.

All of it is asked of the base and of the tuned model alike. Costs what answers, retention and harness say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forge.evaluation import retention
from forge.evaluation.answers import Answer, answers
from forge.evaluation.harness import harness
from forge.evaluation.retention import Kept
from forge.evaluation.scores import Scored, metrics
from forge.models import Loaded
from forge.reports import questions
from forge.settings import EvaluationSpec
from forge.spec import Data


@dataclass(frozen=True)
class Examined:
    """One model's. `harness`: harness/<task>/<metric>."""

    answers: Sequence[Answer]
    kept: Sequence[Kept]
    harness: Mapping[str, float]

    @property
    def scored(self) -> dict[str, list[Scored]]:
        """The answers by source, in the order of the documents' names."""
        found: dict[str, list[Scored]] = {each.source: [] for each in self.answers}
        for each in sorted(self.answers, key=lambda one: (one.document, one.reference)):
            found[each.source].append(Scored(each.document, each.text, each.reference, each.ended))
        return found

    def metrics(self, prefix: str, data: Data) -> dict[str, float]:
        """Below base/ or final/; the tuned model's of the harness have no prefix."""
        others = {key if prefix == "final" else f"{prefix}/{key}": value for key, value in self.harness.items()}
        return {**metrics(prefix, self.scored, data.unweighted), **retention.metrics(prefix, self.kept), **others}

    def file(self, data: Data, most_tokens: int) -> str:
        """Each question's scores, by which runs are compared."""
        return questions.text(self.scored, data.unweighted, most_tokens)


def examine(loaded: Loaded, data: Data, spec: EvaluationSpec) -> Examined:
    """Raises ConfigError where a task of the harness can't be had."""
    return Examined(
        answers=answers(loaded, data, spec.answers, spec.max_new_tokens) if spec.answers else [],
        kept=retention.retention(loaded, spec.max_new_tokens) if spec.retention else [],
        harness=harness(loaded, spec.harness),
    )
