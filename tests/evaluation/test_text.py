"""Exact match and F1, by hand and as SQuAD's script defines them."""

import pytest

from forge.evaluation.text import exact_match, f1, normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Cat,\nsat!", "cat sat"),
        ("`json.loads`", "jsonloads"),
        ("An apple a day, theme", "apple day theme"),  # articles are whole words
        ("Über-Straße", "überstraße"),
        ("…", "…"),  # punctuation is ASCII's, as in the script
        ("the", ""),
    ],
)
def test_case_punctuation_articles_and_white_space_are_no_difference(text: str, expected: str) -> None:
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("cat sat", "the cat sat down", 0.8),  # 2 of 2 words, 2 of 3: 2 · 1 · 2/3 / (5/3)
        ("down sat cat", "The cat sat down.", 1.0),  # order is nothing
        ("cat cat cat", "cat dog", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # shared once
        ("cat cat", "cat cat dog", 0.8),  # and twice
        ("bird", "cat", 0.0),
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("", "the", 1.0),  # both empty once normalised
    ],
)
def test_f1_is_of_words_counted_as_often_as_they_stand(text: str, reference: str, score: float) -> None:
    assert f1(text, reference) == pytest.approx(score)
    assert f1(reference, text) == pytest.approx(score)


def test_exact_match_is_of_all_words_in_order() -> None:
    assert exact_match("The Cat sat.", "cat sat") == 1.0
    assert exact_match("sat cat", "cat sat") == 0.0
    assert exact_match("", "") == 1.0
