"""Which files a folder or a list has. A stat a file; nothing is opened. Names are relative, with /."""

import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from forge import paths
from forge.data.sources.readers import READ, Kind, kind_of
from forge.data.sources.readers.text import lines
from forge.errors import DataError
from forge.spec import BadRow

_LEFT_OUT = ("__pycache__", "node_modules", "mlruns")  # the last is where runs write
_LONGEST_PATH = 4096  # bytes


class File(NamedTuple):
    """A file to read, or the row that stands for what can't be."""

    name: str
    path: str
    kind: Kind
    status: os.stat_result | None
    wrong: BadRow | None = None


Found = tuple[list[File], Mapping[str, int]]  # and how many are not read, by suffix


def below(path: str) -> Found:
    root = paths.given("path", path)
    if root.is_file():
        raise DataError(f"path={path} is a file; give its folder, or a list of files to data/source=files")
    if not root.is_dir():
        raise DataError(f"path={path}: there is no such folder")
    files, skipped = _walk(str(root))
    if not files:
        seen = ", ".join(f"{suffix} ({count})" for suffix, count in sorted(skipped.items())) or "nothing"
        raise DataError(f"path={path}: no file in it can be read: it has {seen}; what can: {READ}")
    return sorted(files), skipped


def _walk(root: str) -> Found:
    """Each real folder once: by its own place where that is below `root`, else by the first link to it."""
    files: list[File] = []
    skipped: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    folders: list[tuple[str, str]] = [(root, "")]
    links: list[tuple[str, str]] = []
    while folders or links:
        place, prefix = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                listing = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise DataError(f"path={root}: can't be read ({error.strerror}); mend its permissions") from error
            files.append(_lost(prefix, place, error))
            continue
        for entry in listing:
            name = prefix + _printable(entry.name)
            if entry.name.startswith("."):
                skipped["hidden"] += 1
            elif _is_folder(entry):
                if entry.name in _LEFT_OUT:
                    skipped[entry.name] += 1
                else:
                    (links if entry.is_symlink() else folders).append((entry.path, name + "/"))
            elif (kind := kind_of(entry.name)).name is None:
                skipped[kind.suffix] += 1
            else:
                files.append(_looked_up(name, entry.path, kind))
    return files, skipped


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _looked_up(name: str, path: str, kind: Kind) -> File:
    try:
        status = os.stat(path)
    except OSError as error:
        return _lost(name, path, error)
    if not stat.S_ISREG(status.st_mode):
        return File(name, path, kind, None, BadRow(name, "unreadable", "is no file that holds data; move it away"))
    return File(name, path, kind, status)


def _lost(name: str, path: str, error: OSError) -> File:
    detail = f"{error.strerror}; mend it or its permissions, or move it away"
    return File(name, path, kind_of(name), None, BadRow(name, "unreadable", detail))


def named_in(path: str) -> Found:
    place = paths.given("path", path)
    try:
        with place.open("rb") as stream:
            named = [(number, line) for number, line in enumerate(lines(stream, _LONGEST_PATH), 1)]
    except OSError as error:
        raise DataError(f"path={path}: the list can't be read ({error.strerror}); give a text file that names files") from error
    files = []
    for number, line in named:
        text = os.fsdecode((line or b"").removeprefix(b"\xef\xbb\xbf")).strip()
        if line is None:
            files.append(_missing(f"{place.name}:{number}", f"no path is longer than {_LONGEST_PATH} bytes; name one file a line"))
        elif text and not text.startswith("#"):
            files.append(_entry(f"{place.name}:{number}", text, place.parent))
    if not files:
        raise DataError(f"path={path}: the list names no file; write one a line, relative to the list's folder")
    return files, {}


def _entry(origin: str, text: str, base: Path) -> File:
    target = base / Path(text).expanduser()
    name = _printable(posixpath.normpath(text))
    kind = kind_of(name)
    try:
        exists = target.exists()
    except (OSError, ValueError):
        exists = False
    if not exists:
        return _missing(origin, f"there is no file {name}; mend the line, or take it out")
    if target.is_dir():
        return File(name, str(target), kind, None, BadRow(origin, "unreadable", f"{name} is a folder; name its files, or use data=folder"))
    if kind.name is None:
        return File(name, str(target), kind, None, BadRow(origin, "unknown_kind", f"{name}: only these can be read: {READ}"))
    return _looked_up(name, str(target), kind)


def _missing(origin: str, detail: str) -> File:
    return File(origin, "", kind_of(""), None, BadRow(origin, "missing_file", detail))


def _printable(name: str) -> str:
    """Names of bytes that are no UTF-8 come as halves of surrogate pairs, which no row's id may hold."""
    return re.sub("[\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name) if not name.isascii() else name
