"""A run's metrics on disk: one line of JSON a report, only ever appended to.

    <run>/history.jsonl    [step, {metric: value}] a line

A save writes and flushes the lines since the last one, whatever the run's length: the digest of all lines runs along. What a checkpoint
says of its past is a Mark, so a file that is longer (a kill came between the lines and their checkpoint) is cut there by the next life.
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forge.errors import TrainingError
from forge.spec import Metrics

NAME = "history.jsonl"


@dataclass(frozen=True)
class Mark:
    """A place in a history: how many bytes and lines stand before it, and the sha256 of those bytes."""

    bytes: int
    lines: int
    sha256: str


class History:
    """The history of the run in `folder`, and how far it is written."""

    def __init__(self, folder: Path):
        self._path, self._bytes, self._lines, self._sha256 = folder / NAME, 0, 0, hashlib.sha256()

    def append(self, points: Sequence[tuple[int, Metrics]]) -> Mark:
        """Write those of a run's `points` that are not written yet. Raises OSError, also where lines written before are gone."""
        added = "".join(f"{json.dumps(point)}\n" for point in points[self._lines :]).encode()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b") as stream:
            if os.fstat(stream.fileno()).st_size < self._bytes:
                raise OSError(errno.EIO, f"{NAME} was cut since the last save")
            stream.truncate(self._bytes)  # what a save that failed or an abandoned checkpoint left behind
            stream.seek(self._bytes)
            stream.write(added)
            stream.flush()
            os.fsync(stream.fileno())
        self._bytes, self._lines = self._bytes + len(added), len(points)
        self._sha256.update(added)
        return Mark(self._bytes, self._lines, self._sha256.hexdigest())

    def read(self, mark: Mark, beside: Path) -> list[tuple[int, Metrics]]:
        """The points before `mark`, behind which the next append cuts. A run without a history takes the one in the folder `beside`.

        Raises TrainingError where the bytes before the mark are not the ones that were written.
        """
        source = self._path if self._path.exists() else beside / NAME
        kept = _beginning(source, mark.bytes)
        digest = hashlib.sha256(kept)
        if digest.hexdigest() != mark.sha256:
            raise TrainingError(f"{source}: its first {mark.bytes} bytes are not what was written; put a copy that is back in its place")
        if source != self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(kept)
        self._bytes, self._lines, self._sha256 = mark.bytes, mark.lines, digest
        return [(step, metrics) for step, metrics in map(json.loads, kept.splitlines())]


def _beginning(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(size)
    except FileNotFoundError:
        return b""
