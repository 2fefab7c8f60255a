"""A folder of text files, one document a file."""

from collections.abc import Iterable
from pathlib import Path

from forge.errors import DataError
from forge.spec import Document

_SUFFIXES = (".txt", ".md")


def documents(*, path: str) -> Iterable[Document]:
    """Every .txt and .md below `path`, as it is, in the order of their relative names.

    Ids are relative to `path`, so that the same folder by another route is the same data.
    Raises DataError for a missing folder, one without such files, and a file that is not UTF-8.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.path={path}: there is no such folder")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"data.path={path}: no file ends in {' or '.join(_SUFFIXES)}")
    for file in files:
        try:
            # newline="": line ends stay what they are.
            with file.open(encoding="utf-8", newline="") as stream:
                text = stream.read()
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: byte {error.start} is not UTF-8; convert the file or move it away") from error
        except OSError as error:
            raise DataError(f"{file}: can't be read ({error.strerror}); mend its permissions or move it away") from error
        name = file.relative_to(folder).as_posix()
        yield Document(id=name, text=text, origin=name)
