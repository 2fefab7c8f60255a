"""Files below a folder, or named in a list, as rows. What is looked up is a stat a file: 100,000 of them take about a second.

Ids and origins are relative names with /, so that the same folder by another route is the same data.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated

from pydantic import Field

from forge.data.sources.finding import Found, below, named_in
from forge.data.sources.readers import read
from forge.data.sources.readers.rows import Knobs
from forge.errors import DataError
from forge.spec import Row

_CONVERTERS = ("beautifulsoup4", "charset-normalizer", "markdownify", "pypdfium2")  # another version may read another text
_CLOCK_TICK_NS = 2 * 10**9  # the coarsest clock of a file system, FAT's

Limit = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Files:
    """The rows of files, in order. `skipped`: how many files give none, by suffix; known once the rows have been read."""

    find: Callable[[], Found]
    knobs: Knobs
    skipped: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Row]:
        files, skipped = self.find()
        self.skipped.clear()
        self.skipped.update(skipped)
        for file in files:
            if file.wrong:
                yield file.wrong
                continue
            for row in read(file.path, file.name, file.kind, self.knobs):
                if row is None:
                    self.skipped[file.kind.suffix] += 1
                else:
                    yield row

    @property
    def fingerprint(self) -> str | None:
        """Changes whenever the rows or `skipped` may. None where a file changed so lately that its next change might not be seen."""
        now = time.time_ns()
        files, skipped = self.find()
        if any(file.status and _lately(file.status, now) for file in files):
            return None
        digest = hashlib.sha256(repr((self.knobs, sorted(skipped.items()), [version(name) for name in _CONVERTERS])).encode())
        for file in files:
            s = file.status
            state = (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) if s else None
            digest.update(repr((file.name, state, file.wrong)).encode())
        return digest.hexdigest()


def folder(
    *,
    path: str,
    format: str = "auto",
    text_field: str = "text",
    speakers: dict[str, str] | None = None,
    speaker_pattern: str | None = None,
    encoding: str | None = None,
    max_row_mb: Limit = 16.0,
) -> Files:
    """Every file below `path` that can be read, linked folders included, in the order of relative names.

    A row for each text, code file, page (as Markdown), PDF and XML chat; one for each record of JSON, JSON Lines, CSV, TSV and Parquet.
    Hidden files and folders are skipped. The knobs: forge.data.sources.readers.rows.Knobs.
    Raises DataError, when it is read, for a missing folder and one without such files.
    """
    knobs = _knobs(format, text_field, speakers, speaker_pattern, encoding, max_row_mb)
    return Files(lambda: below(path), knobs)


def listed(
    *,
    path: str,
    format: str = "auto",
    text_field: str = "text",
    speakers: dict[str, str] | None = None,
    speaker_pattern: str | None = None,
    encoding: str | None = None,
    max_row_mb: Limit = 16.0,
) -> Files:
    """The files that a text file names, one a line, relative to its folder and in its order. Lines that begin with # are comments.

    Ids are the names as the list has them. The rest is as for `folder`; a file that is missing, or of no kind that can be read, is a
    BadRow. Raises DataError, when it is read, for a missing list and one that names nothing.
    """
    knobs = _knobs(format, text_field, speakers, speaker_pattern, encoding, max_row_mb)
    return Files(lambda: named_in(path), knobs)


def _knobs(
    format: str, text_field: str, speakers: Mapping[str, str] | None, speaker_pattern: str | None, encoding: str | None, max_row_mb: float
) -> Knobs:
    if encoding is not None:
        try:
            "a".encode(encoding)
        except (LookupError, UnicodeError) as error:
            raise DataError(f"encoding={encoding}: Python knows no such text encoding; write one such as utf-8, cp1252, gb18030") from error
    return Knobs(format, text_field, speakers, speaker_pattern, encoding, max_row_mb)


def _lately(status: os.stat_result, now: int) -> bool:
    """The time of change can't be set back; that of modification is coarser on some file systems, and may be set to any."""
    since = now - _CLOCK_TICK_NS
    return status.st_ctime_ns > since or since < status.st_mtime_ns <= now
