"""A folder of text files."""

import os
from pathlib import Path
from typing import Any

import pytest

from forge.data.sources.folder import documents
from forge.data.split import split
from forge.errors import DataError


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "b").mkdir(parents=True)
    for name in ("c.md", "a.txt", "b/z.txt", "b/y.MD"):
        (folder / name).write_text(f"text of {name}\n", encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def test_one_document_a_text_file_in_order_of_name(notes: Path) -> None:
    found = list(documents(path=str(notes)))
    assert [document.id for document in found] == ["a.txt", "b/y.MD", "b/z.txt", "c.md"]
    assert [document.text for document in found] == [f"text of {document.id}\n" for document in found]
    assert [document.origin for document in found] == [document.id for document in found]


def test_another_route_to_the_folder_is_the_same_data(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notes.parent)
    monkeypatch.setenv("HOME", str(notes.parent))
    routes = (str(notes), "notes", "./notes/", "notes/b/..", "~/notes")
    digests = {split({"notes": documents(path=route)}, 0.5, seed=0)["notes"].digest for route in routes}
    assert len(digests) == 1


def test_line_ends_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "mixed.txt").write_bytes(b"unix\nwindows\r\nold mac\rend")
    (document,) = documents(path=str(tmp_path))
    assert document.text == "unix\nwindows\r\nold mac\rend"


def test_text_beyond_ascii_is_read_as_utf8(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes("naïve 日本 🙂".encode())
    (document,) = documents(path=str(tmp_path))
    assert document.text == "naïve 日本 🙂"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path=.*nowhere: there is no such folder"):
        list(documents(path=str(tmp_path / "nowhere")))


def test_a_file_is_no_folder(notes: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        list(documents(path=str(notes / "a.txt")))


def test_a_folder_without_text_says_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"no file ends in \.txt or \.md"):
        list(documents(path=str(tmp_path)))


def test_a_file_that_is_not_utf8_is_named_with_the_byte(notes: Path) -> None:
    (notes / "b" / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin\.txt: byte 3 is not UTF-8"):
        list(documents(path=str(notes)))


def test_a_linked_folder_is_read_once_and_a_ring_ends(tmp_path: Path) -> None:
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "deep" / "a.txt").write_text("a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.md").write_text("b")
    (tmp_path / "notes" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "notes" / "deep" / "ring").symlink_to(tmp_path / "notes" / "deep")
    (tmp_path / "notes" / "top.txt").write_text("top")
    (tmp_path / "notes" / "deep" / "up").symlink_to(tmp_path / "notes")
    assert [d.id for d in documents(path=str(tmp_path / "notes"))] == ["deep/a.txt", "linked/b.md", "top.txt"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    real = os.scandir

    def closed(place: str) -> Any:
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return real(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"closed: can't be read \(Permission denied\)"):
        list(documents(path=str(tmp_path)))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert [d.text for d in documents(path=str(tmp_path))] == ["hello"]
