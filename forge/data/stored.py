"""Rows on disk: what a source gave and a survey kept, so that files are parsed once. About 40 % of the size of the text (LZ4)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from forge.spec import Conversation, Document, Preference

Usable = Document | Conversation | Preference

_KINDS: tuple[type[Usable], ...] = (Document, Conversation, Preference)
_SCHEMA = pa.schema([("kind", pa.int8()), ("id", pa.large_string()), ("origin", pa.large_string()), ("content", pa.large_string())])


class Writer:
    """A context manager; add() takes some rows at a time, which is what a reader later holds in memory at once."""

    def __init__(self, file: Path):
        self._file = pa.OSFile(str(file), "wb")
        self._table = pa.ipc.new_file(self._file, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._table.close()
        self._file.close()

    def add(self, rows: Sequence[Usable]) -> None:
        columns = [
            [_KINDS.index(type(row)) for row in rows],
            [row.id for row in rows],
            [row.origin for row in rows],
            [_content(row) for row in rows],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        self._table.write_batch(pa.record_batch(arrays, schema=_SCHEMA))


class Rows:
    """The rows of a file, in order, as often as they are asked for; also after the file is deleted, since it is held open."""

    def __init__(self, file: Path):
        self._table = pa.ipc.open_file(pa.OSFile(str(file)))

    def __iter__(self) -> Iterator[Usable]:
        for number in range(self._table.num_record_batches):
            columns = self._table.get_batch(number).to_pydict()
            for kind, id, origin, content in zip(*columns.values(), strict=True):
                yield _row(_KINDS[kind], id, origin, content)


def _content(row: Usable) -> str:
    if isinstance(row, Document):
        return row.text
    return json.dumps({key: value for key, value in asdict(row).items() if key not in ("id", "origin")}, ensure_ascii=False)


def _row(kind: type[Usable], id: str, origin: str, content: str) -> Usable:
    if kind is Document:
        return Document(id, content, origin)
    fields = {key: tuple(value) for key, value in json.loads(content).items()}
    return kind(id=id, origin=origin, **fields)  # type: ignore[arg-type]
