"""What base and tuned model are asked at the end, as metrics and as a file."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from forge.evaluation import examine
from forge.evaluation.answers import Answer
from forge.evaluation.examine import Examined
from forge.evaluation.retention import Kept
from forge.models import Loaded
from forge.settings import EvaluationSpec
from forge.spec import Data


def answer(source: str, document: str, text: str) -> Answer:
    return Answer(source, "?", "yes", text, (1,), ended=True, document=document)


FOUND = Examined(
    [answer("b", "b/2", "yes"), answer("b", "b/1", "no"), answer("a", "a/1", "yes")],
    [Kept("list", "p", "x", True), Kept("case", "q", "y", False)],
    {"harness/toy/acc": 0.25},
)


@pytest.mark.parametrize(("which", "harness"), [("base", "base/harness/toy/acc"), ("final", "harness/toy/acc")])
def test_everything_asked_is_a_metric_below_the_model_s_name(toy_data: Data, which: str, harness: str) -> None:
    found = FOUND.metrics(which, replace(toy_data, unweighted=frozenset({"a"})))
    assert found[f"{which}/exact_match"] == 0.5 and found[f"{which}/exact_match/a"] == 1.0
    assert found[f"{which}/retention"] == 0.5 and found[f"{which}/retention/list"] == 1.0
    assert found[harness] == 0.25 and sum("harness" in key for key in found) == 1


def test_the_file_holds_the_questions_in_the_order_of_their_names(toy_data: Data) -> None:
    held = json.loads(FOUND.file(replace(toy_data, unweighted=frozenset({"a"})), 12))
    assert [row["document"] for row in held["sources"]["b"]] == ["b/1", "b/2"]
    assert (held["max_new_tokens"], held["unweighted"]) == (12, ["a"])


def test_nothing_is_asked_that_was_not_asked_for(
    make_tiny_model: Callable[..., Loaded], toy_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "answers", lambda *_: pytest.fail("no question was asked for"))
    monkeypatch.setattr(examine.retention, "retention", lambda *_: pytest.fail("the suite is off"))
    assert examine.examine(make_tiny_model(), toy_data, EvaluationSpec(max_tokens=9)) == Examined([], [], {})
