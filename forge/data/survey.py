"""The one reading of a source: which rows are used, and why others are not. Needs no tokenizer.

Cost: the text is parsed, hashed and looked at by the filters once; memory holds a set of the hashes, some 70 bytes a row. The rows that
are used are kept on disk. A source that says by a `fingerprint` when its rows may have changed is not read again until then.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from forge.data import near
from forge.data.cache import Cache
from forge.data.keys import describe, digest_of
from forge.data.stored import Rows, Usable, Writer, chunks
from forge.errors import DataError
from forge.progress import Work
from forge.settings import NearSpec
from forge.spec import BadRow, Document, Preference, Row

Source = Callable[[], Iterable[Row]]
Filter = Callable[[str], str | None]

_EXAMPLES = 5  # kept for each reason
_CHUNK, _CHUNK_BYTES = 1024, 2**22
_SCHEMA = pa.schema([("id", pa.large_string()), ("key", pa.uint64()), ("bytes", pa.int64())])


@dataclass(frozen=True)
class Survey:
    """The rows of a source that are worth tokenising, in order, and counts of the others by reason.

    rows: themselves, on disk. ids: their names. keys: uint64 (N,), equal for duplicates. bytes: UTF-8 bytes of their text (N,). bad:
    rows that could not be parsed; dropped: rows that were parsed and left out. rows_in = N + bad + dropped. `pairs`: how many of the N
    are preferences. `digest` changes with any row and with what became of it. examples: (where, reason, detail) of the first rows of
    each reason, bad ones before dropped ones.
    """

    name: str
    rows: Iterable[Usable]
    ids: pa.ChunkedArray
    keys: np.ndarray
    bytes: np.ndarray
    signatures: np.ndarray | None
    rows_in: int
    bad: Mapping[str, int]
    dropped: Mapping[str, int]
    skipped: Mapping[str, int]
    pairs: int
    examples: tuple[tuple[str, str, str], ...]
    digest: str


def survey(name: str, source: Source, filters: Mapping[str, Filter], near_spec: NearSpec | None, strict: bool, cache: Cache) -> Survey:
    """Read the source, or what is known of it. `strict`: the first row that can't be parsed raises DataError; else they are counted."""
    rows = source()
    fingerprint = getattr(rows, "fingerprint", None)
    signed = near_spec and (near.scheme(), near_spec.permutations, near_spec.shingle)
    wanted = (str(signed), *map(describe, filters.values()))  # in their order, which decides the reason
    key = f"survey-{digest_of(describe(source), fingerprint, *wanted)}" if fingerprint else None

    def build(folder: Path) -> None:
        with Work(f"reading {name}") as work:
            _Pass(filters, near_spec, strict, folder).run(rows, work)

    found = cache.get(key, build, lambda folder: _open(name, folder))
    if strict and found.bad:
        raise refusal(BadRow(*found.examples[0]))
    return found


def refusal(row: BadRow) -> DataError:
    """The error that a row is under data.bad_rows=error."""
    return DataError(f"{row.origin}: {row.reason}: {row.detail}; or leave such rows out, counted, by data.bad_rows=skip")


class _Reasons:
    """Counts of rows by reason, and the first ones of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[tuple[str, str, str]] = []

    def add(self, reason: str, where: str, detail: str) -> None:
        self.counts[reason] += 1
        if self.counts[reason] <= _EXAMPLES:
            self.examples.append((where, reason, detail))


class _Pass:
    """One reading of a source. What it writes: texts.arrow, rows.arrow (ids, keys, bytes), signatures.npy where near duplicates are
    asked for, counts.json."""

    def __init__(self, filters: Mapping[str, Filter], near_spec: NearSpec | None, strict: bool, folder: Path):
        self._filters, self._near, self._strict, self._folder = filters, near_spec, strict, folder
        self._seen: set[int] = set()
        self._bad, self._dropped = _Reasons(), _Reasons()
        self._digest = hashlib.sha256()
        self._rows_in = self._pairs = 0

    def run(self, rows: Iterable[Row], work: Work) -> None:
        signatures = []
        with (
            pa.OSFile(str(self._folder / "rows.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, _SCHEMA) as table,
            Writer(self._folder / "texts.arrow") as texts_file,
        ):
            for chunk in chunks(self._used(rows), lambda row: row[2], _CHUNK_BYTES, _CHUNK):
                work.done(sum(size for _, _, size in chunk))
                texts_file.add([row for row, _, _ in chunk])
                columns = [[row.id for row, _, _ in chunk], [key for _, key, _ in chunk], [size for _, _, size in chunk]]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
                table.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
                if self._near:
                    texts = [row.text for row, _, _ in chunk]
                    signatures.append(near.signatures(texts, permutations=self._near.permutations, shingle=self._near.shingle))
        if self._near:
            none = np.zeros((0, self._near.permutations), dtype=np.uint32)
            np.save(self._folder / "signatures.npy", np.concatenate([none, *signatures]))
        counts = {
            "rows_in": self._rows_in,
            "bad": self._bad.counts,
            "dropped": self._dropped.counts,
            "skipped": dict(getattr(rows, "skipped", {})),
            "pairs": self._pairs,
            "examples": self._bad.examples + self._dropped.examples,
            "digest": self._digest.hexdigest(),
        }
        (self._folder / "counts.json").write_text(json.dumps(counts))

    def _used(self, rows: Iterable[Row]) -> Iterator[tuple[Usable, int, int]]:
        """Each row with its key, 64 bits of a hash that duplicates share, and the UTF-8 bytes of its text.

        10 million rows have one false duplicate in 370,000 corpora.
        """
        for row in rows:
            self._rows_in += 1
            if isinstance(row, BadRow):
                self._refuse(row)
                continue
            key, text = row.key, row.text
            try:
                encoded, id = text.encode(), row.id.encode()
                content = encoded if isinstance(row, Document) else key.encode()
                mark = hashlib.sha256(content).digest()
                row.origin.encode()
                hashed = int.from_bytes((mark if key == text else hashlib.sha256(key.encode()).digest())[:8], "big")
            except UnicodeEncodeError:
                where = row.origin.encode("utf-8", "backslashreplace").decode()
                self._refuse(BadRow(where, "lone_surrogate", "its text holds half a character, which is no UTF-8; mend the row"))
                continue
            reason = "duplicate" if hashed in self._seen else _why_not(text, self._filters)
            self._identify(id, mark, (reason or "").encode())
            if reason:
                self._dropped.add(reason, row.id, _opening(text))
            else:
                self._seen.add(hashed)
                self._pairs += isinstance(row, Preference)
                yield row, hashed, len(encoded)

    def _refuse(self, row: BadRow) -> None:
        if self._strict:
            raise refusal(row)
        self._bad.add(row.reason, row.origin, row.detail)
        self._identify(*(part.encode("utf-8", "backslashreplace") for part in (row.origin, row.detail, row.reason)))

    def _identify(self, *parts: bytes) -> None:
        """Lengths stand between, so that ids and reasons don't run into each other."""
        self._digest.update(b"".join(len(part).to_bytes(8, "big") + part for part in parts))


def _why_not(text: str, filters: Mapping[str, Filter]) -> str | None:
    if not text or text.isspace():
        return "empty"
    return next((reason for filter in filters.values() if (reason := filter(text))), None)


def _open(name: str, folder: Path) -> Survey:
    table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all()
    counts = json.loads((folder / "counts.json").read_text())
    file = folder / "signatures.npy"
    return Survey(
        name=name,
        rows=Rows(folder / "texts.arrow"),
        ids=table["id"],
        keys=table["key"].to_numpy(),
        bytes=table["bytes"].to_numpy(),
        signatures=np.load(file, mmap_mode="r") if file.exists() else None,
        rows_in=counts["rows_in"],
        bad=counts["bad"],
        dropped=counts["dropped"],
        skipped=counts["skipped"],
        pairs=counts["pairs"],
        examples=tuple(tuple(example) for example in counts["examples"]),
        digest=counts["digest"],
    )


def _opening(text: str) -> str:
    return " ".join(text[:200].split())
