"""Samples: what is read at an evaluation and at the end, and how they stand in a table."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from forge.evaluation import answers, samples
from forge.models import Loaded
from forge.settings import EvaluationSpec
from forge.spec import Batch, Data

SPEC = EvaluationSpec(max_tokens=100, samples=2, max_new_tokens=3)


@pytest.fixture
def talk(toy_data: Data) -> Data:
    """Three questions, and the toy data's plain text."""
    tokens_BT = np.arange(60, 84, dtype=np.int32).reshape(3, 8)
    mask_BT = np.zeros((3, 8), dtype=bool)
    mask_BT[:, 5:] = True
    batch = Batch(tokens_BT, mask_BT, np.ones((3, 8), np.int32), ("a[0:8]", "b[0:8]", "c[0:8]"))
    return replace(toy_data, valid_full={"talk": (batch,), "short": toy_data.valid["short"]})


def test_at_an_evaluation_only_questions_are_answered(make_tiny_model: Callable[..., Loaded], talk: Data, toy_data: Data) -> None:
    loaded = make_tiny_model()
    found = samples.so_far(loaded, talk, SPEC)
    assert [each.source for each in found] == ["talk"] * 2 and all(len(each.tokens) <= 3 for each in found)
    assert samples.so_far(loaded, toy_data, SPEC) == []
    assert samples.so_far(loaded, talk, replace(SPEC, samples=0)) == []


def test_at_the_end_plain_text_is_gone_on_with_too_and_scored_answers_are_taken(
    make_tiny_model: Callable[..., Loaded], talk: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = make_tiny_model()
    found = samples.at_the_end(loaded, talk, SPEC, [])
    assert [(each.source, each.question) for each in found] == [("talk", True)] * 2 + [("short", False)] * 2
    assert samples.at_the_end(loaded, talk, replace(SPEC, samples=0), []) == []
    scored = answers.answers(loaded, talk, 3, 3)
    monkeypatch.setattr(samples, "answers", lambda *_: pytest.fail("what was answered to be scored is answered again"))
    assert samples.at_the_end(loaded, talk, replace(SPEC, answers=3), scored) == found


def test_a_table_has_a_row_a_sample() -> None:
    one = answers.Answer("talk", "<user>who?", "me", "you", (5,), ended=True, document="a", asked="who?")
    plain = answers.Answer("text", "<s>once", " upon", " more", (6,), ended=True, document="b", question=False, asked="once")
    rows = samples.rows([(0, one), (30, plain)])
    assert rows == [
        {"question": "who?", "prompt": "<user>who?", "reference": "me", "answer": "you", "step": 0, "source": "talk", "ended": True},
        {"question": "once", "prompt": "<s>once", "reference": " upon", "answer": " more", "step": 30, "source": "text", "ended": None},
    ]
    assert [next(iter(row)) for row in rows] == ["question"] * 2  # MLflow's table keeps the order
