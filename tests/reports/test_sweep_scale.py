"""Where swept values stand on an axis, each place worked out by hand."""

import pytest

from forge.reports.sweep_scale import UNSET, Scale, number


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3e-4", (3e-4, "")),
        ("-.5", (-0.5, "")),
        ("1_000", (1000.0, "")),
        ("10 %", (10.0, "%")),
        ("200steps", (200.0, "steps")),
        ("true", None),
        ("inf", None),
        ("1e999", None),
        ("[1,2]", None),
        ("v1.5", None),
        ("", None),
        (None, None),
    ],
)
def test_numbers_as_typed(text, found):
    assert number(text) == found


def places(values, key="k"):
    scale = Scale.of(values, key)
    return scale.log, [pytest.approx(scale.place(value)) for value in values]


@pytest.mark.parametrize(
    ("values", "log", "at"),
    [
        (["1e-4", "1e-3", "1e-2"], True, [0, 0.5, 1]),
        (["0.0001", "1e-3", "1e-4"], True, [0, 1, 0]),  # two ways to type one number
        (["1", "2", "4", "8", "16"], True, [0, 0.25, 0.5, 0.75, 1]),
        (["1", "5", "10"], False, [0, 4 / 9, 1]),  # a decade, but evenly
        (["1", "100"], True, [0, 1]),
        (["0", "0.01", "0.1"], False, [0, 0.1, 1]),  # no logarithm of 0
        (["-1", "1"], False, [0, 1]),
        (["adamw", "lion", "muon"], False, [0, 0.5, 1]),
        (["adamw"], False, [0.5]),
        (["null", "1", "3"], False, [0, 0.1, 1]),  # a tenth of the axis for the word
        ([None, "1e-1", "1e1"], True, [0, 0.1, 1]),
        (["1steps", "3epochs"], False, [0, 1]),  # units differ, so words
        (["5", "null"], False, [0, 1]),  # one number is no axis
        (["a", "b", "c", "d", "1", "2"], False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_places(values, log, at):
    assert places(values) == (log, at)


def test_ticks_are_the_values_as_typed_while_they_are_few():
    scale = Scale.of(["1e-3", "null", "0.0001"], "lr")
    assert [text for _, text in scale.ticks(8)] == ["null", "0.0001", "1e-3"]


def test_ticks_of_many_numbers_are_round():
    scale = Scale.of([str(i / 100) for i in range(1, 100)], "x")
    assert [text for _, text in scale.ticks(8)] == ["0.2", "0.4", "0.6", "0.8"]
    scale = Scale.of([f"1.{i}e-{e}" for i in range(10) for e in (2, 4)], "x")
    assert {"1e-3", "1e-4", "0.01"} <= {text for _, text in scale.ticks(8)}


def test_ticks_never_crowd_and_the_last_stays():
    """At least an eighth apart: of 0, 0.05, 0.9, 0.95 and 1, the first and the last."""
    scale = Scale.of(["0", "0.05", "0.9", "0.95", "1"], "x")
    assert [text for _, text in scale.ticks(8)] == ["0", "1"]
    words = Scale.of([f"word {i}" for i in range(100)], "x")
    assert len(words.ticks(8)) <= 9


def test_groups_are_single_values_or_ranges():
    values = ["1", "2", None, "1"]
    assert Scale.of(values, "x").groups(values, 3) == ([UNSET, "1", "2"], [1, 2, 0, 1])
    values = ["0", "1", "2", "3", "4"]
    assert Scale.of(values, "x").groups(values, 2) == (["0 … 2", "2 … 4"], [0, 0, 1, 1, 1])
