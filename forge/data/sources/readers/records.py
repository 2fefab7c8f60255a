"""JSON Lines and JSON: one row a record, one BadRow a wrong one.

Memory: a few times the largest row; but JSON is read whole, up to 256 MB, and takes about five times as much when parsed.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

from forge.data.sources.readers.rows import Knobs, larger, record
from forge.data.sources.readers.text import NUL, Undecodable, decode, line_encoding, lines, strict, too_large, whole
from forge.spec import BadRow, Row

MAX_JSON_MB = 256


class _Broken(Exception):
    """Text that is no JSON. `line` and `column` count from 1."""

    def __init__(self, line: int, column: int, what: str):
        super().__init__(what)
        self.line, self.column, self.what = line, column, what


def json_lines(stream: io.BufferedReader, name: str, knobs: Knobs) -> Iterator[Row]:
    """One record a line; blank lines are none."""
    try:
        encoding = line_encoding(stream, knobs.encoding)
    except Undecodable as error:
        yield BadRow(name, "not_utf8", error.detail)
        return
    for number, line in enumerate(lines(stream, knobs.limit), 1):
        if line is None:
            yield too_large(f"{name}:{number}", knobs.limit)
        elif not line.isspace():
            yield _json_line(line, f"{name}:{number}", encoding, knobs)


def _json_line(line: bytes, origin: str, encoding: str, knobs: Knobs) -> Row:
    if b"\0" in line:
        return BadRow(origin, *NUL)
    try:
        value = _parsed(strict(line.rstrip(b"\r\n"), encoding))
    except Undecodable as error:
        return BadRow(origin, "not_utf8", error.detail)
    except _Broken as error:
        return BadRow(origin, "broken_json", f"column {error.column}: {error.what}; mend the line, or take it out")
    return record(value, origin, knobs)


def json_file(stream: io.BufferedReader, name: str, knobs: Knobs) -> Iterator[Row]:
    """A list of records, or one record."""
    data = whole(stream, MAX_JSON_MB * 10**6)
    if data is None:
        advice = "write it as JSON Lines (.jsonl), one record a line"
        yield BadRow(name, "too_large", f"is more than {MAX_JSON_MB} MB, and JSON has to be read whole; {advice}")
        return
    try:
        value = _parsed(decode(data, knobs.encoding))
    except Undecodable as error:
        yield BadRow(f"{name}:{error.line}", "not_utf8", error.detail)
        return
    except _Broken as error:
        advice = "with one record a line, name the file .jsonl" if error.what == "Extra data" else "mend the file"
        yield BadRow(f"{name}:{error.line}", "broken_json", f"line {error.line}, column {error.column}: {error.what}; {advice}")
        return
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        origin = f"{name}:{number}"
        oversized = len(data) > knobs.limit and larger(item, knobs.limit)
        yield too_large(origin, knobs.limit) if oversized else record(item, origin, knobs)


def _parsed(text: str) -> Any:
    """Raises _Broken."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _Broken(error.lineno, error.colno, error.msg) from error
    except ValueError as error:
        raise _Broken(1, 1, "a number of too many digits") from error
    except RecursionError as error:
        raise _Broken(1, 1, "nested too deeply") from error
