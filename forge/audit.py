"""mlruns/audit.jsonl: what was deleted, moved or overridden, by which process and why; a line of JSON each, only ever appended to.

    {"time": "2026-05-01T09:00:03+00:00", "pid": 4711, "what": "delete checkpoint", "on": "/…/step-00000050", "why": "pruned"}

A line is one write under a lock to a file opened for appending, so that processes don't cut into each other's. Costs some 50 µs. What
can't be written down is said once on stderr, and stops nothing.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from forge import paths

What = Literal["delete checkpoint", "delete cache", "delete model", "register version", "move alias", "override"]

_told = False


def file() -> Path:
    return paths.runs() / "audit.jsonl"


def note(what: What, on: Path | str, why: str) -> None:
    """`on`: the path or uri that it was done to. Write it down after the deed, with nothing secret in it."""
    global _told
    now = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({"time": now, "pid": os.getpid(), "what": what, "on": str(on), "why": why}, ensure_ascii=False)
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file(), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # else the half of a line that another writes would pass for one cut short
            os.write(descriptor, f"{_begin(descriptor)}{line}\n".encode("utf-8", "replace"))
        finally:
            os.close(descriptor)
    except OSError as error:
        if not _told:
            print(f"forge: {file()} can't be written ({error.strerror}), so what is deleted or moved is not noted", file=sys.stderr)
        _told = True


def _begin(descriptor: int) -> str:
    """A new line where a full disk cut the last one short."""
    size = os.fstat(descriptor).st_size
    return "\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else ""


def read() -> Iterator[dict[str, str | int]]:
    """What was noted, the oldest first. A line that a full disk cut short is left out."""
    try:
        lines = file().read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue
