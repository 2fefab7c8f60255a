"""Files of records, whole and broken: JSON Lines, JSON, CSV, Parquet."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forge.data.sources.files import folder
from forge.spec import BadRow, Conversation, Row


def rows(place: Path, files: dict[str, bytes], **knobs: Any) -> list[Row]:
    for name, content in files.items():
        (place / name).write_bytes(content)
    return list(folder(path=str(place), **knobs))


def texts(found: Iterable[Row]) -> list[str]:
    """The documents' texts and, in their places, the reasons of the bad rows in brackets."""
    return [f"[{row.reason}]" if isinstance(row, BadRow) else row.text for row in found]


def test_each_bad_line_of_json_lines_is_one_bad_row_and_the_others_are_used(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "1"}', b'{"text": ', b"", b'{"text": "caf\xe9"}', b" \t\r", b'{"text": "nul \0"}', b'{"text": "\\ud800"}',
        b'{"text": "\\u0000"}', b"[" * 100_000, b"9" * 5000, b"x" * 1_000_001, b"17", b'{"text": "\\ud83d\\ude42"}\r', b'{"text": "end"}',
    ]  # fmt: skip
    found = rows(tmp_path, {"a.jsonl": b"\n".join(lines)}, max_row_mb=1)
    assert [(row.origin.removeprefix("a.jsonl:"), text) for row, text in zip(found, texts(found), strict=True)] == [
        ("1", "1"), ("2", "[broken_json]"), ("4", "[not_utf8]"), ("6", "[nul]"), ("7", "[not_utf8]"), ("8", "[nul]"),
        ("9", "[broken_json]"), ("10", "[broken_json]"), ("11", "[too_large]"), ("12", "[not_an_object]"), ("13", "🙂"), ("14", "end"),
    ]  # fmt: skip
    assert isinstance(found[1], BadRow) and found[1].detail.startswith("column 10: Expecting value")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize(("length", "text"), [(1000, "x" * 988), (1001, "[too_large]")])
def test_the_limit_of_a_line_does_not_count_its_end(tmp_path: Path, end: bytes, length: int, text: str) -> None:
    """{"text": ""} takes 12 bytes."""
    line = b'{"text": "' + b"x" * (length - 12) + b'"}'
    assert texts(rows(tmp_path, {"a.jsonl": line + (end + line if end else b"")}, max_row_mb=0.001)) == [text] * (2 if end else 1)


def test_a_carriage_return_at_the_limit_ends_no_line(tmp_path: Path) -> None:
    line = b'{"text": "x"}' + b" " * 987 + b"\r" + b" " * 500 + b"\n"
    assert texts(rows(tmp_path, {"a.jsonl": line + b'{"text": "next"}'}, max_row_mb=0.001)) == ["[too_large]", "next"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_utf16_records_are_one_bad_row_that_says_so(tmp_path: Path, name: str) -> None:
    (bad,) = rows(tmp_path, {name: 'text\n{"text": "x"}\n'.encode("utf-16")})
    assert isinstance(bad, BadRow) and bad.reason == "not_utf8" and "UTF-16-LE" in bad.detail


def test_records_take_the_encoding_that_is_told(tmp_path: Path) -> None:
    data = {"a.csv": "text\ncafé\n".encode("cp1252"), "b.json": b'{"text": "\xe9"}', "c.jsonl": b'{"text": "\xe9"}'}
    assert texts(rows(tmp_path, data, encoding="cp1252")) == ["café", "é", "é"]


def test_json_is_a_list_of_records_or_one(tmp_path: Path) -> None:
    many = [{"text": "1"}, {"text": 2}, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    found = rows(tmp_path, {"a.json": json.dumps(many).encode("utf-16"), "b.json": b'{"text": "one"}', "c.json": b"[]"})
    assert texts(found) == ["1", "[wrong_type]", "q\n\na", "one"]
    assert [row.origin for row in found] == ["a.json:1", "a.json:2", "a.json:3", "b.json:1"]
    assert isinstance(found[2], Conversation)


@pytest.mark.parametrize(
    ("content", "origin", "detail"),
    [(b'[{"text": "1"},\n {"text" "2"}]', "a.json:2", "line 2, column 10: Expecting ':' delimiter; mend the file"),
     (b'{"text": "1"}\n{"text": "2"}\n', "a.json:2", "line 2, column 1: Extra data; with one record a line, name the file .jsonl"),
     (b"", "a.json:1", "line 1, column 1: Expecting value; mend the file"),
     (b"[" * 100_000, "a.json:1", "line 1, column 1: nested too deeply; mend the file")],
)  # fmt: skip
def test_broken_json_says_where(tmp_path: Path, content: bytes, origin: str, detail: str) -> None:
    (bad,) = rows(tmp_path, {"a.json": content})
    assert bad == BadRow(origin, "broken_json", detail)


def test_a_json_record_over_the_limit_is_a_bad_row_and_the_others_are_used(tmp_path: Path) -> None:
    content = json.dumps([{"text": "short"}, {"text": "x" * 2000}, {"text": "last"}]).encode()
    assert texts(rows(tmp_path, {"a.json": content}, max_row_mb=0.001)) == ["short", "[too_large]", "last"]


def test_json_too_large_to_be_read_whole_says_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge.data.sources.readers import records

    monkeypatch.setattr(records, "MAX_JSON_MB", 1)
    (bad,) = rows(tmp_path, {"a.json": b" " * 1_000_001})
    assert isinstance(bad, BadRow) and bad.reason == "too_large" and "JSON Lines" in bad.detail


def test_csv_is_read_by_its_header(tmp_path: Path) -> None:
    table = '\ufefftext,n\r\n"a ""quoted"", text\r\nof two lines",1\r\n\r\nplain,2\n'.encode()
    found = rows(tmp_path, {"a.csv": table, "b.tsv": b"n\ttext\n1\ta, b\n", "c.csv": b"", "d.csv": b"text\n"})
    assert texts(found) == ['a "quoted", text\r\nof two lines', "plain", "a, b"]
    assert [row.origin for row in found] == ["a.csv:2", "a.csv:5", "b.tsv:2"]


def test_each_bad_row_of_csv_is_one_and_the_others_are_used(tmp_path: Path) -> None:
    lines = [
        b"text,n", b"one,1", b"caf\xe9,2", b"too,many,3", b"few", b'"a"b,4', b"nul\0,5", b"x" * 1001 + b",6",
        b'"' + b"y" * 600, b"z" * 600, b'",7', b"two,8", b'"open,9', b"swallowed,10",
    ]  # fmt: skip
    found = rows(tmp_path, {"a.csv": b"\n".join(lines)}, max_row_mb=0.001)
    assert [(row.origin.removeprefix("a.csv:"), text) for row, text in zip(found, texts(found), strict=True)] == [
        ("2", "one"), ("3", "[not_utf8]"), ("4", "[broken_csv]"), ("5", "[broken_csv]"), ("6", "[broken_csv]"), ("7", "[nul]"),
        ("8", "[too_large]"), ("9", "[too_large]"), ("12", "two"), ("13", "[broken_csv]"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "reason"), [(b"text,text", "broken_csv"), (b'"text"x', "broken_csv"), (b"t\xe9xt", "not_utf8"), (b"x" * 1001, "too_large")]
)
def test_a_csv_without_a_header_that_can_be_used_is_one_bad_row(tmp_path: Path, header: bytes, reason: str) -> None:
    (bad,) = rows(tmp_path, {"a.csv": header + b"\n1,2\n3,4\n"}, max_row_mb=0.001)
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("a.csv:1", reason) and "no row of the file is used" in bad.detail


def test_a_field_longer_than_the_csv_modules_own_limit_is_read(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, {"a.csv": b"text\n" + b"x" * 200_000})) == ["x" * 200_000]


def test_parquet_keeps_lists_of_structs(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    pq.write_table(pa.table({"messages": [turns] * 3000, "n": range(3000)}), tmp_path / "a.parquet", row_group_size=700)
    found = rows(tmp_path, {})
    assert [row.origin for row in found] == [f"a.parquet:{n}" for n in range(1, 3001)]
    assert all(isinstance(row, Conversation) and list(row.messages) == turns for row in found)


def test_a_bad_row_of_parquet_leaves_the_others(tmp_path: Path) -> None:
    column = pa.array([b"one", b"caf\xe9", b"x" * 2000, None, b"last"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert texts(rows(tmp_path, {}, max_row_mb=0.001)) == ["one", "[not_utf8]", "[too_large]", "[no_format]", "last"]


def test_parquet_that_breaks_gives_the_rows_before_and_says_where(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": [f"{n} {'x' * 50}" for n in range(3000)]}), tmp_path / "a.parquet", row_group_size=1000, compression="zstd"
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    place = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0).data_page_offset
    data[place : place + 40] = b"\xff" * 40
    *used, bad = rows(tmp_path, {"a.parquet": bytes(data)})
    assert len(used) >= 1000
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == (f"a.parquet:{len(used) + 1}", "broken_parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table at all", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_what_is_no_parquet_is_a_bad_row(tmp_path: Path, content: bytes) -> None:
    assert texts(rows(tmp_path, {"a.parquet": content})) == ["[broken_parquet]"]
