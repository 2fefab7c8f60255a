"""From one text or one record to a row, by the knobs that all sources of files and tables share."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from forge.data.dialogue import from_speakers
from forge.data.formats import to_row
from forge.data.sources.readers import text as texts
from forge.spec import BadRow, Document, Row

_BATCH_BYTES = 32_000_000  # uncompressed


@dataclass(frozen=True)
class Knobs:
    """`format`, `text_field`: see forge.data.formats.to_row. `speakers` (name -> role), `speaker_pattern`: see dialogue.from_speakers.

    `encoding`: of all files; null: UTF-8, else detected. `max_row_mb`: the most that a row may have, in millions of bytes.
    """

    format: str = "auto"
    text_field: str = "text"
    speakers: Mapping[str, str] | None = None
    speaker_pattern: str | None = None
    encoding: str | None = None
    max_row_mb: float = 16.0

    @property
    def limit(self) -> int:
        """Bytes."""
        return max(1, int(self.max_row_mb * 1e6))


@dataclass(frozen=True)
class Flaw:
    """Stands for a value that could not be had."""

    reason: str
    detail: str


def document(text: str, name: str, knobs: Knobs) -> Row:
    """The row of a whole file's text."""
    if wrong := texts.flaw(text):
        line = text.count("\n", 0, text.index("\0")) + 1 if "\0" in text else None
        return BadRow(f"{name}:{line}" if line else name, *wrong)
    return _spoken(Document(name, text, name), knobs)


def record(value: Any, origin: str, knobs: Knobs) -> Row:
    """The row of a record; its id is its origin."""
    if isinstance(value, Flaw):
        return BadRow(origin, value.reason, value.detail)
    return _spoken(to_row(value, origin, origin, format=knobs.format, text_field=knobs.text_field), knobs)


def batch_rows(size: int, rows: int) -> int:
    """How many rows of a table of `size` bytes to take at once."""
    return max(1, min(1024, _BATCH_BYTES * rows // max(1, size)))


def batch_values(batch: Any, limit: int) -> Iterator[Any]:
    """Each row of a pyarrow.RecordBatch as a dict, or a Flaw. Where something is wrong, and only there, row by row."""
    if batch.nbytes <= limit:
        try:
            values = batch.to_pylist()
        except UnicodeDecodeError:
            pass
        else:
            yield from values
            return
    for number in range(batch.num_rows):
        try:
            (value,) = batch.slice(number, 1).to_pylist()
        except UnicodeDecodeError:
            yield Flaw("not_utf8", "there is a text that is not UTF-8; write the row anew as UTF-8")
        else:
            yield Flaw("too_large", texts.too_large("", limit).detail) if larger(value, limit) else value


def larger(value: Any, limit: int) -> bool:
    """Whether the value takes more than `limit` characters as JSON."""
    return len(json.dumps(value, ensure_ascii=False, default=str)) > limit


def _spoken(row: Row, knobs: Knobs) -> Row:
    if knobs.speakers and isinstance(row, Document) and row.text.strip():
        return from_speakers(row.text, row.id, row.origin, knobs.speakers, knobs.speaker_pattern)
    return row
