"""Rows of a fixed length from rows of tokens, without losing any token that is not counted.

Each token but a row's first is a target exactly once. What is longer than fits is cut by the source's policy; when it is split,
a later piece starts with the last token of the one before it, as context only, so that no target is lost at a cut. Pieces are
placed best-fit, longest first (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"), all pieces of one size at
once: a million pieces a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forge.data.tokens import Sequences
from forge.errors import DataError
from forge.spec import Batch
from forge.values import OverLength


@dataclass(frozen=True)
class Pieces:
    """tokens[starts[i]:stops[i]] of document documents[i]. A piece's first token is context: no target of this piece."""

    documents: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return self.stops - self.starts

    def at(self, i: int | np.integer) -> tuple[int, int, int]:
        """(document, start, stop) of one piece."""
        return int(self.documents[i]), int(self.starts[i]), int(self.stops[i])

    def __getitem__(self, which: np.ndarray) -> "Pieces":
        return Pieces(self.documents[which], self.starts[which], self.stops[which])


@dataclass(frozen=True)
class Cuts:
    """What did not fit: documents that were shortened or dropped, how many tokens they lost, and documents that were split."""

    truncated: int = 0
    dropped: int = 0
    split: int = 0
    tokens: int = 0


def cut(documents: np.ndarray, lengths: np.ndarray, row: int, policy: OverLength = "split") -> tuple[Pieces, Cuts]:
    """The pieces, at most `row` tokens long, of `documents` (numbers) with `lengths` tokens; one of a single token has none."""
    documents, lengths = documents[lengths > 1], lengths[lengths > 1]
    long = lengths > row
    over = int(np.maximum(lengths - row, 0).sum())
    if policy == "split":
        counts = -(-(lengths - 1) // (row - 1))
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = nth * (row - 1)
        stops = np.minimum(starts + row, np.repeat(lengths, counts))
        return Pieces(np.repeat(documents, counts), starts, stops), Cuts(split=int(long.sum()))
    if policy == "error" and long.any():
        raise _TooLong(int(documents[long][0]), int(lengths[long][0]), int(long.sum()))
    if policy == "drop":
        lost = Cuts(dropped=int(long.sum()), tokens=int(lengths[long].sum()))
        return Pieces(documents[~long], np.zeros(int((~long).sum()), dtype=np.int64), lengths[~long]), lost
    starts = np.maximum(lengths - row, 0) if policy == "truncate_left" else np.zeros_like(lengths)
    return Pieces(documents, starts, np.minimum(starts + row, lengths)), Cuts(truncated=int(long.sum()), tokens=over)


class _TooLong(Exception):
    """A document, its length in tokens, and how many there are like it."""

    def __init__(self, document: int, length: int, count: int):
        self.document, self.length, self.count = document, length, count


def place(sizes: np.ndarray, row: int) -> np.ndarray:
    """The row of each piece, best-fit decreasing: the longest first, each where the least room is left over.

    All pieces of one size go into rows of one room at a time, so the steps are at most sizes times rooms, whatever the pieces.
    """
    order = np.argsort(-sizes, kind="stable")
    found = np.empty(len(sizes), dtype=np.int64)
    with_room: dict[int, list[int]] = {room: [] for room in range(row + 1)}
    rooms = rows = at = 0  # bit r of rooms: there is a row with r left
    counts = np.bincount(sizes, minlength=row + 1)
    for size in range(row, 0, -1):
        left = int(counts[size])
        while left:
            fitting = rooms >> size
            room = size + (fitting & -fitting).bit_length() - 1 if fitting else row
            fit = room // size  # pieces of this size that one such row takes
            wanted = -(-left // fit)
            if not fitting:
                with_room[row].extend(range(rows, rows + wanted))
                rows += wanted
            taken = with_room[room][-wanted:]
            del with_room[room][-wanted:]
            placed = min(left, fit * len(taken))
            found[order[at : at + placed]] = np.repeat(taken, fit)[:placed]
            at, left = at + placed, left - placed
            full, rest = divmod(placed, fit)
            with_room[room - fit * size].extend(taken[:full])
            with_room[room - rest * size].extend(taken[full:])
            for changed in (room, room - fit * size, room - rest * size):
                rooms = rooms | 1 << changed if with_room[changed] else rooms & ~(1 << changed)
    return found


class PackedRows:
    """Rows of one source's documents `numbers`, built on demand: memory is that of the pieces, 40 bytes each.

    `packed` False: each piece has a row to itself. `targets` counts each row's targets, `filled` its tokens. `pieces` lie in the
    order of the rows. `documents` are those of which anything is left, with `document_targets` targets each; `left_out` counts the
    others by reason, `cuts` what else was lost, and `tokens_cut` the tokens of it all.
    Raises DataError under over_length=error.
    """

    def __init__(self, name: str, sequences: Sequences, numbers: np.ndarray, row: int, packed: bool = True, policy: OverLength = "split"):
        self.name, self.row, self._sequences = name, row, sequences
        try:
            pieces, self.cuts = cut(numbers, sequences.lengths[numbers], row, policy)
        except _TooLong as error:
            raise DataError(
                f"source {name!r}: {sequences.ids[error.document]} has {error.length} tokens, {row} fit, and over_length is error "
                f"({error.count} such rows); raise data.sequence_length (now {row - 1}), "
                f"or set data.sources.{name}.over_length to drop, split or truncate_right"
            ) from error
        targets = _targets(sequences, pieces)
        own = pieces.sizes - (pieces.starts > 0) if policy == "split" else pieces.sizes  # context is a token of the piece before
        self.tokens_cut = self.cuts.tokens + int(own[targets == 0].sum())  # a piece of a conversation may hold no target
        pieces, targets = pieces[targets > 0], targets[targets > 0]
        self.documents, which = np.unique(pieces.documents, return_inverse=True)
        self.document_targets = np.bincount(which, weights=targets, minlength=len(self.documents)).astype(np.int64)
        short = int((sequences.lengths[numbers] < 2).sum())
        no_target = len(numbers) - len(self.documents) - short - self.cuts.dropped
        self.left_out = {"one_token": short, "over_length": self.cuts.dropped, "no_target": no_target}
        at = place(pieces.sizes, row) if packed else np.arange(len(targets))
        order = np.lexsort((np.arange(len(at)), -pieces.sizes, at))
        self.pieces = pieces[order]
        self._borders = np.searchsorted(at[order], np.arange(at.max(initial=-1) + 2))
        self.targets = np.add.reduceat(targets[order], self._borders[:-1]) if len(at) else np.zeros(0, dtype=np.int64)
        self.filled = np.add.reduceat(self.pieces.sizes, self._borders[:-1]) if len(at) else np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def padding_share(self) -> float:
        """The share of all positions that hold no token, in rows of full width."""
        return float(1 - self.filled.sum() / (len(self) * self.row)) if len(self) else 0.0

    def batch(self, numbers: Sequence[int], width: int | None = None) -> Batch:
        """The rows `numbers`, `width` tokens wide (else as wide as rows are)."""
        shape = (len(numbers), width or self.row)
        tokens, mask, segments = np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(shape, np.int32)
        names = []
        for line, number in enumerate(numbers):
            at, described = 0, []
            for nth, i in enumerate(range(self._borders[number], self._borders[number + 1]), start=1):
                document, start, stop = self.pieces.at(i)
                here = (line, slice(at, at + stop - start))
                tokens[here] = self._sequences.row(document, start, stop)
                mask[here] = self._sequences.mask(document, start, stop)
                segments[here] = nth
                described.append(f"{self._sequences.ids[document]}[{start}:{stop}]")
                at += stop - start
            names.append(", ".join(described))
        return Batch(tokens, mask, segments, tuple(names), (self.name,) * len(numbers))


def _targets(sequences: Sequences, pieces: Pieces) -> np.ndarray:
    """How many targets each piece holds."""
    if sequences.targets is None or not len(pieces.documents):
        return pieces.sizes - 1
    flags = sequences.targets.view(np.uint8)
    first = sequences.borders[pieces.documents] + pieces.starts + 1
    last = sequences.borders[pieces.documents] + pieces.stops - 1  # reduceat takes no index behind the end, so it comes apart
    between = np.add.reduceat(flags, np.stack([first, last], axis=1).ravel(), dtype=np.int64)[::2]
    return np.where(first < last, between, 0) + flags[last]


def join(batches: Sequence[Batch]) -> Batch:
    """One batch with the rows of all, which are equally wide."""
    return Batch(
        np.concatenate([b.tokens_BT for b in batches]),
        np.concatenate([b.mask_BT for b in batches]),
        np.concatenate([b.segments_BT for b in batches]),
        tuple(name for b in batches for name in b.row_ids),
        tuple(name for b in batches for name in b.sources),
    )
