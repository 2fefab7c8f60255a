"""What a model writes, to be read: answers to a few held-out questions at each evaluation, and at the end plain text gone on with too.

Costs `evaluation.samples` answers a source each time, and nothing at evaluations where all is plain text.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from forge.evaluation.answers import Answer, answers, continuations
from forge.models import Loaded
from forge.settings import EvaluationSpec
from forge.spec import Data

_CONTINUED = 48  # tokens
Sample = tuple[int, Answer]  # of a step


def so_far(loaded: Loaded, data: Data, spec: EvaluationSpec) -> list[Answer]:
    return answers(loaded, data, spec.samples, spec.max_new_tokens) if spec.samples else []


def at_the_end(loaded: Loaded, data: Data, spec: EvaluationSpec, answered: Sequence[Answer]) -> list[Answer]:
    """`answered`: what was answered to be scored, of which the first ones are the samples."""
    if not spec.samples:
        return []
    seen: Counter[str] = Counter()
    first = []
    for each in answered:
        seen[each.source] += 1
        if seen[each.source] <= spec.samples:
            first.append(each)
    enough = spec.answers >= spec.samples
    return [*(first if enough else so_far(loaded, data, spec)), *continuations(loaded, data, spec.samples, _CONTINUED)]


def rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """What is to be read comes first: MLflow shows each column as wide as the next. `ended` is None for plain text, which has no end."""
    return [
        {
            "question": each.asked,
            "answer": each.text,
            "reference": each.reference,
            "step": step,
            "source": each.source,
            "ended": each.ended if each.question else None,
            "prompt": each.prompt,
        }
        for step, each in samples
    ]
