"""Packing: nothing lost, nothing doubled, nothing mixed."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from forge.data.pack import PackedRows, Piece, cut, place
from forge.data.sources import builtin
from forge.models import Loaded

TEXTS = {
    "prose": "The cat sat on the mat. It looked at the hill, and sat on.\n\nThen it left.",
    "code": "def f(a):\n    if a:\n\treturn  a\n\n\n\nclass B:\n    x = {'a': 1}   # two  spaces\n",
    "chinese and japanese": "日本語のテキスト。中文文本、没有空格。",
    "emoji": "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 ok",
    "line ends": "unix\nwindows\r\nold\rend \u2028 sep\x0b\x0c\x00",
    "long": " ".join(f"word{n}" for n in range(300)),
}
ROW = 16


def walk(rows: PackedRows) -> list[tuple[str, int, np.ndarray, np.ndarray]]:
    """(document id, first position, tokens, mask) of every piece, read from the batches alone."""
    batch, found = rows.batch(range(len(rows))), []
    for tokens, mask, segments, name in zip(batch.tokens_BT, batch.mask_BT, batch.segments_BT, batch.row_ids, strict=True):
        pieces = re.findall(r"([^,\[\]]+)\[(\d+):(\d+)\]", name)
        assert set(segments) - {0} == set(range(1, len(pieces) + 1))
        for number, (document, start, stop) in enumerate(pieces, start=1):
            here = segments == number
            assert here.sum() == int(stop) - int(start)
            found.append((document.strip(), int(start), tokens[here], mask[here]))
    return found


@pytest.mark.parametrize("isolated", [True, False])
def test_what_is_packed_can_be_read_back(make_tiny_model: Callable[..., Loaded], isolated: bool) -> None:
    tokenizer = make_tiny_model().tokenizer
    documents = [np.array([*tokenizer.encode(text), tokenizer.eos_token_id], dtype=np.int32) for text in TEXTS.values()]
    rows = PackedRows(documents, list(TEXTS), ROW, isolated)
    rebuilt = {name: np.full(len(tokens), -1) for name, tokens in zip(TEXTS, documents, strict=True)}
    for name, start, tokens, _ in walk(rows):
        rebuilt[name][start : start + len(tokens)] = tokens
    for name, text in TEXTS.items():
        assert tokenizer.decode(rebuilt[name][1:-1].tolist()) == text


@pytest.mark.parametrize("isolated", [True, False])
def test_every_token_but_a_documents_first_is_a_target_once(isolated: bool) -> None:
    lengths = [*range(0, 70), 15, 16, 17, 31, 300]
    documents = [np.arange(length, dtype=np.int32) for length in lengths]
    rows = PackedRows(documents, [f"d{n}" for n in range(len(lengths))], ROW, isolated)
    seen = {f"d{n}": np.zeros(length, dtype=int) for n, length in enumerate(lengths)}
    for name, start, tokens, mask in walk(rows):
        assert not mask[0] and mask[1:].all()
        np.testing.assert_array_equal(tokens, np.arange(start, start + len(tokens)))
        seen[name][start : start + len(tokens)] += mask
    for times in seen.values():
        assert (times[:1] == 0).all() and (times[1:] == 1).all()
    assert rows.targets.sum() == sum(max(length - 1, 0) for length in lengths)


def test_padding_is_no_token_no_target_and_no_document() -> None:
    """Documents of 5 and 3 tokens in rows of 10: two positions are left."""
    rows = PackedRows([np.array([5, 6, 7, 8, 9]), np.array([2, 3, 4])], ["five", "three"], 10)
    batch = rows.batch([0])
    assert batch.tokens_BT.tolist() == [[5, 6, 7, 8, 9, 2, 3, 4, 0, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 0, 0]]
    assert batch.mask_BT.astype(int).tolist() == [[0, 1, 1, 1, 1, 0, 1, 1, 0, 0]]
    assert batch.row_ids == ("five[0:5], three[0:3]",)
    assert batch.targets == rows.targets[0] == 6
    assert rows.padding_share == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("length", "pieces"),
    [
        (0, []),
        (1, []),
        (2, [(0, 2)]),
        (4, [(0, 4)]),
        (5, [(0, 4), (3, 5)]),
        (7, [(0, 4), (3, 7)]),
        (8, [(0, 4), (3, 7), (6, 8)]),
        (10, [(0, 4), (3, 7), (6, 10)]),
    ],
)
def test_cuts_at_the_edges_of_a_row_of_four(length: int, pieces: list[tuple[int, int]]) -> None:
    """A piece after the first starts with one token of context, so rows of 4 hold 3 targets."""
    assert cut([length], 4) == [Piece(0, start, stop) for start, stop in pieces]


def test_pieces_go_where_they_fit_best() -> None:
    """Rows of 9, sizes 6, 5, 4, 3: 6 opens a row (3 left), 5 another (4 left), 4 fills the second, 3 the first."""
    pieces = [Piece(n, 0, size) for n, size in enumerate([3, 6, 4, 5])]
    rows = place(pieces, 9)
    assert [sorted(piece.size for piece in row) for row in rows] == [[3, 6], [4, 5]]


def test_no_row_is_longer_than_the_limit() -> None:
    lengths = np.random.default_rng(0).integers(2, 200, 500)
    rows = place(cut([int(length) for length in lengths], ROW), ROW)
    assert max(sum(piece.size for piece in row) for row in rows) <= ROW


def test_without_isolation_each_piece_has_a_row() -> None:
    rows = PackedRows([np.arange(5), np.arange(3), np.arange(20)], ["a", "b", "c"], ROW, isolated=False)
    assert len(rows) == 4  # 20 tokens are two pieces: 16, and 1 + 4
    assert rows.batch(range(4)).segments_BT.max() == 1


def test_the_built_in_corpus_leaves_little_room_empty() -> None:
    """Bytes for tokens, in rows of four times the default length: about as many pieces a document as words would give."""
    texts = [document.text.encode() for source in (builtin.stdlib, builtin.reference) for document in source()]
    rows = PackedRows([np.frombuffer(text, dtype=np.uint8) for text in texts], [str(n) for n in range(len(texts))], 1025)
    used = np.count_nonzero(rows.batch(range(len(rows))).segments_BT) / (len(rows) * 1025)
    assert used >= 0.95
    assert rows.padding_share == pytest.approx(1 - used)
