"""Packs tokenised documents into rows of a fixed length, without mixing them.

Every token of a document except its first is a target exactly once. A document longer than a row is cut into pieces; a
later piece starts with the last token of the one before it, as context only, so that no target is lost at a cut.
Pieces are placed best-fit, longest first (Ding et al. 2024, "Fewer Truncations Improve Language Modeling").
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forge.spec import Batch


@dataclass(frozen=True)
class Piece:
    """tokens[start:stop] of document `document`. The first token is context: it is no target of this piece."""

    document: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def cut(lengths: Sequence[int], row: int) -> list[Piece]:
    """The pieces, at most `row` tokens long, of documents with `lengths` tokens; a document of one token has no target and no piece."""
    return [
        Piece(document, start, min(start + row, length))
        for document, length in enumerate(lengths)
        for start in range(0, max(length - 1, 0), row - 1)
    ]


def place(pieces: Sequence[Piece], row: int, isolated: bool = True) -> list[list[Piece]]:
    """The pieces of each row, best-fit decreasing. With `isolated` false each piece has a row to itself."""
    if not isolated:
        return [[piece] for piece in pieces]
    order = sorted(range(len(pieces)), key=lambda i: (-pieces[i].size, i))
    rows: list[list[Piece]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for i in order:
        piece = pieces[i]
        at = bisect.bisect_left(free, (piece.size, -1))
        if at < len(free):
            room, index = free.pop(at)
        else:
            room, index = row, len(rows)
            rows.append([])
        rows[index].append(piece)
        if room - piece.size >= 2:  # a piece has at least two tokens
            bisect.insort(free, (room - piece.size, index))
    return rows


class PackedRows:
    """Rows of one source, built on demand from the token lists: memory is that of the tokens.

    `targets` counts each row's targets; `padding_share` is the share of all positions that hold no token.
    """

    def __init__(self, documents: Sequence[np.ndarray], ids: Sequence[str], row: int, isolated: bool = True):
        self._documents, self._ids, self._row = documents, ids, row
        self._rows = place(cut([len(d) for d in documents], row), row, isolated)
        self.targets = np.array([sum(piece.size - 1 for piece in pieces) for pieces in self._rows], dtype=np.int64)
        filled = sum(piece.size for pieces in self._rows for piece in pieces)
        self.padding_share = 1 - filled / (len(self._rows) * row) if self._rows else 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        return join([self._build(index) for index in indices])

    def _build(self, index: int) -> Batch:
        tokens = np.zeros((1, self._row), dtype=np.int32)
        mask = np.zeros((1, self._row), dtype=bool)
        segments = np.zeros((1, self._row), dtype=np.int32)
        at = 0
        for number, piece in enumerate(self._rows[index], start=1):
            here = slice(at, at + piece.size)
            tokens[0, here] = self._documents[piece.document][piece.start : piece.stop]
            mask[0, at + 1 : at + piece.size] = True
            segments[0, here] = number
            at += piece.size
        names = ", ".join(f"{self._ids[p.document]}[{p.start}:{p.stop}]" for p in self._rows[index])
        return Batch(tokens, mask, segments, (names,))


def join(batches: Sequence[Batch]) -> Batch:
    """One batch with the rows of all."""
    return Batch(
        np.concatenate([b.tokens_BT for b in batches]),
        np.concatenate([b.mask_BT for b in batches]),
        np.concatenate([b.segments_BT for b in batches]),
        tuple(name for b in batches for name in b.row_ids),
    )
