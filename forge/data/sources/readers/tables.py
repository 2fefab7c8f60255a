"""CSV and Parquet: one row a record, one BadRow a wrong one. Memory: a few times the largest row, or a batch of 32 MB."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from forge.data.sources.readers.rows import Flaw, Knobs, batch_rows, batch_values, record
from forge.data.sources.readers.text import Undecodable, line_encoding, lines, strict, too_large
from forge.spec import BadRow, Row


def csv_file(stream: io.BufferedReader, name: str, knobs: Knobs, delimiter: str) -> Iterator[Row]:
    """A header, then one record a row, its fields by name as text. Blank lines are none. Origins name the line that a row starts on."""
    try:
        encoding = line_encoding(stream, knobs.encoding)
    except Undecodable as error:
        yield BadRow(name, "not_utf8", error.detail)
        return
    csv.field_size_limit(max(knobs.limit, csv.field_size_limit()))
    header: list[str] = []
    for number, fields, wrong in _csv_rows(_CsvLines(stream, encoding, knobs.limit), delimiter):
        origin = f"{name}:{number}"
        wrong = wrong or _mismatch(header, fields)
        if header:
            yield record(wrong or dict(zip(header, fields, strict=True)), origin, knobs)
        elif wrong:
            yield BadRow(origin, wrong.reason, f"the header: {wrong.detail}; until then no row of the file is used")
            return
        else:
            header = fields


def _mismatch(header: list[str], fields: list[str]) -> Flaw | None:
    """What is wrong with the fields of a row; with those of the header, where there is none yet."""
    if not header and len(set(fields)) < len(fields):
        return Flaw("broken_csv", "it has one name twice; rename one")
    if header and len(fields) != len(header):
        return Flaw("broken_csv", f"{len(fields)} fields where the header has {len(header)}; quote fields that hold the delimiter")
    return None


class _Refused(Exception):
    """Carries a Flaw through csv.reader."""

    def __init__(self, flaw: Flaw):
        self.flaw = flaw


class _CsvLines:
    """Lines as text for csv.reader. No generator, which would end with the first exception."""

    def __init__(self, stream: io.BufferedReader, encoding: str, limit: int):
        self._lines, self._encoding, self._limit = lines(stream, limit), encoding, limit
        self.number = self._held = self._quotes = 0
        self.wrong: Flaw | None = None

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self._next()
        self._held += len(line)
        if self._held > self._limit + 2:  # a row of several lines, in quotes
            while self._quotes % 2:
                self._next()
            raise _Refused(Flaw("too_large", too_large("", self._limit).detail))
        try:
            return strict(line, self._encoding)
        except Undecodable as error:
            self.wrong = Flaw("not_utf8", error.detail)
            return line.decode("ascii", "replace")

    def _next(self) -> bytes:
        line = next(self._lines)
        self.number += 1
        if line is None:
            raise _Refused(Flaw("too_large", too_large("", self._limit).detail))
        self._quotes += line.count(b'"')
        return line

    def start(self) -> int:
        """The number of the line that comes, which is to start a row."""
        self._held = self._quotes = 0
        self.wrong = None
        return self.number + 1


def _csv_rows(source: _CsvLines, delimiter: str) -> Iterator[tuple[int, list[str], Flaw | None]]:
    """(line that it starts on, fields, what is wrong) of each row."""
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        number = source.start()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except _Refused as refused:
            yield number, [], refused.flaw
        except csv.Error as error:
            yield number, [], Flaw("broken_csv", f'{error}; quote the field, write a quote in it as "", and close it')
        else:
            if fields:
                yield number, fields, source.wrong


def parquet_file(path: str, name: str, knobs: Knobs) -> Iterator[Row]:
    """One record a row, in batches."""
    with open(path, "rb") as stream:
        for number, value in enumerate(_parquet_values(stream, knobs.limit), 1):
            yield record(value, f"{name}:{number}", knobs)


def _parquet_values(stream: io.BufferedReader, limit: int) -> Iterator[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(stream)
        size = sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups))
        for batch in file.iter_batches(batch_rows(size, file.metadata.num_rows), use_threads=False):
            yield from batch_values(batch, limit)
    except (ArrowException, OSError, ValueError) as error:  # ValueError: names of columns that are twice there, or no UTF-8
        yield Flaw("broken_parquet", f"{' '.join(str(error).split())}; the rows from here on are not used: write the file anew")
