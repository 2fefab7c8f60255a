"""Which files a folder or a list gives, in what order, and when they are the same data."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.data.sources.files import Files, folder, listed
from forge.errors import DataError
from forge.spec import BadRow, Conversation, Document

OLD = 1_000_000_000  # seconds


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    place = tmp_path / "notes"
    (place / "b").mkdir(parents=True)
    for name in ("c.md", "a.txt", "b/z.txt", "b/y.MD"):
        (place / name).write_text(f"text of {name}\n", encoding="utf-8")
    (place / "picture.png").write_bytes(b"\x89PNG")
    return place


def ids(rows: Files) -> list[str]:
    return [row.origin for row in rows]


def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock stands an hour later: what was just written counts as old."""
    from forge.data.sources import files

    now = files.time.time_ns()
    monkeypatch.setattr(files.time, "time_ns", lambda: now + 3600 * 10**9)


def test_rows_come_in_the_order_of_relative_names(notes: Path) -> None:
    rows = list(folder(path=str(notes)))
    assert rows == [Document(name, f"text of {name}\n", name) for name in ("a.txt", "b/y.MD", "b/z.txt", "c.md")]


def test_records_are_numbered_by_their_line(notes: Path) -> None:
    (notes / "b" / "data.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}')
    found = {row.origin: row for row in folder(path=str(notes))}
    assert found["b/data.jsonl:3"] == Document("b/data.jsonl:3", "two", "b/data.jsonl:3")
    assert "b/data.jsonl:2" not in found


def test_another_route_to_the_folder_is_the_same_data(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    monkeypatch.chdir(notes.parent)
    monkeypatch.setenv("HOME", str(notes.parent))
    Path("link").symlink_to("notes")
    found = [folder(path=route) for route in (str(notes), "notes", "./notes/", "notes/b/..", "~/notes", "link")]
    assert len({tuple(rows) for rows in found}) == 1
    assert len({rows.fingerprint for rows in found}) == 1


def change_text(place: Path) -> None:
    (place / "a.txt").write_text("other text")


def change_text_and_set_the_clock_back(place: Path) -> None:
    before = (place / "a.txt").stat()
    (place / "a.txt").write_text("TEXT of a.txt\n")
    os.utime(place / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))


def put_another_in_its_place(place: Path) -> None:
    before = (place / "a.txt").stat()
    (place / "new").write_text("TEXT of a.txt\n")
    os.utime(place / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(place / "new", place / "a.txt")


@pytest.mark.parametrize(
    "change",
    [
        change_text,
        change_text_and_set_the_clock_back,
        put_another_in_its_place,
        lambda place: (place / "a.txt").rename(place / "aa.txt"),
        lambda place: (place / "a.txt").unlink(),
        lambda place: (place / "new.txt").touch(),
        lambda place: (place / "new.png").touch(),
    ],
)
def test_the_fingerprint_changes_with_the_files(notes: Path, change: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    before = folder(path=str(notes)).fingerprint
    assert before is not None and before == folder(path=str(notes)).fingerprint
    change(notes)
    assert folder(path=str(notes)).fingerprint not in (before, None)


@pytest.mark.parametrize(
    "knob", [{"format": "text"}, {"text_field": "body"}, {"speakers": {"A": "user"}}, {"encoding": "cp1252"}, {"max_row_mb": 1.0}]
)
def test_the_fingerprint_changes_with_the_knobs(notes: Path, knob: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    assert folder(path=str(notes), **knob).fingerprint != folder(path=str(notes)).fingerprint


def test_there_is_no_fingerprint_while_a_change_could_go_unseen(notes: Path) -> None:
    """The files were written just now; that their time of modification is old does not help."""
    for path in notes.rglob("*.*"):
        os.utime(path, (OLD, OLD))
    assert folder(path=str(notes)).fingerprint is None


def test_what_gives_no_rows_is_counted_by_suffix(notes: Path) -> None:
    for name in (".git/x.txt", "__pycache__/x.txt", "node_modules/x.txt", "x/.hidden.txt", "a.tar.gz", "LICENSE", "b.PNG", "v1.2 final"):
        (notes / name).parent.mkdir(exist_ok=True)
        (notes / name).write_text("x")
    (notes / "other.xml").write_text("<project/>")
    rows = folder(path=str(notes))
    for _ in range(2):  # read again, they are not counted twice
        assert ids(rows) == ["a.txt", "b/y.MD", "b/z.txt", "c.md"]
        assert rows.skipped == {
            "hidden": 2, "__pycache__": 1, "node_modules": 1, ".tar.gz": 1, "none": 1, ".png": 2, "other": 1, ".xml": 1
        }  # fmt: skip


def test_a_linked_folder_is_read_once_and_a_ring_ends(tmp_path: Path) -> None:
    """A folder goes by its own name where it has one below the root, also where a link to it comes first."""
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "deep" / "a.txt").write_text("a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.md").write_text("b")
    (tmp_path / "notes" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "notes" / "again").symlink_to(tmp_path / "notes" / "deep")
    (tmp_path / "notes" / "deep" / "ring").symlink_to(tmp_path / "notes" / "deep")
    (tmp_path / "notes" / "deep" / "up").symlink_to(tmp_path / "notes")
    (tmp_path / "notes" / "self").symlink_to("self")
    (tmp_path / "notes" / "top.txt").symlink_to(tmp_path / "notes" / "deep" / "a.txt")
    rows = list(folder(path=str(tmp_path / "notes")))
    assert [(row.id, row.text) for row in rows if isinstance(row, Document)] == [
        ("deep/a.txt", "a"),
        ("linked/b.md", "b"),
        ("top.txt", "a"),
    ]


def test_what_cannot_be_opened_is_a_bad_row_and_the_others_are_read(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (notes / "gone.txt").symlink_to("nowhere")
    os.mkfifo(notes / "pipe.txt")
    (notes / "closed").mkdir()
    real = os.scandir

    def closed(place: str) -> Any:
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return real(place)

    monkeypatch.setattr(os, "scandir", closed)
    bad = [row for row in folder(path=str(notes)) if isinstance(row, BadRow)]
    assert [(row.origin, row.reason) for row in bad] == [("closed/", "unreadable"), ("gone.txt", "unreadable"), ("pipe.txt", "unreadable")]
    assert "Permission denied" in bad[0].detail and "No such file" in bad[1].detail
    assert all(str(notes) not in row.detail for row in bad)  # another route is the same data


def test_a_file_that_goes_while_the_folder_is_read_is_a_bad_row(notes: Path) -> None:
    rows = iter(folder(path=str(notes)))
    next(rows)
    (notes / "c.md").unlink()
    last = list(rows)[-1]
    assert isinstance(last, BadRow) and last.reason == "unreadable" and last.origin == "c.md"


def test_a_name_that_is_not_utf8_gives_an_id_that_is(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system has no such names")
    assert ids(folder(path=str(tmp_path))) == ["caf\\xe9.txt"]


def test_transcripts_become_conversations_where_speakers_are_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Anna: hi\nBob: hello\n")
    (tmp_path / "b.jsonl").write_text('{"text": "Anna: yes?\\nBob: no"}\n')
    (tmp_path / "c.txt").write_text("")
    a, b, c = folder(path=str(tmp_path), speakers={"Anna": "user", "Bob": "assistant"})
    assert isinstance(a, Conversation) and [m["content"] for m in a.messages] == ["hi", "hello"]
    assert isinstance(b, Conversation) and [m["role"] for m in b.messages] == ["user", "assistant"]
    assert c == Document("c.txt", "", "c.txt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: None, r"path=.*data: there is no such folder"),
        (lambda place: place.write_text("x"), r"path=.*data is a file; give its folder"),
        (lambda place: place.mkdir(), r"it has nothing; what can: text and code, \.json"),
        (lambda place: (place.mkdir(), (place / "a.docx").touch()), r"no file in it can be read: it has \.docx \(1\)"),
    ],
)
def test_a_folder_that_gives_no_rows_is_an_error(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        list(folder(path=str(tmp_path / "data")))


@pytest.mark.parametrize("encoding", ["nonsense", "hex"])
def test_an_unknown_encoding_is_an_error(encoding: str) -> None:
    with pytest.raises(DataError, match=f"encoding={encoding}: Python knows no such text encoding"):
        folder(path=".", encoding=encoding)


def test_a_list_gives_its_files_in_its_order(notes: Path) -> None:
    (notes / "b" / "list.txt").write_bytes(b"\xef\xbb\xbf# mine\n../c.md\r\n\n  z.txt  \n./y.MD\n")
    rows = list(listed(path=str(notes / "b" / "list.txt")))
    assert [(row.id, row.text) for row in rows if isinstance(row, Document)] == [
        ("../c.md", "text of c.md\n"), ("z.txt", "text of b/z.txt\n"), ("y.MD", "text of b/y.MD\n")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("gone.txt", "missing_file"),
        ("\0.txt", "missing_file"),
        ("x" * 5000, "missing_file"),
        ("b", "unreadable"),
        ("picture.png", "unknown_kind"),
    ],
)
def test_a_line_that_names_no_file_to_read_is_a_bad_row_with_its_number(notes: Path, line: str, reason: str) -> None:
    (notes / "list").write_text(f"a.txt\n{line}\nc.md\n")
    rows = list(listed(path=str(notes / "list")))
    assert [type(row) for row in rows] == [Document, BadRow, Document]
    assert isinstance(rows[1], BadRow) and (rows[1].origin, rows[1].reason) == ("list:2", reason)


def test_the_fingerprint_of_a_list_changes_with_its_lines_and_its_files(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settled(monkeypatch)
    seen = set()
    for text in ("a.txt\n", "a.txt\nlater.txt\n"):
        (notes / "list").write_text(text)
        seen.add(listed(path=str(notes / "list")).fingerprint)
    (notes / "later.txt").write_text("now")
    seen.add(listed(path=str(notes / "list")).fingerprint)
    assert len(seen - {None}) == 3


@pytest.mark.parametrize(("text", "message"), [(None, "the list can't be read"), ("# nothing\n\n", "the list names no file")])
def test_a_list_that_gives_no_rows_is_an_error(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "list").write_text(text)
    with pytest.raises(DataError, match=message):
        list(listed(path=str(tmp_path / "list")))
