"""Batches as text again. The tokenizers are toys: a token is a byte, or a word that drops its space at the start."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from forge.data.preview import Extent, Span, extents, least_learnt, longest, printable, sample, samples, training
from forge.spec import Batch, Data, Ledger


def byte_by_byte(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def batch(*documents: tuple[bytes, str], row_id: str = "", width: int = 0) -> Batch:
    """One row of (bytes, mask) with a mask such as "..xx": x is learnt."""
    tokens = [n for text, _ in documents for n in text]
    mask = [letter == "x" for _, marks in documents for letter in marks]
    segments = [number for number, (text, _) in enumerate(documents, start=1) for _ in text]
    rest = [0] * (width - len(tokens))
    arrays = (np.array([values + rest], kind) for values, kind in ((tokens, np.int32), (mask, bool), (segments, np.int32)))
    return Batch(*arrays, (row_id or "row",), ("made up",))  # type: ignore[arg-type]


class Rounds:
    """An endless sequence of batches; each round through them is an epoch of every source."""

    def __init__(self, batches: Sequence[Batch]):
        self._batches, self.cursor = batches, 0

    def next(self) -> Batch:
        self.cursor += 1
        return self._batches[(self.cursor - 1) % len(self._batches)]

    def epochs(self, cursor: int) -> dict[str, float]:
        return {"made up": self.cursor / len(self._batches)}


def data(*batches: Batch, valid: Any = None, max_batches: int | None = None) -> Data:
    ledger = Ledger({}, "", "", {})
    return Data(Rounds(batches), valid or {"made up": ()}, ledger, 1, 1.0, {}, {}, max_batches=max_batches)


def test_what_is_learnt_and_where_documents_begin() -> None:
    """Two documents and two positions of padding; of the first "b" and "d" are learnt, of the second all but its first token."""
    row = sample(batch((b"abcd", ".x.x"), (b"efg", ".xx"), width=9), 0, byte_by_byte)
    assert (row.tokens, row.targets, row.documents, row.left_out, row.tail) == (7, 4, 2, 0, ())
    expected = [("a", False, 1), ("b", True, 1), ("c", False, 1), ("d", True, 1), ("e", False, 2), ("fg", True, 2)]
    assert row.head == tuple(Span(*span) for span in expected)


@pytest.mark.parametrize("marks", ["..xxxxxxx", "...xxxxxx", ".....xxxx", ".x.x.x.x.", "........x"])
def test_a_character_that_a_border_cuts_is_shown_once(marks: str) -> None:
    """Of "ä日😀" (2 + 3 + 4 bytes) no byte is lost, none is shown twice and none alone."""
    row = sample(batch(("ä日😀".encode(), marks)), 0, byte_by_byte)
    assert "".join(span.text for span in row.head) == "ä日😀"
    assert row.head[-1].learnt is (marks[-1] == "x")  # the last character goes with its last byte


def test_half_a_character_at_a_row_s_end_does_not_fail() -> None:
    row = sample(batch(("日x".encode()[1:], ".xx"), ("y日".encode()[:-1], ".xx")), 0, byte_by_byte)
    assert [span.text.strip("\ufffd") for span in row.head] == ["x", "y", ""]


def test_a_replacement_character_of_the_text_itself_is_kept() -> None:
    row = sample(batch(("a\ufffdb".encode(), "....x")), 0, byte_by_byte)
    assert "".join(span.text for span in row.head) == "a\ufffdb"


def test_a_word_keeps_the_space_that_its_tokenizer_drops_at_the_start() -> None:
    """SentencePiece decodes "▁the" alone as "the"."""
    words = [" the", " cat", " sat"]
    row = sample(batch((bytes([0, 1, 2]), ".xx")), 0, lambda ids: "".join(words[n] for n in ids).lstrip())
    assert [span.text for span in row.head] == ["the", " cat sat"]


def test_a_long_row_is_shortened_in_the_middle() -> None:
    text = bytes(97 + n % 26 for n in range(1000))
    row = sample(batch((text, "." + "x" * 999)), 0, byte_by_byte)
    head, tail = "".join(span.text for span in row.head), "".join(span.text for span in row.tail)
    assert text.decode().startswith(head) and text.decode().endswith(tail)
    assert len(head) + row.left_out + len(tail) == 1000 and len(head) > len(tail) > 50 and row.left_out > 500


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("tab\tend\r\n", "tab\\tend\\r\n"),
        ("a\x00\x7f\x9b", r"a\x00\x7f\x9b"),
        ("\u202eevil\u2028", r"\u202eevil\u2028"),
        ("half \ud83d", r"half \ud83d"),
        ("日本 naïve 😀 [bold]", "日本 naïve 😀 [bold]"),
    ],
)
def test_the_terminal_gets_no_orders(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_feeds_are_escaped_where_there_is_one_line() -> None:
    assert printable("a\nb", one_line=True) == r"a\nb"


def test_a_row_of_several_pieces_is_one_again_and_counts_once() -> None:
    """ "a[1:9], b" was split in two: 4 + 3 tokens with one in common, so 6, of which 2 + 1 are learnt. "c" comes twice."""
    first = batch((b"abcd", "..xx"), (b"xy", ".x"), row_id="a[1:9], b[0:4], c[0:2]")
    second = batch((b"def", "..x"), (b"xy", ".x"), row_id="a[1:9], b[3:6], c[0:2]")
    found = extents([first, second])["made up"]
    assert found == [Extent("a[1:9], b", 6, 3), Extent("c", 2, 1)]
    assert longest(found, 1) == [found[0]]
    assert least_learnt(found, 5) == [found[0]]  # 3 of 5; all of "c" that can be learnt is
    assert found[0].share == 0.6


def test_of_a_row_cut_on_the_left_what_is_left_counts() -> None:
    assert extents([batch((b"abcd", ".xxx"), row_id="cut[5:9]")])["made up"] == [Extent("cut", 4, 3)]


def test_the_run_s_batches_are_looked_at_once_and_its_place_is_kept() -> None:
    one, two = batch((b"ab", ".x")), batch((b"cd", ".x"))
    built = data(one, two)
    built.train.cursor = 5
    assert list(training(built)) == [one, two]
    assert list(training(built, positions=1)) == [one]
    assert list(training(data(one, two, max_batches=1))) == [one]
    assert built.train.cursor == 5


def test_samples_come_from_training_in_order_else_from_validation() -> None:
    one, two, three = (batch((text, ".x")) for text in (b"ab", b"cd", b"ef"))
    kept_aside = Batch(one.tokens_BT, one.mask_BT, one.segments_BT, ("aside",), ("unused",))
    built = data(one, two, three, valid={"made up": (), "unused": (kept_aside,)})
    built.train.cursor = 7
    found = samples(built, byte_by_byte)
    assert [[span.text for span in row.head] for row in found["made up"]] == [["a", "b"], ["c", "d"]]
    assert [(row.where, row.trained_on) for row in found["unused"]] == [("aside", False)]
    assert all(row.trained_on for row in found["made up"]) and built.train.cursor == 7
