"""Answers' scores as metrics."""

import pytest

from forge.evaluation.corpus import bleu
from forge.evaluation.scores import Scored, metrics


def scored(text: str, reference: str, ended: bool = True) -> Scored:
    return Scored("d", text, reference, ended)


ANSWERS = {
    "a": [scored("cat sat", "the cat sat down", ended=False), scored("Yes.", "yes")],
    "b": [scored("no", "yes")],
    "apart": [scored("yes", "yes")],
}


def test_each_source_has_its_own_and_those_with_a_weight_count_together() -> None:
    """F1 0.8, 1 and 0: 1.8/3 together, 0.9 of a; exact match 1 of 3; `apart` counts alone."""
    found = metrics("final", ANSWERS, {"apart"})
    assert found["final/f1"] == pytest.approx(0.6) and found["final/f1/a"] == pytest.approx(0.9)
    assert found["final/exact_match"] == pytest.approx(1 / 3) and found["final/exact_match/apart"] == 1.0
    assert found["final/ended"] == pytest.approx(2 / 3) and found["final/answers"] == 3 and found["final/answers/a"] == 2
    assert found["final/bleu"] == pytest.approx(bleu(["cat sat", "Yes.", "no"], ["the cat sat down", "yes", "yes"]).score)
    names = {"exact_match", "f1", "bleu", "rouge1", "rouge2", "rougeL", "ended", "answers"}
    assert found.keys() == {f"final/{name}{of}" for name in names for of in ("", "/a", "/b", "/apart")}


def test_there_is_no_number_where_nothing_was_asked() -> None:
    assert metrics("base", {}) == {} and metrics("base", {"a": []}) == {}
    assert {key.count("/") for key in metrics("base", {"a": ANSWERS["b"]}, {"a"})} == {2}  # none of all together
