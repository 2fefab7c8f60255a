"""Broken files of every kind: never an exception, and nothing is lost without a word."""

import bz2
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forge.data.sources.files import folder
from forge.spec import BadRow, Row

TURNS = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4, naïvely \u20ac \U0001f642"}]
RECORDS = [{"text": f"row {n} of many \u65e5\u672c"} if n % 3 else {"messages": TURNS, "n": n} for n in range(12)]
LINES = "".join(json.dumps(record, ensure_ascii=n % 2 == 0) + "\n" for n, record in enumerate(RECORDS)).encode()
TABLE = b"text,n\n" + b"".join(b'"a ""quoted"" one, of %d",%d\r\nplain,%d\n\n' % (n, n, n) for n in range(6))
PAGE = b"<!DOCTYPE html><html><head><title>T</title></head><body><h1>A</h1><ul><li>b<table><tr><td>c</td></tr></table></ul></body></html>"
CHAT = b'<?xml version="1.0"?><conversation><message from="user">q &amp; r</message><message from="assistant">a</message></conversation>'
PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Resources<</Font<</F 4 0 R>>>>/Contents 5 0 R>>endobj\n"
    b"4 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\n"
    b"5 0 obj<</Length 33>>stream\nBT /F 12 Tf 9 9 Td (words) Tj ET\nendstream endobj\n"
    b"trailer<</Root 1 0 R>>\n%%EOF"
)


def parquet() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": [f"row {n}" for n in range(40)], "messages": [TURNS] * 40})
    pq.write_table(table, sink, row_group_size=15, compression="zstd")
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


WHOLE = {
    "a.txt": "Some text, naïve and long enough.\n".encode() * 5,
    "a.py": b"def f():\n    return 1\n",
    "a.json": json.dumps(RECORDS).encode(),
    "a.jsonl": LINES,
    "a.csv": TABLE,
    "a.tsv": TABLE.replace(b",", b"\t"),
    "a.html": PAGE,
    "a.xml": CHAT,
    "a.pdf": PDF,
    "a.parquet": parquet(),
    "a.txt.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstd(LINES),
    "a.csv.gz": gzip.compress(TABLE),
    "a.json.zst": zstd(json.dumps(RECORDS).encode()),
    "a.html.gz": gzip.compress(PAGE),
}
FIRST = 4  # bytes at the front that are left alone in line files: a byte-order mark made by chance is one bad row for all lines
PIECES = (b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\r", b"\n\n", b"\\ud800", b"\\u0000", b"[" * 3000, b"<div>" * 2000, b"\xef\xbb\xbf")

Mutation = Callable[[random.Random, bytes], bytes]


def flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        changed[chance.randrange(FIRST, len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(FIRST, len(data))]


def insert(chance: random.Random, data: bytes) -> bytes:
    place = chance.randrange(FIRST, len(data))
    return data[:place] + chance.choice(PIECES) + data[place:]


def repeat(chance: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    place = chance.randrange(len(lines))
    return b"".join(lines[:place] + [lines[place]] * chance.choice((0, 2)) + lines[place + 1 :])


def repack(chance: random.Random, data: bytes) -> bytes:
    return chance.choice((gzip.compress, zstd, bz2.compress))(data)


def noise(chance: random.Random, data: bytes) -> bytes:
    return b"{}" + b"\n" * 2 + chance.randbytes(chance.randrange(1, 3000))


MUTATIONS: tuple[Mutation, ...] = (flip, cut, insert, repeat, repack, noise)


def read(place: Path, name: str, data: bytes) -> tuple[list[Row], int]:
    """The rows, and how many files gave none."""
    for old in place.iterdir():
        old.unlink()
    (place / name).write_bytes(data)
    found = folder(path=str(place), max_row_mb=0.01)
    return list(found), sum(found.skipped.values())


def check(rows: list[Row], name: str, where: str) -> None:
    for row in rows:
        assert row.origin == name or row.origin.startswith(f"{name}:"), where
        if isinstance(row, BadRow):
            assert row.reason.replace("_", "").isalnum() and row.detail and "\n" not in row.detail, (where, row)
        else:
            row.text.encode()
            assert "\0" not in row.text, where


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_broken_file_gives_rows_and_bad_rows_and_never_an_exception(tmp_path: Path, name: str, mutation: Mutation) -> None:
    for seed in range(25):
        data = mutation(random.Random(f"{name} {mutation.__name__} {seed}"), WHOLE[name])
        rows, skipped = read(tmp_path, name, data)
        check(rows, name, f"seed {seed}")
        one_each = name.split(".")[1] in ("txt", "py", "html", "xml", "pdf")
        assert len(rows) + skipped == 1 if one_each else rows or name.startswith(("a.csv", "a.tsv", "a.json")), f"seed {seed}"


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_each_line_that_is_not_blank_is_a_row_or_a_bad_row(tmp_path: Path, mutation: Mutation) -> None:
    for seed in range(50):
        data = mutation(random.Random(f"{mutation.__name__} {seed}"), LINES)
        rows, _ = read(tmp_path, "a.jsonl", data)
        assert len(rows) == sum(1 for line in data.split(b"\n") if line.strip()), f"seed {seed}"
        assert len({row.origin for row in rows}) == len(rows)


@pytest.mark.parametrize("name", WHOLE)
def test_bytes_of_another_kind_under_a_suffix_are_told(tmp_path: Path, name: str) -> None:
    for other, data in WHOLE.items():
        rows, skipped = read(tmp_path, name, data)
        check(rows, name, other)
        assert rows or skipped or "sv" in name, other  # one line of anything is a CSV's header, and no row


def test_whole_files_are_read_without_a_bad_row(tmp_path: Path) -> None:
    """What the mutations start from: one row a document, 12 a list, 12 a table, 40 of Parquet."""
    counts = {name: [isinstance(row, BadRow) for row in read(tmp_path, name, data)[0]] for name, data in WHOLE.items()}
    assert not any(bad for found in counts.values() for bad in found)
    many = {"a.json": 12, "a.jsonl": 12, "a.csv": 12, "a.tsv": 12, "a.parquet": 40, "a.jsonl.zst": 12, "a.csv.gz": 12, "a.json.zst": 12}
    assert {name: len(found) for name, found in counts.items()} == {name: many.get(name, 1) for name in WHOLE}
