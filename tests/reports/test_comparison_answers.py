"""Runs held against each other by their answers: what is paired, the verdict's words and numbers, and the table."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from forge.errors import TrackingError
from forge.evaluation.scores import Scored
from forge.reports import comparison_answers, questions
from forge.reports.comparison import Compared


def asked(rights: Sequence[bool], source: str = "a", apart: Sequence[bool] = (), most: int = 32) -> questions.Questions:
    """Answers of one word, right or not, and those of a source without weight."""
    sources = {source: rights, "apart": apart} if apart else {source: rights}
    rows = {
        name: [Scored(f"{name}/{n:03}", "yes" if right else "no", "yes", ended=True) for n, right in enumerate(each)]
        for name, each in sources.items()
    }
    return questions.read(questions.text(rows, {"apart"}, most))


def make(name: str, held: questions.Questions | None, seed: int = 0) -> Compared:
    return Compared(name, name.rjust(32, "0"), "FINISHED", [], {}, {"seed": str(seed)}, {}, 1.0, None, held)


def answered(*runs: Compared, confidence: float = 0.95) -> list[comparison_answers.Answered]:
    return comparison_answers.answered({run.name: [run] for run in runs}, confidence)


def some(right: int, of: int = 40) -> list[bool]:
    return [n < right for n in range(of)]


# ---- the file ----------------------------------------------------------------------------------------------------------


def test_questions_come_back_as_they_were_written() -> None:
    rows = {"a": [Scored("a/1", "cat sat", "the cat sat down", False), Scored("a/2", "é", "é", True)], "b": []}
    text = questions.text(rows, {"b"}, 64)
    assert json.loads(text)["sources"]["a"][0] == {
        "document": "a/1",
        "exact_match": 0.0,
        "f1": 0.8,
        "ended": False,
        "text": "cat sat",
        "reference": "the cat sat down",
    }
    held = questions.read(text)
    assert (held.max_new_tokens, held.unweighted) == (64, {"b"})
    assert held.asked == {"a": [("a/1", "the cat sat down"), ("a/2", "é")]}
    assert held.scores["f1"]["a"].tolist() == [0.8, 1.0] and held.scores["exact_match"]["a"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"max_new_tokens": 1, "unweighted": [], "sources": {"a": [{"document": "x"}]}}'])
def test_a_file_that_is_not_ours_is_told_so(text: str) -> None:
    with pytest.raises(TrackingError, match=r"evaluation/answers\.json of a run isn't what forge writes"):
        questions.read(text)


# ---- verdicts ----------------------------------------------------------------------------------------------------------


def test_more_right_answers_are_better_and_the_other_way_round() -> None:
    """10 and 30 right of 40; the 10 are among the 30, so 20 questions differ, each by 1: 0.5 in all."""
    few, many = make("few", asked(some(10))), make("many", asked(some(30)))
    (found,) = answered(few, many)
    assert found.verdict.word == "better"
    assert found.verdict.sentence.startswith("many answers better than few: F1 0.750 against 0.250, 95 % interval of the difference +0.3")
    assert "over 40 questions, p < 0.001" in found.verdict.sentence
    overall = found.differences["f1", ""]
    assert overall.value == pytest.approx(0.5) and overall.low < 0.5 < overall.high
    assert found.differences["exact_match", "a"].value == pytest.approx(0.5)
    (found,) = answered(many, few)
    assert found.verdict.word == "worse" and found.differences["f1", ""].value == pytest.approx(-0.5)
    assert found.verdict.sentence.startswith("few answers worse than many: F1 0.250 against 0.750")


def test_the_interval_is_about_that_of_a_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.random(200) < 0.4, draw.random(200) < 0.55
    (found,) = answered(make("A", asked(first.tolist())), make("B", asked(second.tolist())))
    low, high = stats.ttest_rel(second.astype(float), first.astype(float)).confidence_interval(0.95)
    assert found.differences["f1", ""].low == pytest.approx(low, abs=0.01)
    assert found.differences["f1", ""].high == pytest.approx(high, abs=0.01)


def test_a_source_without_weight_decides_nothing() -> None:
    runs = [make(name, asked(some(10), apart=some(right))) for name, right in (("A", 0), ("B", 40))]
    (found,) = answered(*runs)
    assert found.verdict.sentence == "can't tell the answers of B from those of A: their F1 is the same on each of 40 questions"
    assert found.differences["f1", "apart"].value == pytest.approx(1.0)


def test_noise_and_few_questions_are_no_verdict() -> None:
    (found,) = answered(make("A", asked([True, False] * 10)), make("B", asked([False, True] * 9 + [True, True])))
    assert found.verdict.word == "can't tell" and "F1 0.550 against 0.500" in found.verdict.sentence
    (found,) = answered(make("A", asked(some(0, 7))), make("B", asked(some(7, 7))))
    assert found.verdict.sentence.endswith("7 questions are too few, 8 are needed; raise evaluation.answers")
    assert found.differences["f1", ""].value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (None, "B has no evaluation/answers.json: it was asked nothing"),
        (asked(some(20), source="b"), "they were not asked the same"),
        (asked(some(20, 39)), "they were not asked the same"),
        (asked(some(20), most=64), "they were not asked the same"),
    ],
)
def test_what_can_not_be_paired_says_why(other: Any, why: str) -> None:
    (found,) = answered(make("A", asked(some(20))), make("B", other))
    assert found.verdict.word == "can't tell" and why in found.verdict.sentence and not found.differences


def test_seeds_are_taken_together_and_several_comparisons_are_corrected_for() -> None:
    groups = {
        "base": [make("b0", asked(some(10)), 0), make("b1", asked(some(12)), 1)],
        "tuned": [make("t1", asked(some(31)), 1), make("t0", asked(some(29)), 0)],
        "same": [make("s0", asked(some(11)), 0), make("s1", asked(some(11)), 1)],
    }
    tuned, same = comparison_answers.answered(groups, 0.95)
    assert tuned.differences["f1", ""].value == pytest.approx((30 - 11) / 40)
    assert tuned.verdict.word == "better" and tuned.verdict.p == pytest.approx(2 * tuned.differences["f1", ""].p)
    assert same.verdict.word == "can't tell"


def test_the_table_has_a_row_a_score_and_source() -> None:
    groups = {"A": [make("A", asked(some(10), apart=some(0)))], "B": [make("B", asked(some(30), apart=some(40)))], "C": [make("C", None)]}
    found = comparison_answers.table(groups, comparison_answers.answered(groups, 0.9), 0.9)
    assert found and found.header == ["score", "source", "A", "B", "C", "B less A"] and "90 %" in found.note
    assert [row[:5] for row in found.rows[:3]] == [
        ["F1", "all", "0.250", "0.750", "–"],
        ["F1", "a", "0.250", "0.750", "–"],
        ["F1", "apart", "0.000", "1.000", "–"],
    ]
    assert [row[0] for row in found.rows[3:]] == ["exact match"] * 3 and found.rows[0][5].startswith("+0.500 (+0.3")


def test_nothing_is_said_where_nothing_was_asked() -> None:
    groups = {"A": [make("A", None)], "B": [make("B", None)]}
    assert comparison_answers.answered(groups, 0.95) == [] and comparison_answers.table(groups, [], 0.95) is None
