"""What is measured on: which held-out rows of a source, in which batches, how many bytes they spell, and their digest.

Cost: some 60 bytes a document, and for the digest 15 µs a piece of text. A batch is built from mapped memory when it is asked for and
kept by nobody, so a set that is larger than memory can be gone through.
"""

import hashlib
from collections.abc import Sequence
from typing import overload

import numpy as np

from forge.data.encode import Encoder
from forge.data.pack import PackedRows
from forge.data.tokens import Tokenised
from forge.spec import Batch


class Lots(Sequence[Batch]):
    """All of `rows`, `size` to a batch; a batch is a function of its number. Where each row holds one document, those of like length
    come together, and a batch is as wide as its longest."""

    def __init__(self, rows: PackedRows, size: int, packed: bool):
        self._rows, self._size, self._packed = rows, size, packed
        self._order = np.arange(len(rows)) if packed else np.argsort(rows.filled, kind="stable")

    def __len__(self) -> int:
        return -(-len(self._order) // self._size)

    @overload
    def __getitem__(self, which: int) -> Batch: ...
    @overload
    def __getitem__(self, which: slice) -> Sequence[Batch]: ...
    def __getitem__(self, which: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(which, slice):
            return [self[number] for number in range(len(self))[which]]
        begin = range(len(self))[which] * self._size
        numbers = self._order[begin : begin + self._size]
        return self._rows.batch(numbers.tolist(), None if self._packed else int(self._rows.filled[numbers].max()))


def measured(rows: PackedRows, keys: np.ndarray, max_tokens: int | None) -> np.ndarray:
    """Whole documents, in the order of their keys, up to the one that would pass `max_tokens` targets (None: all); at least one.

    The order is arbitrary but fixed, since keys are hashes: it favours no folder, no alphabet and no length. What a lower limit chooses
    is a part of what a higher one does.
    """
    if max_tokens is None:
        return rows.documents
    order = np.argsort(keys[rows.documents], kind="stable")
    within = np.cumsum(rows.document_targets[order]) <= max_tokens
    return np.sort(rows.documents[order[: max(1, int(within.sum()))]])


def spelt(tokens: Tokenised, rows: PackedRows, encoder: Encoder) -> int:
    """UTF-8 bytes that the targets of `rows` spell; of a row that was truncated, those of what is left."""
    total, pieces, sequences = int(tokens.target_bytes[rows.documents].sum()), rows.pieces, tokens.sequences
    if not rows.cuts.truncated:
        return total
    for i in np.flatnonzero(pieces.sizes < sequences.lengths[pieces.documents]):
        document, start, stop = pieces.at(i)
        ids = sequences.row(document, start, stop)[sequences.mask(document, start, stop)]
        total += encoder.spelt(ids) - int(tokens.target_bytes[document])
    return total


def digest(tokens: Tokenised, rows: PackedRows) -> str:
    """Of the ids and targets that are measured on, piece by piece in the order of the documents, whatever rows they lie in."""
    whole, pieces = hashlib.sha256(), rows.pieces
    for i in np.lexsort((pieces.starts, pieces.documents)):
        document, start, stop = pieces.at(i)
        ids = tokens.sequences.row(document, start, stop).astype(np.int32)
        whole.update(len(ids).to_bytes(8, "big") + ids.tobytes() + tokens.sequences.mask(document, start, stop).tobytes())
    return whole.hexdigest()
