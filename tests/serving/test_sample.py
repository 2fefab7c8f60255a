"""Drawing tokens, against mlx_lm's own filters and by hand."""

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

from forge.serving.contract import Sampling
from forge.serving.sample import Row, draw

DRAWS = 2000
LOGITS = [0.3, 1.0, -0.7, 2.0, 0.6, -1.5, 1.6, -3.0]


def drawn(rows: list[Row], logits_BV: Any, steps: int, first: int = 0) -> np.ndarray:
    """(steps, B). The logits stay the same; each token is the next step's input."""
    inputs = mx.array([first] * len(rows), dtype=mx.uint32)
    steps_taken = []
    for _ in range(steps):
        inputs = draw(rows, inputs, mx.array(logits_BV)).tokens_B
        steps_taken.append(inputs)
    return np.array(mx.stack(steps_taken))


def row(**sampling: Any) -> Row:
    return Row([0, 0], Sampling(**{"seed": 1} | sampling), 10**6)


def test_shares_are_those_of_mlx_lms_filters() -> None:
    """Rows of one batch, each with its own settings. A share of 2000 draws is off by 0.011 in the mean where it is 1/2, by 0.05 never."""
    wanted: list[dict[str, Any]] = [
        {},
        {"temperature": 0},
        {"temperature": 0.5},
        {"top_p": 0.7},
        {"top_k": 3},
        {"top_k": 10**6},
        {"min_p": 0.2},
        {"temperature": 2.0, "top_p": 0.9, "top_k": 4, "min_p": 0.05},
    ]
    tokens = drawn([row(**each, seed=n) for n, each in enumerate(wanted)], [LOGITS] * len(wanted), DRAWS)
    for settings, found in zip(wanted, tokens.T, strict=True):
        logprobs = mx.array([LOGITS]) - mx.logsumexp(mx.array(LOGITS))
        if "top_p" in settings:
            logprobs = apply_top_p(logprobs, settings["top_p"])
        if "min_p" in settings:
            logprobs = apply_min_p(logprobs, settings["min_p"])
        if settings.get("top_k", len(LOGITS)) < len(LOGITS):
            logprobs = apply_top_k(logprobs, settings["top_k"])
        expected = np.array(mx.softmax(logprobs / (settings.get("temperature", 1.0) or 1e-3)))[0]
        shares = np.bincount(found, minlength=len(LOGITS)) / DRAWS
        assert shares == pytest.approx(expected, abs=0.05), settings
        assert set(np.flatnonzero(shares)) <= set(np.flatnonzero(expected > 0)), settings


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    alone = drawn([row(seed=5)], [LOGITS], 30)[:, 0]
    mx.random.seed(123)
    beside = drawn([row(seed=1, top_p=0.5), row(seed=5), row(temperature=0)], [LOGITS] * 3, 30)
    assert list(beside[:, 1]) == list(alone)
    assert len(set(alone[:10])) > 1
    assert list(drawn([row(seed=6)], [LOGITS], 30)[:, 0]) != list(alone)


def test_no_seed_is_another_one_each_time() -> None:
    assert len({tuple(drawn([row(seed=None)], [LOGITS], 30)[:, 0]) for _ in range(4)}) == 4


def test_repetition_penalty_by_hand() -> None:
    """Logits 4, 3, 2, -1; the prompt is token 0. Halved, token 0 has 2, so token 1 (3) is drawn; both halved (2, 1.5), token 0 or 2 (2, 2),
    of which the first wins: 0 again, then 0."""
    row_ = Row([0, 0], Sampling(temperature=0, repetition_penalty=2.0), 9)
    assert list(drawn([row_], [[4.0, 3.0, 2.0, -1.0]], 3)[:, 0]) == [1, 0, 0]


def test_repetition_penalty_makes_negative_logits_less() -> None:
    """-1 twice is -2, below -1.5."""
    assert drawn([Row([0, 0], Sampling(temperature=0, repetition_penalty=2.0), 9)], [[-1.0, -1.5]], 1)[0, 0] == 1


def test_repetition_penalty_looks_20_tokens_back() -> None:
    """The prompt is token 0 and 19 or 20 of token 1."""
    for ones, expected in ((19, 2), (20, 0)):
        prompt = [0] + [1] * ones
        one = Row(prompt, Sampling(temperature=0, repetition_penalty=1e6), 9)
        assert drawn([one], [[5.0, 4.0, 3.0]], 1, first=1)[0, 0] == expected


def test_presence_and_frequency_penalty_by_hand() -> None:
    """Logits 3, 2.5, 0, of which the prompt's token 0 costs nothing. Presence 1: 0 (3), 1 (2 | 2.5), 0 (2 | 1.5), and so on, never 2.

    Frequency 1: 0 (3), 1 (2 | 2.5), 0 (2 | 1.5), 1 (1 | 1.5), 0 (1 | 0.5), 1 (0 | 0.5), then 0, -0.5 and 0: token 0, and at -1, -0.5, 0
    token 2. Beside a row without a penalty.
    """
    plain = Row([0, 0], Sampling(temperature=0), 9)
    presence = Row([0, 0], Sampling(temperature=0, presence_penalty=1.0), 9)
    frequency = Row([0, 0], Sampling(temperature=0, frequency_penalty=1.0), 9)
    tokens = drawn([presence, plain, frequency], [[3.0, 2.5, 0.0]] * 3, 8)
    assert list(tokens[:, 0]) == [0, 1, 0, 0, 0, 0, 0, 0]
    assert list(tokens[:, 1]) == [0] * 8
    assert list(tokens[:, 2]) == [0, 1, 0, 1, 0, 1, 0, 2]


def test_half_precision_draws_as_fp32() -> None:
    logits = mx.array([LOGITS], dtype=mx.bfloat16)
    assert np.array_equal(drawn([row()], logits, 20), drawn([row()], logits.astype(mx.float32), 20))


def test_a_vocabulary_of_equals_is_drawn_evenly() -> None:
    counts = Counter(drawn([row()], [[0.0] * 4], DRAWS)[:, 0].tolist())
    assert [counts[n] / DRAWS for n in range(4)] == pytest.approx([0.25] * 4, abs=0.05)


def test_penalties_hold_on_to_no_token_that_is_out() -> None:
    """What a step leaves behind is as large after 600 tokens as after 100."""
    for penalty in ({"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"repetition_penalty": 1.5}):
        row, logits_1V, held = Row([1, 2], Sampling(**penalty), 600), mx.zeros((1, 9)), []
        for step in range(600):
            token = mx.array([step % 9], dtype=mx.uint32)
            mx.eval(row.penalise(token, logits_1V))
            held.append(mx.get_active_memory())
        assert held[-1] == held[100], penalty
