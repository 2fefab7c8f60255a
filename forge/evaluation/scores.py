"""The scores of answers as metrics, by source and of all together, and each question's own, by which runs are compared.

A source of weight 0 counts under its own name only. Where nothing was asked there is no number.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from forge.evaluation import corpus, text


@dataclass(frozen=True)
class Scored:
    """One answer to one question. `ended`: it came to its end within the limit."""

    document: str
    text: str
    reference: str
    ended: bool

    @property
    def exact_match(self) -> float:
        return text.exact_match(self.text, self.reference)

    @property
    def f1(self) -> float:
        return text.f1(self.text, self.reference)


def metrics(prefix: str, answers: Mapping[str, Sequence[Scored]], unweighted: Collection[str] = ()) -> dict[str, float]:
    """<prefix>/exact_match, f1, bleu, rouge1, rouge2, rougeL, ended, answers; and each as …/<source>."""
    together = [each for source, some in answers.items() if source not in unweighted for each in some]
    found = {f"{prefix}/{name}": value for name, value in _of(together).items()}
    for source, some in answers.items():
        found |= {f"{prefix}/{name}/{source}": value for name, value in _of(some).items()}
    return found


def _of(answers: Sequence[Scored]) -> dict[str, float]:
    if not answers:
        return {}
    texts, references = [each.text for each in answers], [each.reference for each in answers]
    return {
        "exact_match": sum(each.exact_match for each in answers) / len(answers),
        "f1": sum(each.f1 for each in answers) / len(answers),
        "bleu": corpus.bleu(texts, references).score,
        **corpus.rouge(texts, references),
        "ended": sum(each.ended for each in answers) / len(answers),
        "answers": float(len(answers)),
    }
