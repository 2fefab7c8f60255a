"""One line of JSON for each request: when, who, what, how much, how long. Prompts only where the operator asked for them.

    {"time": "2026-05-01T09:00:03.120+00:00", "client": "127.0.0.1", "method": "POST", "route": "/v1/completions", "model": "small",
     "status": 200, "prompt_tokens": 12, "completion_tokens": 40, "first_token_s": 0.03, "seconds": 0.61}

Lines are written in a thread of their own: a slow disk, or a terminal that nobody reads, keeps no request waiting.
"""

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from forge.errors import ServingError

_WAITING = 10_000  # lines; those beyond are counted instead
_LAST_LINES_S = 2


@dataclass
class Record:
    """What is known of a request so far. `status` 499: the client left. `body`: as sent, where prompts are wanted."""

    client: str
    method: str
    route: str
    model: str | None = None
    status: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_s: float | None = None
    seconds: float = 0.0
    error: str | None = None
    body: dict[str, Any] | None = None
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def line(self) -> str:
        known = {key: round(value, 4) if isinstance(value, float) else value for key, value in vars(self).items() if value is not None}
        return json.dumps({"time": known.pop("time"), **known})


class Audit:
    """`where`: a file to append to, for its owner alone; "stderr"; None: nowhere. Raises ServingError where it can't be opened."""

    def __init__(self, where: str | None, prompts: bool = False):
        self.prompts = prompts
        self.lost = 0
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        if where:
            stream = sys.stderr if where == "stderr" else _opened(Path(where))
            self._thread = threading.Thread(target=self._write, args=(stream,), name="forge-audit", daemon=True)
            self._thread.start()

    def add(self, record: Record) -> None:
        if self._thread:
            try:
                self._lines.put_nowait(record.line())
            except queue.Full:
                self.lost += 1

    def close(self) -> None:
        """Write what is waiting."""
        if self._thread:
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=_LAST_LINES_S)
            self._thread.join(_LAST_LINES_S)

    def _write(self, stream: TextIO) -> None:
        while (line := self._lines.get()) is not None:
            if not _tried(lambda: stream.write(f"{line}\n") and stream.flush()):
                self.lost += 1
        if stream is not sys.stderr:
            _tried(stream.close)


def _opened(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")
    except OSError as error:
        raise ServingError(f"audit={path}: can't be written ({error.strerror})") from error


def _tried(task: Callable[[], Any]) -> bool:
    """Whether it went well: a full disk ends no service."""
    try:
        task()
    except (OSError, ValueError):
        return False
    return True
