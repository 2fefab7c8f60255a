"""BLEU and ROUGE by hand, and against the libraries as their own commands call them."""

import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from forge.evaluation.corpus import bleu, rouge

TEXTS = ["the cat sat on the mat", "it is raining now", "no word shared"]
REFERENCES = ["the cat sat on a mat", "it is raining", "something else entirely"]


def test_bleu_by_hand() -> None:
    """One answer of 6 words against 6: precisions 5/6, 3/5, 2/4, 1/3 of 1- to 4-grams, no brevity penalty."""
    found = bleu(TEXTS[:1], REFERENCES[:1])
    assert found.score == pytest.approx(100 * math.exp(sum(map(math.log, (5 / 6, 3 / 5, 2 / 4, 1 / 3))) / 4))


def test_bleu_is_that_of_all_answers_together_with_its_signature() -> None:
    found = bleu(TEXTS, REFERENCES)
    assert found.score == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score)
    alone = sum(bleu([text], [reference]).score for text, reference in zip(TEXTS, REFERENCES, strict=True)) / 3
    assert found.score != pytest.approx(alone, abs=1)
    assert found.signature == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


def test_rouge_by_hand() -> None:
    """5 of 6 words shared on both sides, 3 of 5 pairs, and a common subsequence of 5."""
    assert rouge(TEXTS[:1], REFERENCES[:1]) == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})


def test_rouge_is_the_mean_of_the_library_s() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [scorer.score(reference, text) for text, reference in zip(TEXTS, REFERENCES, strict=True)]
    assert rouge(TEXTS, REFERENCES) == pytest.approx({name: sum(one[name].fmeasure for one in each) / 3 for name in each[0]})


def test_letters_that_are_not_ascii_are_words_too() -> None:
    assert rouge(["größe über alles"], ["größe über nichts"])["rouge1"] == pytest.approx(2 / 3)
    assert rouge(["кот спит"], ["кот спит"])["rougeL"] == 1.0
