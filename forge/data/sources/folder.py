"""A folder of text files, one document a file."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from forge.errors import DataError
from forge.spec import Document

_SUFFIXES = (".txt", ".md")


def documents(*, path: str) -> Iterable[Document]:
    """Every .txt and .md below `path`, linked folders included, as it is but for a byte-order mark, in the order of their relative names.

    Ids are relative to `path`, so that the same folder by another route is the same data.
    Raises DataError for a missing folder, one without such files, and a file that is not UTF-8.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path={path}: there is no such folder")
    files = sorted(_files(folder))
    if not files:
        raise DataError(f"data.path={path}: no file ends in {' or '.join(_SUFFIXES)}")
    for file in files:
        try:
            # newline="": line ends stay what they are. utf-8-sig: a byte-order mark is no text.
            with file.open(encoding="utf-8-sig", newline="") as stream:
                text = stream.read()
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: byte {error.start} is not UTF-8; convert the file or move it away") from error
        except OSError as error:
            raise _unreadable(error) from error
        name = file.relative_to(folder).as_posix()
        yield Document(id=name, text=text, origin=name)


def _files(folder: Path) -> Iterator[Path]:
    """Also below linked folders, each folder once."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error) from error

    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not _known(os.path.join(place, name), seen)]
        yield from (Path(place, name) for name in names if name.lower().endswith(_SUFFIXES))


def _known(place: str, seen: set[str]) -> bool:
    real = os.path.realpath(place)
    known = real in seen
    seen.add(real)
    return known


def _unreadable(error: OSError) -> DataError:
    return DataError(f"{error.filename}: can't be read ({error.strerror}); mend its permissions or move it away")
