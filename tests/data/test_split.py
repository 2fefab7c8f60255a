"""The split by row: what is on each side, what is dropped, and what moves nothing."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forge.data.cache import Cache
from forge.data.split import Sides, overlap, split
from forge.data.survey import Survey, survey
from forge.errors import DataError
from forge.settings import DataSpec, NearSpec, SourceSpec
from forge.spec import BadRow, Document

NEAR = NearSpec(threshold=0.8, permutations=128, shingle=3)
SIDES = ("train", "valid", "test")


def made(name: str, numbers: Sequence[int]) -> list[Document]:
    return [Document(f"{name}/{n}", f"{name} text {n}", name) for n in numbers]


def spec(fraction: float = 0.3, seed: int = 0, test: float = 0.0, near: NearSpec | None = None) -> DataSpec:
    return DataSpec(
        {name: SourceSpec({}) for name in (*"abcdefz", "small", "other")}, 16, fraction, seed, test_fraction=test, near_duplicates=near
    )


class Halves:
    """What split() made of some rows, with the names of the rows of each side."""

    def __init__(self, surveys: Mapping[str, Survey], sides: Mapping[str, Sides]):
        self.surveys, self.sides = surveys, sides

    def ids(self, which: str, name: str = "a") -> set[str]:
        numbers = getattr(self.sides[name], which)
        assert np.all(np.diff(numbers) > 0)
        return {self.surveys[name].ids[int(n)].as_py() for n in numbers}

    def placed(self, name: str = "a") -> dict[str, str]:
        return {id: which for which in SIDES for id in self.ids(which, name)}


@pytest.fixture
def cut(tmp_path: Path) -> Callable[..., Halves]:
    """cut(rows of source "a" or {source: rows}, spec's parts)"""
    cache = Cache(tmp_path, 1)

    def make(rows, *parts, strict: bool = True, **named) -> Halves:
        wanted = spec(*parts, **named)
        sources = rows if isinstance(rows, dict) else {"a": rows}
        surveys = {name: survey(name, lambda rows=rows: rows, {}, wanted.near_duplicates, strict, cache) for name, rows in sources.items()}
        return Halves(surveys, split(surveys, wanted, cache))

    return make


# ---- sides ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [0.0, 0.2])
def test_every_row_is_on_exactly_one_side(cut: Callable[..., Halves], test: float) -> None:
    rows = made("a", range(500))
    result = cut(rows, 0.2, test=test)
    sides = [result.ids(which) for which in SIDES]
    assert set.union(*sides) == {row.id for row in rows} and sum(map(len, sides)) == 500
    assert bool(sides[2]) is bool(test)


@pytest.mark.parametrize(("valid", "test"), [(0.05, 0.0), (0.3, 0.1), (0.9, 0.05), (0.1, 0.5)])
def test_the_shares_held_out_are_near_those_asked_for(cut: Callable[..., Halves], valid: float, test: float) -> None:
    """2,000 draws: the standard deviation is at most sqrt(0.25 / 2000) = 0.011, so 0.04 is more than three of them."""
    result = cut(made("a", range(2000)), valid, test=test)
    assert abs(len(result.ids("valid")) / 2000 - valid) < 0.04
    assert abs(len(result.ids("test")) / 2000 - test) < 0.04


def test_another_seed_holds_out_other_rows(cut: Callable[..., Halves]) -> None:
    """Independent draws of 0.3: about 0.09 · 500 = 45 in common, not 150."""
    first, second = (cut(made("a", range(500)), 0.3, seed).ids("valid") for seed in (0, 1))
    assert 10 < len(first & second) < 80


def test_the_same_seed_holds_out_the_same_rows(cut: Callable[..., Halves]) -> None:
    assert cut(made("a", range(100)), 0.3, 5, 0.1).placed() == cut(made("a", range(100)), 0.3, 5, 0.1).placed()


def test_new_rows_move_no_other(cut: Callable[..., Halves]) -> None:
    before = cut({"a": made("a", range(100)), "b": made("b", range(100))}, 0.3, test=0.1)
    after = cut({"a": [*made("new", range(50)), *made("a", range(100))], "b": made("b", range(100))}, 0.3, test=0.1)
    assert {id: side for id, side in after.placed().items() if id.startswith("a/")} == before.placed()
    assert after.placed("b") == before.placed("b")


def test_neither_order_nor_ids_nor_sources_change_a_side(cut: Callable[..., Halves]) -> None:
    rows = made("a", range(100))
    renamed = cut([replace(row, id=row.id + "!") for row in rows], 0.3).placed()
    assert cut(rows, 0.3).placed() == cut(rows[::-1], 0.3).placed() == {id[:-1]: side for id, side in renamed.items()}
    assert cut({"other": made("b", range(9)), "a": rows}, 0.3).placed() == cut(rows, 0.3).placed()


def test_a_test_side_takes_rows_from_training_only(cut: Callable[..., Halves]) -> None:
    """The validation side stays what it is, however much is kept for a test."""
    rows = made("a", range(300))
    none, less, more = (cut(rows, 0.2, test=fraction) for fraction in (0.0, 0.2, 0.4))
    assert none.ids("valid") == less.ids("valid") == more.ids("valid") and less.ids("test") < more.ids("test")


# ---- duplicates -------------------------------------------------------------------------------------------------------------


def test_no_text_is_on_two_sides_in_one_source_or_across_two(cut: Callable[..., Halves]) -> None:
    """`b` repeats half of `a`'s texts under other ids, and every text of its own twice."""
    repeats = [Document(f"b/copy{n}", f"a text {n}", "b") for n in range(100)]
    own = made("b", range(200)) + [Document(f"b/again{n}", f"b text {n}", "b") for n in range(200)]
    result = cut({"a": made("a", range(200)), "b": repeats + own}, 0.3, test=0.1)
    keys = {which: [key for name in "ab" for key in result.surveys[name].keys[getattr(result.sides[name], which)]] for which in SIDES}
    assert sum(len(each) for each in keys.values()) == len(set().union(*keys.values())) == 400
    assert result.sides["a"].dropped == {} and result.sides["b"].dropped == {"duplicate": 100}
    assert result.surveys["b"].dropped == {"duplicate": 200}
    assert set(result.placed("b")) == {row.id for row in made("b", range(200))}
    assert overlap(result.surveys, result.sides) == 0


def test_the_counts_add_up(cut: Callable[..., Halves]) -> None:
    blank = [Document(f"e/{n}", text, "a") for n, text in enumerate(["", " ", "\n\t"])]
    rows = [*made("a", range(100)), *made("a", range(30)), *blank, BadRow("a", "wrong", "mend it")]
    result = cut({"z": made("a", range(90, 120)), "a": rows}, 0.3, test=0.1, strict=False)
    found, sides = result.surveys["a"], result.sides["a"]
    assert found.rows_in == 134 and (found.bad, found.dropped) == ({"wrong": 1}, {"duplicate": 30, "empty": 3})
    assert sides.dropped == {"duplicate": 10} and sum(len(getattr(sides, which)) for which in SIDES) == 90


def test_an_overlap_is_counted(cut: Callable[..., Halves]) -> None:
    """Planted: 3 rows of `a` in training are validated on too, 1 of them is in the test as well, and `b` trains on 2 that `a` tests on."""
    result = cut({"a": made("a", range(50)), "b": made("b", range(50))}, 0.3, test=0.2)
    a, b = result.sides["a"], result.sides["b"]
    assert overlap(result.surveys, result.sides) == 0
    planted = replace(a, valid=np.append(a.valid, a.train[:3]), test=np.append(a.test, a.train[0]))
    assert overlap(result.surveys, {"a": planted, "b": b}) == 4
    copies = replace(result.surveys["b"], keys=np.concatenate([result.surveys["b"].keys, result.surveys["a"].keys[a.test[:2]]]))
    across = replace(b, train=np.append(b.train, [50, 51]))
    assert overlap({**result.surveys, "b": copies}, {"a": a, "b": across}) == 2


# ---- near duplicates --------------------------------------------------------------------------------------------------------


def written(number: int) -> list[str]:
    """100 words that other numbers share none of, nearly."""
    rng = random.Random(number)
    return [f"w{rng.randrange(10**6)}" for _ in range(100)]


def edited(number: int) -> str:
    """One word in the middle is another: 3 of 98 shingles go and 3 come, so 95 of 101 are shared."""
    words = written(number)
    words[50] = "changed"
    return " ".join(words)


def test_near_duplicates_across_sources_are_dropped_but_for_the_first(cut: Callable[..., Halves]) -> None:
    """`b` holds the texts 20 to 59, the first 10 of them word for word, the next 10 with a word changed: both are in `a`."""
    a = [Document(f"a/{n}", " ".join(written(n)), "a") for n in range(40)]
    a.append(Document("a/near", edited(0), "a"))
    b = [Document(f"b/{n}", edited(n) if 30 <= n < 40 else " ".join(written(n)), "b") for n in range(20, 60)]
    plain, near = (cut({"a": a, "b": b}, 0.3, near=wanted) for wanted in (None, NEAR))
    assert plain.sides["a"].dropped == {} and plain.sides["b"].dropped == {"duplicate": 10}
    assert near.sides["a"].dropped == {"near_duplicate": 1} and near.sides["b"].dropped == {"duplicate": 10, "near_duplicate": 10}
    assert set(near.placed("a")) == {f"a/{n}" for n in range(40)} and set(near.placed("b")) == {f"b/{n}" for n in range(40, 60)}
    kept = near.placed("a") | near.placed("b")
    assert kept == {id: side for id, side in (plain.placed("a") | plain.placed("b")).items() if id in kept}


def test_near_duplicates_are_found_anew_when_the_threshold_or_what_is_compared_changes(cut: Callable[..., Halves]) -> None:
    """The second of two sources holds a text of the first with a word changed, then word for word under a key of its own."""
    rows = {"a": [Document(f"a/{n}", " ".join(written(n)), "a") for n in range(3)]}
    b = [Document(f"b/{n}", " ".join(written(n)), "b") for n in range(3, 6)]
    one = {**rows, "b": [*b, Document("b/near", edited(0), "b")]}
    for _ in range(2):  # the second from what is known
        assert cut(one, near=NEAR).sides["b"].dropped == {"near_duplicate": 1}
    assert cut(one, near=replace(NEAR, threshold=0.99)).sides["b"].dropped == {}
    copies = [
        {**rows, "b": [*b, Document("b/copy", " ".join(written(0)), "b", key=key)]} for key in ("its own", " ".join(written(0)), "its own")
    ]
    assert [cut(each, near=NEAR).sides["b"].dropped for each in copies] == [{"near_duplicate": 1}, {"duplicate": 1}, {"near_duplicate": 1}]


def test_a_source_without_rows_stands_beside_others_with_near_duplicates(cut: Callable[..., Halves]) -> None:
    with pytest.raises(DataError, match="source 'a': 0 rows can't be split"):
        cut({"b": made("b", range(9)), "a": []}, near=NEAR)


# ---- small sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("valid", "test", "rows", "sizes"),
    [
        (1e-9, 0.0, 3, (2, 1, 0)),
        (1 - 1e-9, 0.0, 3, (1, 2, 0)),
        (1e-9, 1e-9, 4, (2, 1, 1)),
        (1e-9, 1 - 1e-8, 4, (1, 1, 2)),
        (1 - 1e-8, 1e-9, 4, (1, 2, 1)),
        (0.5, 0.4, 3, (1, 1, 1)),
        (0.5, 0.0, 2, (1, 1, 0)),
    ],
)
def test_a_small_source_has_every_side_whatever_chance_says(
    cut: Callable[..., Halves], valid: float, test: float, rows: int, sizes: tuple[int, int, int]
) -> None:
    for seed in range(5):
        result = cut(made("small", range(rows)), valid, seed, test)
        assert tuple(len(result.ids(which)) for which in SIDES) == sizes


def test_too_few_rows_for_the_sides_are_an_error_that_says_where_the_others_went(cut: Callable[..., Halves]) -> None:
    rows = [
        *(Document(n, "text", "a") for n in "ab"),
        Document("c", " ", "c"),
        BadRow("d", "wrong", "mend it"),
        Document("e", "other", "a"),
    ]
    left = "5 read; left out: 1 wrong, 2 duplicate, 1 empty"
    with pytest.raises(DataError, match=rf"source 'small': 1 rows can't be split into 2 sides \({left}\); add rows"):
        cut({"b": [*made("b", range(9)), Document("twin", "other", "b")], "small": rows}, 0.5, strict=False)


def test_a_test_side_needs_a_row_more(cut: Callable[..., Halves]) -> None:
    with pytest.raises(DataError, match=r"source 'a': 2 rows can't be split into 3 sides \(2 read; left out: none\)"):
        cut(made("a", range(2)), 0.3, test=0.1)
