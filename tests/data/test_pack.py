"""Packing: nothing lost that is not counted, nothing doubled, nothing mixed."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from forge.data.pack import Cuts, PackedRows, cut, join, place
from forge.data.sources import builtin
from forge.data.tokens import Sequences
from forge.errors import DataError
from forge.models import Loaded

Pack = Callable[..., PackedRows]
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


def names(count: int) -> list[str]:
    return [f"d{n}" for n in range(count)]


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_packed_can_be_read_back(make_tiny_model: Callable[..., Loaded], pack_rows: Pack, packed: bool) -> None:
    tokenizer = make_tiny_model().tokenizer
    documents = [np.array([*tokenizer.encode(text), tokenizer.eos_token_id], dtype=np.int32) for text in TEXTS.values()]
    rows = pack_rows(documents, list(TEXTS), ROW, packed)
    rebuilt = {name: np.full(len(tokens), -1) for name, tokens in zip(TEXTS, documents, strict=True)}
    for name, start, tokens, _ in walk(rows):
        rebuilt[name][start : start + len(tokens)] = tokens
    for name, text in TEXTS.items():
        assert tokenizer.decode(rebuilt[name][1:-1].tolist()) == text


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_every_target_is_one_once(pack_rows: Pack, packed: bool, masked: bool) -> None:
    """Of a document without a mask that is every token but the first; of a conversation what its mask says, but for the first."""
    lengths = [*range(0, 70), 15, 16, 17, 31, 300]
    draw = np.random.default_rng(0)
    wanted = [draw.random(length) < 0.2 if masked else np.ones(length, dtype=bool) for length in lengths]
    rows = pack_rows([np.arange(n) for n in lengths], names(len(lengths)), ROW, packed, targets=wanted if masked else None)
    seen = {name: np.zeros(length, dtype=int) for name, length in zip(names(len(lengths)), lengths, strict=True)}
    for name, start, tokens, mask in walk(rows):
        assert not mask[0] and mask.any()
        np.testing.assert_array_equal(tokens, np.arange(start, start + len(tokens)))
        seen[name][start : start + len(tokens)] += mask
    for times, targets in zip(seen.values(), wanted, strict=True):
        targets[:1] = False
        np.testing.assert_array_equal(times, targets)
    counts = [int(targets.sum()) for targets in wanted]
    assert rows.targets.sum() == sum(counts)
    assert rows.documents.tolist() == [n for n, count in enumerate(counts) if count]
    assert rows.document_targets.tolist() == [count for count in counts if count]
    assert rows.left_out == {"one_token": 2, "over_length": 0, "no_target": counts[2:].count(0)}


def test_padding_is_no_token_no_target_and_no_document(pack_rows: Pack) -> None:
    """Documents of 5 and 3 tokens in rows of 10: two positions are left."""
    rows = pack_rows([[5, 6, 7, 8, 9], [2, 3, 4]], ["five", "three"], 10, name="here")
    batch = rows.batch([0])
    assert batch.tokens_BT.tolist() == [[5, 6, 7, 8, 9, 2, 3, 4, 0, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 0, 0]]
    assert batch.mask_BT.astype(int).tolist() == [[0, 1, 1, 1, 1, 0, 1, 1, 0, 0]]
    assert (batch.row_ids, batch.sources) == (("five[0:5], three[0:3]",), ("here",))
    assert batch.targets == rows.targets[0] == 6
    assert rows.filled.tolist() == [8]
    assert rows.padding_share == pytest.approx(0.2)


def test_a_batch_can_be_narrower_than_rows_and_be_joined_with_others(pack_rows: Pack) -> None:
    rows = pack_rows([[5, 6, 7], [2, 3]], ["a", "b"], 10, packed=False)
    batch = join([rows.batch([1], width=4), rows.batch([0], width=4)])
    assert batch.tokens_BT.tolist() == [[2, 3, 0, 0], [5, 6, 7, 0]]
    assert batch.mask_BT.astype(int).tolist() == [[0, 1, 0, 0], [0, 1, 1, 0]]
    assert (batch.row_ids, batch.sources) == (("b[0:2]", "a[0:3]"), ("a", "a"))


def test_only_the_documents_that_are_asked_for_are_packed() -> None:
    """Tokens of 16 bits, as they lie on disk; the batch has 32."""
    tokens = np.array([1, 2, 3, 4, 65535, 6, 7], dtype=np.uint16)
    rows = PackedRows("a", Sequences(tokens, np.array([0, 2, 4, 7]), None, ["x", "y", "z"]), np.array([0, 2]), 8)
    batch = rows.batch([0])
    assert batch.tokens_BT.tolist() == [[65535, 6, 7, 1, 2, 0, 0, 0]] and batch.tokens_BT.dtype == np.int32
    assert batch.row_ids == ("z[0:3], x[0:2]",)
    assert rows.documents.tolist() == [0, 2]


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
def test_splits_at_the_edges_of_a_row_of_four(length: int, pieces: list[tuple[int, int]]) -> None:
    """A piece after the first starts with one token of context, so rows of 4 hold 3 targets."""
    found, cuts = cut(np.array([9]), np.array([length]), 4)
    assert [tuple(map(int, piece)) for piece in zip(found.documents, found.starts, found.stops, strict=True)] == [
        (9, start, stop) for start, stop in pieces
    ]
    assert cuts == Cuts(split=int(length > 4))


@pytest.mark.parametrize(
    ("policy", "pieces", "cuts"),
    [
        ("split", [(3, 0, 4), (3, 3, 7), (3, 6, 10), (5, 0, 4), (7, 0, 4), (7, 3, 5)], Cuts(split=2)),
        ("drop", [(5, 0, 4)], Cuts(dropped=2, tokens=15)),
        ("truncate_left", [(3, 6, 10), (5, 0, 4), (7, 1, 5)], Cuts(truncated=2, tokens=7)),
        ("truncate_right", [(3, 0, 4), (5, 0, 4), (7, 0, 4)], Cuts(truncated=2, tokens=7)),
    ],
)
def test_what_is_longer_than_a_row_of_four_by_hand(policy: str, pieces: list[tuple[int, int, int]], cuts: Cuts) -> None:
    """Documents 3, 5, 7 and 8 of 10, 4, 5 and 1 tokens."""
    found, counted = cut(np.array([3, 5, 7, 8]), np.array([10, 4, 5, 1]), 4, policy)  # type: ignore[arg-type]
    assert list(zip(found.documents.tolist(), found.starts.tolist(), found.stops.tolist(), strict=True)) == pieces
    assert counted == cuts


@pytest.mark.parametrize("policy", ["error", "drop", "split", "truncate_left", "truncate_right"])
def test_what_fits_is_left_alone_under_every_policy(pack_rows: Pack, policy: str) -> None:
    rows = pack_rows([np.arange(16), np.arange(2), np.arange(1)], names(3), ROW, policy=policy)
    assert sorted((name, start, len(tokens)) for name, start, tokens, _ in walk(rows)) == [("d0", 0, 16), ("d1", 0, 2)]
    assert (rows.cuts, rows.tokens_cut) == (Cuts(), 0)
    assert rows.left_out == {"one_token": 1, "over_length": 0, "no_target": 0}


def test_a_document_that_is_too_long_is_an_error_where_asked_for(pack_rows: Pack) -> None:
    """A sequence length of 15 is a row of 16: 16 tokens fit, since the last is a target only."""
    with pytest.raises(DataError) as error:
        pack_rows([np.arange(16), np.arange(17), np.arange(40)], ["fits", "docs/long", "longer"], ROW, policy="error", name="mine")
    message = str(error.value)
    assert message.startswith("source 'mine': docs/long has 17 tokens, 16 fit, and over_length is error (2 such rows)")
    assert "data.sequence_length (now 15)" in message and "data.sources.mine.over_length" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("policy", "left", "lost"), [("drop", {"short": 5}, 50), ("truncate_left", {"long": 16, "short": 5}, 34), ("split", None, 0)]
)
def test_what_is_cut_off_is_counted(pack_rows: Pack, policy: str, left: dict[str, int] | None, lost: int) -> None:
    rows = pack_rows([np.arange(50), np.arange(5)], ["long", "short"], ROW, policy=policy)
    if left is not None:
        assert {name: len(tokens) for name, _, tokens, _ in walk(rows)} == left
    assert rows.tokens_cut == lost
    assert rows.left_out == {"one_token": 0, "over_length": int(policy == "drop"), "no_target": 0}
    assert rows.targets.sum() == (sum(n - 1 for n in left.values()) if left else 49 + 4)


def test_a_piece_of_a_conversation_without_a_target_is_left_out_and_counted(pack_rows: Pack) -> None:
    """Rows of 4 cut ten tokens into [0:4], [3:7] and [6:10]. Targets 3 and 4: token 3 is context in the second, and the third has none.

    The third's own tokens are 7, 8 and 9. The other conversation, of six tokens, has no target but its first, which nothing precedes.
    """
    targets = [[n in (3, 4) for n in range(10)], [n == 0 for n in range(6)]]
    rows = pack_rows([np.arange(10), np.arange(6)], ["talk", "mute"], 4, targets=targets)
    found = sorted((name, start, mask.astype(int).tolist()) for name, start, _, mask in walk(rows))
    assert found == [("talk", 0, [0, 0, 0, 1]), ("talk", 3, [0, 1, 0, 0])]
    assert rows.tokens_cut == 3 + 6
    assert rows.left_out == {"one_token": 0, "over_length": 0, "no_target": 1}
    assert (rows.documents.tolist(), rows.document_targets.tolist(), rows.targets.tolist()) == ([0], [2], [1, 1])


@pytest.mark.parametrize(("policy", "kept", "lost"), [("truncate_left", [0, 0, 1, 0], 6), ("truncate_right", [0, 1, 0, 0], 6)])
def test_a_truncated_conversation_keeps_the_targets_of_its_end_or_beginning(
    pack_rows: Pack, policy: str, kept: list[int], lost: int
) -> None:
    """Ten tokens, targets 1, 6 and 8: what is left of the end is [6:10], and token 6 has nothing before it."""
    rows = pack_rows([np.arange(10)], ["talk"], 4, policy=policy, targets=[[n in (1, 6, 8) for n in range(10)]])
    assert [mask.astype(int).tolist() for _, _, _, mask in walk(rows)] == [kept]
    assert (rows.tokens_cut, rows.cuts.truncated) == (lost, 1)


def test_a_truncated_conversation_may_have_no_target_left(pack_rows: Pack) -> None:
    rows = pack_rows([np.arange(10)], ["talk"], 4, policy="truncate_right", targets=[[n == 8 for n in range(10)]])
    assert (len(rows), rows.tokens_cut, rows.left_out["no_target"]) == (0, 10, 1)
    assert (rows.padding_share, rows.targets.tolist()) == (0.0, [])


@pytest.mark.parametrize(
    ("row", "sizes", "together"),
    [
        (9, [3, 6, 4, 5], [[6, 3], [5, 4]]),  # 6 opens a row (3 left), 5 another (4 left), 4 fills the second, 3 the first
        (20, [8, 2, 13, 10], [[13], [10, 8, 2]]),  # 2 finds room for 7 in the first and for 2 in the second: the better fit
        (10, [3] * 7 + [10], [[10], [3, 3, 3], [3, 3, 3], [3]]),
        (12, [5, 5, 5, 5, 2, 2, 2], [[5, 5, 2], [5, 5, 2], [2]]),
    ],
)
def test_pieces_go_where_they_fit_best(row: int, sizes: list[int], together: list[list[int]]) -> None:
    at = place(np.array(sizes), row)
    assert sorted(sorted(np.array(sizes)[at == number].tolist(), reverse=True) for number in range(max(at) + 1)) == sorted(together)


def one_by_one(sizes: list[int], row: int) -> list[int]:
    """Best-fit decreasing as it is described: the room that is left in each row."""
    rooms: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else row) - size)
    return sorted(rooms)


def test_placing_all_of_a_size_at_once_is_placing_one_by_one() -> None:
    """200 draws of rows and sizes, small ones too, which go many to a row."""
    draw = np.random.default_rng(0)
    for _ in range(200):
        row = int(draw.integers(3, 70))
        sizes = draw.integers(1, int(draw.integers(2, row + 1)) + 1, int(draw.integers(1, 120)))
        at = place(sizes, row)
        rooms = row - np.bincount(at, weights=sizes).astype(int)
        assert (rooms >= 0).all()
        assert sorted(set(at)) == list(range(len(rooms)))
        assert sorted(rooms) == one_by_one(sizes.tolist(), row), (row, sizes)


def test_without_isolation_each_piece_has_a_row(pack_rows: Pack) -> None:
    rows = pack_rows([np.arange(5), np.arange(3), np.arange(20)], ["a", "b", "c"], ROW, packed=False)
    assert len(rows) == 4  # 20 tokens are two pieces: 16, and 1 + 4
    assert rows.filled.tolist() == [5, 3, 16, 5]
    assert rows.batch(range(4)).segments_BT.max() == 1


def test_the_built_in_corpus_leaves_little_room_empty(pack_rows: Pack) -> None:
    """Bytes for tokens, in rows of four times the default length: about as many pieces a document as words would give."""
    texts = [document.text.encode() for source in (builtin.stdlib, builtin.reference) for document in source()]
    rows = pack_rows([np.frombuffer(text, dtype=np.uint8) for text in texts], names(len(texts)), 1025)
    used = np.count_nonzero(rows.batch(range(len(rows))).segments_BT) / (len(rows) * 1025)
    assert used >= 0.95
    assert rows.padding_share == pytest.approx(1 - used)


@pytest.mark.parametrize("row", [129, 513, 2049])
@pytest.mark.parametrize(("mean", "spread"), [(4.0, 0.5), (5.5, 1.0), (6.5, 1.5)])
def test_lognormal_lengths_leave_little_room_empty(row: int, mean: float, spread: float) -> None:
    """From short answers (half below 55 tokens) to articles (half above 665)."""
    lengths = np.maximum(np.random.default_rng(0).lognormal(mean, spread, 3000).astype(int), 2)
    pieces, _ = cut(np.arange(3000), lengths, row)
    at = place(pieces.sizes, row)
    assert np.bincount(at, weights=pieces.sizes).max() <= row
    assert pieces.sizes.sum() / ((at.max() + 1) * row) >= 0.95
