"""Files of text and pages, whole and broken; what reading costs."""

import gc
import gzip
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from forge.data.sources.files import folder
from forge.spec import BadRow, Conversation, Document, Row

FRENCH = "Le café est situé à côté de l'église, où les élèves étudient le français. Ça va très bien, merci beaucoup à tous."
RUSSIAN = "Съешь ещё этих мягких французских булок, да выпей чаю. Москва является столицей России и крупнейшим городом."
QUOTED = "It\u2019s a “naïve” quotation of someone who has been to the café, twice."
CHINESE = "人工智能是计算机科学的一个分支它试图了解智能的实质并生产出一种新的能以人类智能相似的方式做出反应的智能机器。"
HUNGARIAN = "Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Az emberek, ésszel és lelkiismerettel bírván."


def rows(place: Path, files: dict[str, bytes], **knobs: Any) -> list[Row]:
    for name, content in files.items():
        (place / name).write_bytes(content)
    return list(folder(path=str(place), **knobs))


def texts(found: Iterable[Row]) -> list[str]:
    """The documents' texts and, in their places, the reasons of the bad rows in brackets."""
    return [f"[{row.reason}]" if isinstance(row, BadRow) else row.text for row in found]


def pdf(*pages: str, encrypted: bool = False) -> bytes:
    """A PDF with a line of Helvetica for each line of each page, by the letter of ISO 32000."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = ["<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>"]
    objects.append("<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>")
    for n, page in enumerate(pages):
        content = "".join(f"BT /F 12 Tf 72 {700 - 20 * k} Td ({line}) Tj ET\n" for k, line in enumerate(page.splitlines()))
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F 3 0 R>>>>/Contents {5 + 2 * n} 0 R>>",
        )
        objects.append(f"<</Length {len(content)}>>\nstream\n{content}\nendstream")
    if encrypted:  # passwords that nothing fits
        objects.append(f"<</Filter/Standard/V 1/R 2/P -4/O<{'41' * 32}>/U<{'42' * 32}>>>")
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    secret = f"/Encrypt {len(objects)} 0 R/ID[<{'43' * 16}><{'43' * 16}>]" if encrypted else ""
    trailer = f"trailer\n<</Size {len(objects) + 1}/Root 1 0 R{secret}>>\nstartxref\n{len(body)}\n%%EOF"
    return body + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


# ---- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["unix\nwindows\r\nold mac\rend  \n\n", "naïve 日本 🙂", "", "a\ufeffb", "\f\v\x1b"])
def test_text_is_kept_as_it_is(tmp_path: Path, text: str) -> None:
    assert texts(rows(tmp_path, {"a.txt": text.encode(), "b.py": text.encode()})) == [text, text]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_a_byte_order_mark_decides_and_is_no_text(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""
    assert texts(rows(tmp_path, {"a.txt": f"{mark}h\né".encode(encoding)}, encoding="cp1252")) == ["h\né"]


@pytest.mark.parametrize("compress", [("gz", gzip.compress), ("zst", lambda data: pa.compress(data, "zstd", asbytes=True))])
def test_compressed_files_are_read_by_the_suffix_before(tmp_path: Path, compress: tuple[str, Any]) -> None:
    suffix, pack = compress
    contents = {
        "a.txt": b"text",
        "b.py": b"code",
        "c.jsonl": b'{"text": "line"}\n',
        "d.json": b'[{"text": "list"}]',
        "e.csv": b"text\ntable\n",
        "f.html": b"<p>page</p>",
    }
    files = {f"{name}.{suffix}": pack(content) for name, content in contents.items()}
    assert texts(rows(tmp_path, files)) == ["text", "code", "line", "list", "table", "page"]


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, {"a.txt.gz": gzip.compress(b"one ") + gzip.compress(b"two")})) == ["one two"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(FRENCH, "latin-1"), (FRENCH, "cp1252"), (QUOTED, "cp1252"), (RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (CHINESE, "gb18030")],
)
def test_an_old_encoding_is_found_where_there_is_no_doubt(tmp_path: Path, text: str, encoding: str) -> None:
    assert texts(rows(tmp_path, {"a.txt": text.encode(encoding), "b.html": text.encode(encoding)})) == [text, text]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("caf\xe9", "latin-1"),
        (FRENCH, "cp850"),
        (HUNGARIAN, "cp1250"),
        (HUNGARIAN, "iso8859-2"),
        ("吾輩は猫である。名前はまだ無い。", "shift_jis"),
    ],
)
def test_an_encoding_in_doubt_is_a_bad_row_and_read_where_it_is_told(tmp_path: Path, text: str, encoding: str) -> None:
    """Each is text in another encoding too: Hungarian's ő is õ in Windows-1252."""
    data = {"a.txt": b"first line\n" + text.encode(encoding)}
    (bad,) = rows(tmp_path, data)
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("a.txt:2", "not_utf8") and "set encoding" in bad.detail
    assert texts(rows(tmp_path, data, encoding=encoding)) == [f"first line\n{text}"]


def test_nothing_is_guessed_for_code(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, {"a.py": FRENCH.encode("latin-1")})) == ["[not_utf8]"]


def test_half_a_text_after_a_mark_is_a_bad_row(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, {"a.txt": b"\xff\xfea"})) == ["[not_utf8]"]


def test_a_nul_is_a_bad_row_with_its_line(tmp_path: Path) -> None:
    (bad,) = rows(tmp_path, {"a.txt": b"one\ntwo\0\n"})
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("a.txt:2", "nul")


def test_a_document_over_the_limit_is_a_bad_row(tmp_path: Path) -> None:
    """0.001 MB are 1,000 bytes."""
    found = rows(tmp_path, {"a.txt": b"x" * 1000, "b.txt": b"x" * 1001, "c.html": b"x" * 1001}, max_row_mb=0.001)
    assert texts(found) == ["x" * 1000, "[too_large]", "[too_large]"]
    assert isinstance(found[1], BadRow) and found[1].detail == "is more than 0.001 MB; split it, or raise max_row_mb"


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.json.zst", "a.csv.gz", "a.html.zst"])
def test_what_is_not_compressed_as_it_says_is_unreadable(tmp_path: Path, name: str) -> None:
    (bad,) = rows(tmp_path, {name: b"not compressed at all, just text"})
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == (name, "unreadable") and str(tmp_path) not in bad.detail


def test_the_rows_before_a_cut_in_compressed_lines_are_used(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d %s"}\n' % (n, os.urandom(50).hex().encode()) for n in range(20_000))
    *used, bad = rows(tmp_path, {"a.jsonl.gz": gzip.compress(lines, 1)[:-100_000]})
    assert len(used) > 1000 and all(isinstance(row, Document) for row in used)
    assert isinstance(bad, BadRow) and bad.reason == "unreadable" and f"after {len(used)} rows" in bad.detail


# ---- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_becomes_markdown(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>no</title><style>p {}</style><script>var x = 1</script></head><body><!-- note -->
        <h2>Title &amp; more</h2><noscript>no</noscript><svg><text>no</text></svg><template>no</template>
        <img src="data:image/png;base64,AAAA" alt="picture">
        <p>snake_case * <b>bold</b> &eacute;</p><ul><li>one</li><li>two</li></ul>
        <pre><code>def f():\n    return 1\n</code></pre>
        <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table></body></html>"""
    (text,) = texts(rows(tmp_path, {"a.html": page.encode()}))
    assert [line for line in text.splitlines() if line] == [
        "## Title & more", "picture", "snake_case * **bold** é", "- one", "- two", "```", "def f():", "    return 1", "```",
        "| a | b |", "| --- | --- |", "| 1 | 2 |",
    ]  # fmt: skip


def test_a_page_says_its_charset(tmp_path: Path) -> None:
    page = '<meta charset="iso-8859-2">\n<p>' + HUNGARIAN + "</p>"
    assert texts(rows(tmp_path, {"a.html": page.encode("iso8859-2")})) == [HUNGARIAN]


def test_a_page_of_scripts_has_no_text_and_an_empty_one_is_empty(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, {"a.html": b"<script>x()</script>", "b.htm": b""})) == ["[no_text]", ""]


def test_a_page_nested_beyond_the_parser_is_a_bad_row(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, {"a.html": b"<div>" * 20_000 + b"x"})) == ["[broken_html]"]


def test_pages_of_a_pdf_are_joined_by_blank_lines(tmp_path: Path) -> None:
    found = texts(rows(tmp_path, {"a.pdf": pdf("One page\nof two divi-\nded lines", "", "caf\xe9")}))
    assert found == ["One page\nof two divided lines\n\ncafé"]


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (pdf(""), "no_text", "OCR"),
        (pdf("x", encrypted=True), "broken_pdf", "encrypted"),
        (b"", "broken_pdf", "anew"),
        (b"%PDF-1.7 oh", "broken_pdf", "anew"),
    ],
)
def test_a_pdf_that_gives_no_text_is_a_bad_row(tmp_path: Path, content: bytes, reason: str, detail: str) -> None:
    (bad,) = rows(tmp_path, {"a.pdf": content})
    assert isinstance(bad, BadRow) and bad.reason == reason and detail in bad.detail


def test_a_pdf_over_the_limit_is_a_bad_row(tmp_path: Path) -> None:
    assert texts(rows(tmp_path, {"a.pdf": pdf(*["x" * 60] * 20)}, max_row_mb=0.001)) == ["[too_large]"]


def test_xml_is_read_where_it_is_a_chat(tmp_path: Path) -> None:
    turns = '<message from="user">é?</message><message from="assistant">!</message>'
    chat = f'<?xml version="1.0" encoding="iso-8859-1"?><conversation>{turns}</conversation>'
    found = rows(tmp_path, {"a.xml": chat.encode("latin-1"), "b.xml": b"<project><message>x</message></project>"})
    assert texts(found) == ["é?\n\n!"] and isinstance(found[0], Conversation)


# ---- cost -------------------------------------------------------------------------------------------------------------


def test_no_file_stays_open(tmp_path: Path) -> None:
    files = {
        "a.pdf": pdf("x"),
        "b.pdf": b"no",
        "c.txt.gz": gzip.compress(b"x"),
        "d.txt.gz": b"no",
        "e.parquet": b"no",
        "f.csv": b"text\nx\n",
    }
    rows(tmp_path, files)  # imports what opens files of its own
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        rows(tmp_path, {})
    iterator = iter(folder(path=str(tmp_path)))
    next(iterator)
    del iterator
    gc.collect()
    assert len(os.listdir("/dev/fd")) <= before  # what others left may go meanwhile


LARGE = """
import resource, sys
from pathlib import Path
from forge.data.sources.files import folder

def peak():  # bytes. Linux hands ru_maxrss down from the parent, and macOS has no /proc
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

list(folder(path=sys.argv[1] + "/small"))
before = peak()
found = [getattr(row, "reason", None) or row.text for row in folder(path=sys.argv[1] + "/large")]
print(found, (peak() - before) / 1e6)
"""


@pytest.mark.slow
def test_memory_stays_near_the_largest_row(tmp_path: Path) -> None:
    """A line of 200 MB, and 200 MB of zeros in 200 kB of gzip, under each suffix that they could stand behind; rows of up to 16 MB."""
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    for name in ("a.jsonl.gz", "a.csv.gz", "a.html.gz", "a.txt.gz"):
        (tmp_path / "small" / name).write_bytes(gzip.compress(b""))
    (tmp_path / "large" / "line.jsonl").write_bytes(b'{"text": "before"}\n' + b"x" * 200_000_000 + b'\n{"text": "after"}\n')
    (tmp_path / "large" / "line.csv").write_bytes(b"text\n" + b'"' + (b"x" * 99_999 + b"\n") * 2000 + b'"\nafter\n')
    bomb = gzip.compress(b"\0" * 10_000_000) * 20
    for name in ("bomb.csv.gz", "bomb.html.gz", "bomb.jsonl.gz", "bomb.txt.gz"):
        (tmp_path / "large" / name).write_bytes(bomb)
    done = subprocess.run([sys.executable, "-c", LARGE, str(tmp_path)], capture_output=True, text=True, check=True)
    found, grown = done.stdout.rsplit(" ", 1)
    assert found == str(["too_large"] * 4 + ["too_large", "after", "before", "too_large", "after"])
    assert float(grown) < 16 * 6
