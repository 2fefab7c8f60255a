"""The rows that a survey kept, as token ids on disk, mapped into memory.

Cost: one tokenisation, on all cores, while the next rows are read; memory holds a few chunks of a megabyte of text, and 16 bytes a
row. On disk 2 bytes a token for vocabularies of up to 65,536, else 4, and 1 more in sources of conversations. Kept by content,
tokenizer, chat template and mask: weights, seeds, the split and the sequence length can change without another pass.
"""

import json
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np

from forge.data.cache import Cache
from forge.data.encode import Encoded, Encoder
from forge.data.keys import digest_of
from forge.data.stored import Usable, chunks
from forge.data.survey import Survey, refusal
from forge.progress import Work
from forge.spec import BadRow

_CHUNK_CHARACTERS, _CHUNK_ROWS = 2**20, 2**14
_IN_FLIGHT = 2  # chunks being encoded: the Python part of one runs beside the tokenizer's threads on another
_EXAMPLES = 5


@dataclass(frozen=True)
class Sequences:
    """Rows of tokens, end to end: row n is tokens[borders[n]:borders[n + 1]].

    targets: bool, beside tokens; None where every token but a row's first is a target.
    """

    tokens: np.ndarray
    borders: np.ndarray
    targets: np.ndarray | None
    ids: Sequence[object]

    def row(self, number: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        first, last = self.borders[number], self.borders[number + 1]
        return self.tokens[first + start : last if stop is None else first + stop]

    def mask(self, number: int, start: int, stop: int) -> np.ndarray:
        """The targets of a piece of a row, whose first token is context and never one."""
        if self.targets is None:
            mask = np.ones(stop - start, dtype=bool)
        else:
            mask = np.array(self.targets[self.borders[number] + start : self.borders[number] + stop])
        mask[:1] = False
        return mask

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.borders)


@dataclass(frozen=True)
class Tokenised:
    """A source's rows as tokens. A row that could not be rendered has no token, and a reason in `bad`; notes count what was changed.

    target_bytes: UTF-8 bytes that the targets of each row spell (N,). target_counts: how often each id is a target (V,).
    """

    sequences: Sequences
    target_bytes: np.ndarray
    target_counts: np.ndarray
    bad: dict[int, str]
    notes: dict[str, int]
    examples: tuple[tuple[str, str, str], ...]


def tokenise(found: Survey, encoder: Encoder, strict: bool, cache: Cache) -> Tokenised:
    """Raises DataError, with `strict`, for a row that can't be rendered."""
    libraries = [version(library) for library in ("tokenizers", "transformers")]  # an upgrade may change ids and rendering
    key = digest_of(found.digest, encoder.digest, encoder.template_digest, encoder.mask, *libraries)

    def build(folder: Path) -> None:
        with Work(f"tokenising {found.name}", int(found.bytes.sum())) as work, _Writer(folder, encoder.vocab_size) as writer:
            done = 0
            lots = chunks(found.rows, lambda row: len(row.text), _CHUNK_CHARACTERS, _CHUNK_ROWS)
            for rows, encoded in _encoded(lots, encoder):
                for result in encoded:
                    if strict and isinstance(result, BadRow):
                        raise refusal(result)
                writer.add(encoded)
                work.done(int(found.bytes[done : done + len(rows)].sum()))
                done += len(rows)

    tokenised = cache.get(f"tokens-{key}", build, lambda folder: _open(found, folder))
    if strict and tokenised.bad:
        raise refusal(BadRow(*tokenised.examples[0]))
    return tokenised


def _encoded(chunks: Iterator[list[Usable]], encoder: Encoder) -> Iterator[tuple[list[Usable], list[Encoded | BadRow]]]:
    """Each chunk with what becomes of it, in order, a few ahead."""
    waiting: deque[tuple[list[Usable], Future[list[Encoded | BadRow]]]] = deque()
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(encoder.encode, chunk)))
            if len(waiting) > _IN_FLIGHT:
                rows, future = waiting.popleft()
                yield rows, future.result()
        while waiting:
            rows, future = waiting.popleft()
            yield rows, future.result()


class _Writer:
    """Writes encoded rows one after the other; targets only once there is a row with a mask of its own."""

    def __init__(self, folder: Path, vocab_size: int):
        self._folder, self._type = folder, np.uint16 if vocab_size <= 2**16 else np.int32
        self._tokens: BinaryIO = (folder / "tokens.bin").open("wb")
        self._masks: BinaryIO | None = None
        self._lengths, self._target_bytes = array("q"), array("q")  # 16 bytes a row; lists of int take 80
        self._counts = np.zeros(vocab_size, dtype=np.int64)
        self._bad: dict[int, str] = {}
        self._notes: Counter[str] = Counter()
        self._examples: list[tuple[str, str, str]] = []

    def __enter__(self) -> "_Writer":
        return self

    def add(self, results: Sequence[Encoded | BadRow]) -> None:
        kept = [self._refused(result, n) if isinstance(result, BadRow) else result for n, result in enumerate(results)]
        ids = np.concatenate([result.ids for result in kept])
        targets = np.concatenate([_all_but_first(len(r.ids)) if r.targets is None else r.targets for r in kept])
        if self._masks is None and any(result.targets is not None for result in kept):
            self._masks = (self._folder / "targets.bin").open("wb")
            for length in self._lengths:
                self._masks.write(_all_but_first(length).tobytes())
        if self._masks is not None:
            self._masks.write(targets.tobytes())
        self._tokens.write(ids.astype(self._type).tobytes())
        self._lengths.extend(len(result.ids) for result in kept)
        self._target_bytes.extend(result.target_bytes for result in kept)
        self._counts += np.bincount(ids[targets], minlength=len(self._counts))
        self._notes.update(note for result in kept for note in result.notes)

    def _refused(self, row: BadRow, number: int) -> Encoded:
        self._bad[len(self._lengths) + number] = row.reason
        if len(self._examples) < _EXAMPLES:
            self._examples.append((row.origin, row.reason, row.detail))
        return Encoded(np.zeros(0, dtype=np.int32), None, 0, ())

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        for file in (self._tokens, self._masks):
            if file is not None:
                file.close()
        if kind is None:
            np.save(self._folder / "borders.npy", np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]).astype(np.int64))
            np.save(self._folder / "target_bytes.npy", np.array(self._target_bytes, dtype=np.int64))
            np.save(self._folder / "target_counts.npy", self._counts)
            about = {"type": np.dtype(self._type).str, "bad": self._bad, "notes": self._notes, "examples": self._examples}
            (self._folder / "about.json").write_text(json.dumps(about))


def _all_but_first(length: int) -> np.ndarray:
    return np.arange(length) > 0


def _open(found: Survey, folder: Path) -> Tokenised:
    about = json.loads((folder / "about.json").read_text())
    masks = folder / "targets.bin"
    sequences = Sequences(
        tokens=_mapped(folder / "tokens.bin", about["type"]),
        borders=np.load(folder / "borders.npy"),
        targets=_mapped(masks, "?") if masks.exists() else None,
        ids=found.ids,
    )
    return Tokenised(
        sequences,
        np.load(folder / "target_bytes.npy"),
        np.load(folder / "target_counts.npy"),
        {int(row): reason for row, reason in about["bad"].items()},
        about["notes"],
        tuple(tuple(example) for example in about["examples"]),
    )


def _mapped(file: Path, type: str) -> np.ndarray:
    return np.memmap(file, dtype=type, mode="r") if file.stat().st_size else np.zeros(0, dtype=type)
