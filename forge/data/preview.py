"""Rows of batches as text again, with what is learnt told apart, and the rows that stand out. Reads only the run's first batches.

Cost: the batches that are looked at, some 4 million positions a second, and the decoding of the few hundred tokens that are shown.
"""

import re
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from forge.data.templates import common
from forge.spec import Batch, Data

Decode = Callable[[list[int]], str]

_WHOLE, _HEAD, _TAIL = 320, 180, 80  # tokens: a longer row is shortened to its head and tail
_CONTEXT = 8  # tokens decoded before a border, so that it may lie within a character and a space may belong to its word
_POSITIONS = 2**22  # looked at for the rows that stand out
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode: control, format (also those that turn the direction), half pairs, line separators
_EXTENT = re.compile(r"\[(\d+):(\d+)\](?:, |$)")


@dataclass(frozen=True)
class Span:
    """Text of one document (1, 2, … in its row) that is learnt or only read, without control characters but line feeds."""

    text: str
    learnt: bool
    document: int


@dataclass(frozen=True)
class Sample:
    """A row of a batch. `left_out`: tokens between head and tail that are not shown. `trained_on` False: a validation row."""

    where: str
    tokens: int
    targets: int
    documents: int
    head: tuple[Span, ...]
    left_out: int
    tail: tuple[Span, ...]
    trained_on: bool = True


@dataclass(frozen=True)
class Extent:
    """One row of a source as far as the batches hold it. The share that is learnt is of the tokens that can be, all but the first."""

    id: str
    tokens: int
    targets: int

    @property
    def share(self) -> float:
        return self.targets / max(self.tokens - 1, 1)


def training(built: Data, positions: int = _POSITIONS) -> Generator[Batch]:
    """The run's first batches: until each source was gone through once, but not past `positions`. Leaves the cursor where it was."""
    train, before, seen = built.train, built.train.cursor, 0
    train.cursor = 0
    try:
        while seen < positions and train.cursor != built.max_batches and min(train.epochs(train.cursor).values()) < 1:
            batch = train.next()
            seen += batch.tokens_BT.size
            yield batch
    finally:
        train.cursor = before


def samples(built: Data, decode: Decode, each: int = 2) -> dict[str, list[Sample]]:
    """The first `each` rows of each source that are trained on; of a source with none among the first batches, validation rows."""
    found: dict[str, list[Sample]] = {name: [] for name in built.valid}
    with closing(training(built)) as batches:
        for batch in batches:
            for line, name in enumerate(batch.sources):
                if len(found[name]) < each:
                    found[name].append(sample(batch, line, decode))
            if all(len(rows) >= each for rows in found.values()):
                break
    for name, rows in found.items():
        lines = ((batch, line) for batch in built.valid[name] for line in range(len(batch.row_ids)))
        found[name] = rows or [sample(batch, line, decode, trained_on=False) for (batch, line), _ in zip(lines, range(each), strict=False)]
    return found


def sample(batch: Batch, line: int, decode: Decode, trained_on: bool = True) -> Sample:
    size = int((batch.segments_BT[line] > 0).sum())
    ids, learnt, documents = (array[line, :size] for array in (batch.tokens_BT, batch.mask_BT, batch.segments_BT))
    behind, after = (_HEAD, size - _TAIL) if size > _WHOLE else (size, size)
    return Sample(
        where=printable(batch.row_ids[line], one_line=True),
        tokens=size,
        targets=int(learnt.sum()),
        documents=int(documents.max(initial=0)),
        head=_spans(ids, learnt, documents, 0, behind, decode),
        left_out=after - behind,
        tail=_spans(ids, learnt, documents, after, size, decode),
        trained_on=trained_on,
    )


def printable(text: str, one_line: bool = False) -> str:
    r"""Control characters and others that don't show as \r, \x1b, \u202e; line feeds stay unless it is to be one line."""
    return "".join(_escaped(char) if _hidden(char) and (char != "\n" or one_line) else char for char in text)


def extents(batches: Iterable[Batch]) -> dict[str, list[Extent]]:
    """Every row in the batches, by source; what was split is one again, and what comes in two epochs counts once."""
    found: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
    for batch in batches:
        for line, (name, row_id) in enumerate(zip(batch.sources, batch.row_ids, strict=True)):
            segments, learnt = batch.segments_BT[line], batch.mask_BT[line]
            sizes = np.bincount(segments)[1:]
            targets = np.bincount(segments, weights=learnt, minlength=len(sizes) + 1)[1:]
            for (id, start, stop), count in zip(_pieces(row_id, sizes.tolist()), targets, strict=True):
                found.setdefault((name, id), {})[start] = (stop, int(count))
    result: dict[str, list[Extent]] = {}
    for (name, id), pieces in found.items():
        tokens = max(stop for stop, _ in pieces.values()) - min(pieces)
        result.setdefault(name, []).append(Extent(id, tokens, sum(count for _, count in pieces.values())))
    return result


def longest(rows: Sequence[Extent], count: int) -> list[Extent]:
    return sorted(rows, key=lambda row: (-row.tokens, row.id))[:count]


def least_learnt(rows: Sequence[Extent], count: int) -> list[Extent]:
    """Those with the smallest share of targets; none where every token is one."""
    return sorted((row for row in rows if row.share < 1), key=lambda row: (row.share, row.id))[:count]


def _spans(ids: np.ndarray, learnt: np.ndarray, documents: np.ndarray, start: int, stop: int, decode: Decode) -> tuple[Span, ...]:
    """Tokens start … stop - 1, cut where the document changes and where learning begins or ends."""
    changes = (np.diff(documents[start:stop]) != 0) | (np.diff(learnt[start:stop]) != 0)
    borders = [start, *(start + 1 + np.flatnonzero(changes)).tolist(), stop]
    spans = (
        Span(printable(_text(ids, documents, first, behind, decode)), bool(learnt[first]), int(documents[first]))
        for first, behind in pairwise(borders)
        if first < behind
    )
    return tuple(span for span in spans if span.text)


def _text(ids: np.ndarray, documents: np.ndarray, first: int, behind: int, decode: Decode) -> str:
    """What tokens first … behind - 1 add to their document's text; a character cut by the end belongs to what follows."""
    begin, end = np.searchsorted(documents, (documents[first], documents[first] + 1))
    window = max(int(begin), first - _CONTEXT)
    before = decode(ids[window:first].tolist()).rstrip("\ufffd") if window < first else ""
    text = decode(ids[window:behind].tolist())
    if behind < end:
        text = text.rstrip("\ufffd")
    return text[common(before, text) :]


def _pieces(row_id: str, sizes: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """(id, first, behind) of each document of a row named "id[first:behind], id[first:behind]". Sizes tell names that look alike."""
    at = 0
    for size in sizes:
        match = next((m for m in _EXTENT.finditer(row_id, at) if int(m[2]) - int(m[1]) == size), None)
        if match is None:
            yield row_id[at:], 0, size
        else:
            yield row_id[at : match.start()], int(match[1]), int(match[2])
            at = match.end()


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
