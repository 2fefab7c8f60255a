"""Many answers against their references: BLEU by sacrebleu and ROUGE by rouge-score, one reference each.

Costs about 1 ms an answer, and three seconds once to import rouge-score, which brings nltk.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUGE = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Bleu:
    """`score`: 0 to 100, of all answers together. `signature`: which BLEU it is, to be quoted with it (Post 2018, arXiv 1804.08771)."""

    score: float
    signature: str


def bleu(texts: Sequence[str], references: Sequence[str]) -> Bleu:
    """Of one text or more."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    return Bleu(metric.corpus_score(list(texts), [list(references)]).score, str(metric.get_signature()))


def rouge(texts: Sequence[str], references: Sequence[str]) -> Mapping[str, float]:
    """rouge1, rouge2, rougeL (Lin 2004): the means of their F-measures, words unstemmed. Of one text or more."""
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(list(ROUGE), tokenizer=_Words())
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: sum(each[name].fmeasure for each in scores) / len(scores) for name in ROUGE}


class _Words:
    """rouge-score's own tokenizer for ASCII; that one drops all other letters."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())
