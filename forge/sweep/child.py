"""A child of a sweep: `python -m forge.sweep.child ARGUMENTS` is `python -m forge.train ARGUMENTS` that stops kindly, with a checkpoint,
once whoever started it is gone. run() starts one, and waits for its end.

A process of its own costs the start of one (imports, Hydra, MLflow), and what kills it kills nothing else.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from forge.sweep.launch import Ended, Job

Process = subprocess.Popen[bytes]

_LOOK_EVERY_S = 0.2
_TAIL = 4000  # bytes


def run(job: Job, echo: Callable[[str], None] | None = None, started: Callable[[Process], None] | None = None) -> Ended:
    """Start the child, and wait for its end. All that it prints goes to the log; `echo` gets each line too. `started`: told the process.

    The child has a session of its own, so that a terminal's Ctrl-C reaches it through its parent alone.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        begin = log.tell()
        # Its input is a pipe that this process holds open as long as it lives. Its output is no pipe: it has to outlive this process.
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *job.arguments],
            cwd=job.folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **job.environment},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with process:
        if started:
            started(process)
        if echo:
            _follow(process, job.log, begin, echo)
        code = process.wait()
    return Ended(code, _tail(job.log, begin))


def _follow(process: Process, file: Path, begin: int, echo: Callable[[str], None]) -> None:
    """Hand on each line until the process ends."""
    with file.open("rb") as log:
        log.seek(begin)
        rest = b""
        while process.poll() is None:
            rest = _lines(log, rest, echo)
            time.sleep(_LOOK_EVERY_S)
        rest = _lines(log, rest, echo)
        if rest:
            echo(_text(rest))


def _lines(log: IO[bytes], rest: bytes, echo: Callable[[str], None]) -> bytes:
    """Hand on the whole lines that have come; what is left of the last one."""
    *lines, rest = (rest + log.read()).split(b"\n")
    for line in lines:
        echo(_text(line))
    return rest


def _tail(file: Path, begin: int) -> str:
    with file.open("rb") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(begin, size - _TAIL))
        return _text(log.read())


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").rstrip()


def _outlive_nobody() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_outlive_nobody, name="parent", daemon=True).start()
    runpy.run_module("forge.train", run_name="__main__", alter_sys=True)
