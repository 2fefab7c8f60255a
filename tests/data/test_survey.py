"""The first pass: what is counted, what the digest sees, and when a source is read again."""

import functools
import hashlib
import importlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forge.data import near
from forge.data.cache import Cache
from forge.data.sources import Fixed
from forge.data.sources.files import folder
from forge.data.survey import Survey, survey
from forge.errors import DataError
from forge.settings import NearSpec
from forge.spec import BadRow, Conversation, Document, Preference, Row

NEAR = NearSpec(threshold=0.8, permutations=32, shingle=3)
ASKED = ({"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Ici."})


def documents(*texts: str) -> list[Row]:
    return [Document(f"d:{n}", text, f"d:{n}") for n, text in enumerate(texts, 1)]


def counted(rows: Iterable[Row], fingerprint: str | None = None) -> tuple[Callable[[], Iterable[Row]], list[int]]:
    """A source and a list that grows by one with each reading."""
    readings: list[int] = []

    def read() -> Iterable[Row]:
        readings.append(1)
        yield from rows

    return lambda: Fixed(read, fingerprint) if fingerprint else read(), readings


def no_cats(text: str) -> str | None:
    return "cat" if "cat" in text else None


def no_longer_than(text: str, *, limit: int) -> str | None:
    return "long" if len(text) > limit else None


FILTERS = {"cats": no_cats, "length": functools.partial(no_longer_than, limit=9)}


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Survey]:
    """look(rows or source, filters={}, near=None, strict=False): each test has a cache of its own."""
    cache = Cache(tmp_path / "cache", 1)

    def ask(rows, filters=None, near=None, strict: bool = False) -> Survey:
        return survey("s", rows if callable(rows) else lambda: rows, filters or {}, near, strict, cache)

    return ask


MIXED: list[Row] = [
    Document("a", "héllo", "f:1"),
    BadRow("f:2", "broken_json", "column 3; mend the line"),
    Document("b", " \n", "f:3"),
    Document("c", "", "f:4"),
    Document("d", "héllo", "f:5"),  # repeats a
    Document("e", "the cat", "f:6"),
    Document("g", "the cat", "f:7"),  # repeats what is not used
    Document("h", "a cat, and long", "f:8"),  # both filters
    Document("i", "much too long", "f:9"),
    BadRow("f:10", "broken_json", "column 8; mend the line"),
    BadRow("f:11", "no_text", "there is none"),
    Conversation("j", ASKED, "f:12"),
    Conversation("k", ASKED, "f:13"),  # repeats j
    Conversation("l", ASKED, "f:14", ({"name": "look"},)),
    Preference("m", ASKED[:1], ASKED[1:], ({"role": "assistant", "content": "Là."},), "f:15"),
]


# ---- counts -----------------------------------------------------------------------------------------------------------------


def test_every_row_is_used_or_counted_by_reason(look: Callable[..., Survey]) -> None:
    """ "Où?" and "Ici." with an empty line between: 4 + 2 + 4 bytes; "Là." is 4 more, behind another 2."""
    found = look(MIXED, {"cats": no_cats, "length": functools.partial(no_longer_than, limit=12)})
    assert found.ids.to_pylist() == ["a", "j", "l"]
    assert found.bad == {"broken_json": 2, "no_text": 1}
    assert found.dropped == {"empty": 2, "duplicate": 2, "cat": 3, "long": 2} and found.pairs == 0
    assert found.rows_in == len(MIXED) == len(found.ids) + sum(found.bad.values()) + sum(found.dropped.values())
    found = look(MIXED)
    assert found.ids.to_pylist() == ["a", "e", "h", "i", "j", "l", "m"]
    assert found.bytes.tolist() == [6, 7, 15, 13, 10, 10, 16]
    assert found.dropped == {"empty": 2, "duplicate": 3} and found.pairs == 1


def test_keys_are_of_the_content(look: Callable[..., Survey]) -> None:
    """The first 64 bits of sha256; turns as sorted JSON."""
    rows = [Document("a", "é", "f"), Document("b", "x", "f", key="y"), Conversation("c", ({"role": "user", "content": "é"},), "f")]
    turns = '[[{"content": "é", "role": "user"}], []]'
    expected = [int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) for text in ("é", "y", turns)]
    assert look(rows).keys.tolist() == expected
    assert look(rows).keys.dtype == np.uint64


def test_documents_of_one_key_are_duplicates_whatever_their_text(look: Callable[..., Survey]) -> None:
    found = look([Document(f"copy/{n}", f"text {n}", "f", key="one key") for n in range(10)])
    assert found.ids.to_pylist() == ["copy/0"] and found.dropped == {"duplicate": 9}


@pytest.mark.parametrize(
    "row",
    [
        Document("a", "half \ud83d of a pair", "f:1"),
        Document("half \ud83d of a pair", "text", "f:1"),
        Document("a", "text", "f:1", key="half \ud83d of a pair"),
        Conversation("a", ({"role": "user", "content": "half \ud83d of a pair"},), "f:1"),
        Conversation("a", ASKED, "f:1", ({"name": "half \ud83d of a pair"},)),
    ],
    ids=["text", "id", "key", "turn", "tool"],
)
def test_half_a_pair_is_no_text(look: Callable[..., Survey], row: Row) -> None:
    found = look([*documents("one"), row])
    assert found.ids.to_pylist() == ["d:1"] and found.bad == {"lone_surrogate": 1} and found.examples[0][0] == "f:1"
    with pytest.raises(DataError, match=r"^f:1: lone_surrogate: "):
        look([row], strict=True)


def test_an_origin_that_is_no_text_is_written_as_one(look: Callable[..., Survey]) -> None:
    """A file name may be any bytes; Python reads those that are no UTF-8 as halves of pairs."""
    rows = [Document("a", "text", "na\udcefve.txt"), BadRow("na\udcefve.txt:3", "broken_json", "mend it")]
    assert [example[:2] for example in look(rows).examples] == [("na\\udcefve.txt", "lone_surrogate"), ("na\udcefve.txt:3", "broken_json")]


def test_some_rows_of_each_reason_are_shown_with_how_their_text_begins(look: Callable[..., Survey]) -> None:
    rows = [Document(f"d{n}", f"cat\n  {n} " + "x" * 300, "f") for n in range(9)]
    found = look([*rows, *MIXED[1:3]], FILTERS)
    assert [example[:2] for example in found.examples] == [("f:2", "broken_json"), *((f"d{n}", "cat") for n in range(5)), ("b", "empty")]
    assert found.examples[0][2] == "column 3; mend the line"
    assert found.examples[1][2] == "cat 0 " + "x" * 192


def test_files_that_give_no_row_are_counted(look: Callable[..., Survey], tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", "c.mp3", "d.mp3"):
        (tmp_path / "texts" / name).write_text(f"text {name}")
    found = look(functools.partial(folder, path=str(tmp_path / "texts")))
    assert found.rows_in == 2 and found.skipped == {".mp3": 2}


def test_nothing_in_nothing_out(look: Callable[..., Survey]) -> None:
    found = look([], near=NEAR)
    assert found.rows_in == len(found.ids) == len(found.keys) == 0
    assert found.signatures.shape == (0, 32) and found.signatures.dtype == np.uint32


# ---- rows that can't be parsed ----------------------------------------------------------------------------------------------


def test_a_bad_row_is_an_error_that_says_where_why_and_what_to_do(look: Callable[..., Survey]) -> None:
    with pytest.raises(DataError, match=r"^f:2: broken_json: column 3; mend the line; or leave .* by data.bad_rows=skip$"):
        look(MIXED, strict=True)
    look([row for row in MIXED if not isinstance(row, BadRow)], strict=True)


def test_a_survey_that_skipped_bad_rows_refuses_them_when_asked_strictly(look: Callable[..., Survey]) -> None:
    """It is known and not read again. A row that was dropped for a reason of the same name is not the bad one."""
    rows = [Document("a", " ", "f:1"), *documents("x"), BadRow("f:3", "empty", "the cell is empty; fill it"), MIXED[1]]
    source, readings = counted(rows, "1")
    assert look(source).bad == {"empty": 1, "broken_json": 1}
    with pytest.raises(DataError, match=r"^f:3: empty: the cell is empty; fill it; or leave"):
        look(source, strict=True)
    assert len(readings) == 1


def test_an_error_keeps_nothing(look: Callable[..., Survey]) -> None:
    source, readings = counted(MIXED, "1")
    for _ in range(2):
        with pytest.raises(DataError):
            look(source, strict=True)
    assert look(source).rows_in == len(MIXED) and len(readings) == 3


# ---- the digest -------------------------------------------------------------------------------------------------------------

ROWS = [*documents("one", "two", "", "three", "two"), MIXED[1], MIXED[11], MIXED[14]]


def changed(number: int, **fields: object) -> list[Row]:
    return [replace(row, **fields) if n == number else row for n, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    "rows",
    [
        changed(0, text="onf", key="onf"),
        changed(0, id="d:9"),
        changed(2, id="d:9"),
        changed(2, text=" ", key=" "),
        changed(4, id="d:9"),
        changed(5, detail="column 4; mend the line"),
        changed(5, reason="no_text"),
        changed(6, messages=(ASKED[0], {**ASKED[1], "name": "x"})),
        changed(7, rejected=ASKED[1:], chosen=ROWS[7].rejected),
        [ROWS[1], ROWS[0], *ROWS[2:]],
        ROWS[:-1],
        [*ROWS, *documents("four")],
    ],
    ids=[
        *("a byte", "an id", "an id left out", "a text left out", "the id of a copy"),
        *("what is wrong", "why", "a turn's field", "answers exchanged", "order", "a row less", "a row more"),
    ],
)
def test_the_digest_sees_any_change(look: Callable[..., Survey], rows: list[Row]) -> None:
    assert look(rows).digest != look(ROWS).digest == look(list(ROWS)).digest


def test_the_digest_sees_what_a_filter_drops(look: Callable[..., Survey]) -> None:
    rows = documents("a cat", "a dog", "dogs and cats")
    digests = [look(rows, filters).digest for filters in ({}, {"cats": no_cats}, FILTERS, {"length": FILTERS["length"]})]
    assert len(set(digests[:2])) == 2 and digests[1] == digests[2] and digests[3] not in digests[:3]
    assert look(rows, {"length": functools.partial(no_longer_than, limit=99)}).digest == digests[0]


def test_the_digest_knows_where_an_id_begins(look: Callable[..., Survey]) -> None:
    """Without lengths between them, a reason and the next id run into each other: ("cat", "b") and ("", "catb") would be equal."""
    one = look([Document("a", "the cat", "f"), Document("b", "dog", "f")], {"cats": no_cats})
    other = look([Document("a", "the cat", "f"), Document("catb", "dog", "f")])
    assert one.digest != other.digest


def test_a_folder_by_another_route_is_the_same_data(look: Callable[..., Survey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts"
    (texts / "inner").mkdir(parents=True)
    (texts / "inner" / "a.txt").write_text("one")
    (texts / "b.txt").write_text("two")
    (texts / "b.jsonl").write_text('{"text": "three"}\n{"text":\n')
    (tmp_path / "link").symlink_to(texts)
    monkeypatch.chdir(tmp_path)
    found = [look(functools.partial(folder, path=path)) for path in (str(texts), "texts", "./texts/../texts/", "link")]
    assert found[0].bad == {"broken_json": 1} and sorted(found[0].ids.to_pylist()) == ["b.jsonl:1", "b.txt", "inner/a.txt"]
    assert {each.digest for each in found} == {found[0].digest}
    (texts / "b.txt").write_text("twp")
    assert look(functools.partial(folder, path="link")).digest != found[0].digest


# ---- when it is read again --------------------------------------------------------------------------------------------------


def test_a_source_with_a_fingerprint_is_read_once(look: Callable[..., Survey]) -> None:
    source, readings = counted(MIXED, "1")
    first, second = look(source, FILTERS, NEAR), look(source, FILTERS, NEAR)
    assert len(readings) == 1 and first.digest == second.digest and first.examples == second.examples
    assert first.ids.equals(second.ids) and np.array_equal(first.keys, second.keys) and np.array_equal(first.signatures, second.signatures)
    assert (first.rows_in, first.bad, first.dropped) == (second.rows_in, second.bad, second.dropped)


def test_a_source_without_one_is_read_each_time(look: Callable[..., Survey]) -> None:
    source, readings = counted(MIXED)
    look(source), look(source)
    assert len(readings) == 2


READ: list[int] = []


def letters(*, count: int) -> Fixed:
    def read() -> Iterable[Row]:
        READ.append(count)
        return documents(*"abcdefgh"[:count])

    return Fixed(read, "1")


BEFORE = {"source": functools.partial(letters, count=3), "filters": FILTERS, "near": NEAR}


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"source": functools.partial(letters, count=4)}, True),
        ({"filters": {}}, True),
        ({"filters": {**FILTERS, "length": functools.partial(no_longer_than, limit=10)}}, True),
        ({"filters": dict(reversed(FILTERS.items()))}, True),  # the reasons are others
        ({"near": None}, True),
        ({"near": replace(NEAR, permutations=64)}, True),
        ({"near": replace(NEAR, shingle=2)}, True),
        ({"near": replace(NEAR, threshold=0.5)}, False),  # signatures are the same
        ({"source": functools.partial(letters, count=3)}, False),
    ],
    ids=["knob", "filters", "a filter's knob", "order of filters", "near", "permutations", "shingle", "threshold", "none"],
)
def test_it_is_read_again_when_what_it_gives_may_have_changed(look: Callable[..., Survey], change: dict, again: bool) -> None:
    READ.clear()
    for wanted in (BEFORE, BEFORE, {**BEFORE, **change}):
        look(wanted["source"], wanted["filters"], wanted["near"])
    assert len(READ) == 1 + again


def test_it_is_read_again_when_its_fingerprint_or_the_scheme_of_signatures_changes(
    look: Callable[..., Survey], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(counted(MIXED, "1")[0], near=NEAR)
    for fingerprint, scheme, again in (("1", near.scheme(), 0), ("2", near.scheme(), 1), ("1", "another", 1)):
        monkeypatch.setattr(near, "scheme", lambda scheme=scheme: scheme)
        source, readings = counted(MIXED, fingerprint)
        look(source, near=NEAR)
        assert len(readings) == again


def test_it_is_read_again_when_the_code_of_a_filter_changes(
    look: Callable[..., Survey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "filter_of_a_user.py"
    code.write_text("def keep(text):\n    return None\n")
    keep = importlib.import_module("filter_of_a_user").keep
    source, readings = counted(MIXED, "1")
    look(source, {"own": keep}), look(source, {"own": keep})
    assert len(readings) == 1
    os.utime(code, (1, 1))
    look(source, {"own": keep})
    assert len(readings) == 1, "a checkout of the same code moves its time alone"
    code.write_text("def keep(text):\n    return ''\n")
    look(source, {"own": keep})
    assert len(readings) == 2


# ---- the rows ---------------------------------------------------------------------------------------------------------------


def test_the_rows_are_what_the_source_gave_as_often_as_they_are_asked_for(look: Callable[..., Survey], tmp_path: Path) -> None:
    """Over several chunks, and after their folder is removed."""
    call = {"role": "assistant", "tool_calls": [{"name": "look", "arguments": {"where": ["ici", 1.5, None, True]}}]}
    rows = [Document(f"d:{n}", f"text {n}\r\n\u2028é", f"f:{n}") for n in range(3000)]
    rows[1500:1500] = [Conversation("c", (*ASKED, call), "f:c", ({"name": "look", "parameters": {}},)), MIXED[14]]
    source, readings = counted([*rows, MIXED[1], MIXED[2]])
    found = look(source)
    assert list(found.rows) == rows
    (removed,) = (path for path in (tmp_path / "cache").iterdir() if path.name != "locks")
    shutil.rmtree(removed)
    assert list(found.rows) == rows and len(readings) == 1


# ---- signatures -------------------------------------------------------------------------------------------------------------


def test_signatures_of_near_duplicates_stand_beside_the_rows(look: Callable[..., Survey]) -> None:
    """Over several chunks, and not of rows that are left out."""
    texts = [f"row {n} of the cats and dogs" if n % 3 else f"row {n}" for n in range(2500)]
    found = look(documents(*texts), {"cats": no_cats}, NEAR)
    used = [text for text in texts if "cat" not in text]
    assert found.ids.to_pylist() == [f"d:{n}" for n in range(1, 2501, 3)]
    assert np.array_equal(found.signatures, near.signatures(used, permutations=32, shingle=3))
    whole = look(documents(*texts), {}, NEAR)
    assert np.array_equal(whole.signatures, near.signatures(texts, permutations=32, shingle=3))
    assert look(documents(*texts)).signatures is None
