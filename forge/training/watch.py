"""A thread that sees another process of the run end, or mlx.launch, while this one is deep in a message.

There it hears neither an error nor a signal: the ring (mlx 0.32.4) fails what was under way when a connection broke, but keeps for ever
what it is given after that; and mlx.launch passes no signal on that ends itself. Cost: two looks a second.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from forge.errors import TrainingError

_LOOK_S = 0.5
_GRACE_S = 3.0  # how long a message to a process that has ended may take to fail by itself
_FAREWELL_S = 30.0  # how long `farewell` may take


@dataclass
class Watch:
    """Ends this process, with `cause` on stderr and given to `farewell`, once it is waiting() for one of `processes` that has ended.

    `processes` are ids on this machine; with the end of `launcher` this process gets a SIGTERM.
    """

    cause: str
    launcher: int
    processes: Sequence[int]
    farewell: Callable[[str], object] | None = None
    _waits: bool = False

    def start(self) -> None:
        threading.Thread(target=self._look, name="world", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _look(self) -> None:
        launched, in_vain = True, 0.0
        while in_vain < _GRACE_S:
            time.sleep(_LOOK_S)
            if launched and os.getppid() != self.launcher:
                launched = False
                _silence()
                os.kill(os.getpid(), signal.SIGTERM)
            stuck = self._waits and not all(map(psutil.pid_exists, self.processes))
            in_vain = in_vain + _LOOK_S if stuck else 0.0
        threading.Timer(_FAREWELL_S, os._exit, (TrainingError.exit_code,)).start()
        print(f"error: {self.cause}", file=sys.stderr, flush=True)
        if self.farewell:
            self.farewell(self.cause)
        os._exit(TrainingError.exit_code)


def _silence() -> None:
    """Without its launcher a process would fail in its next print: nobody reads the pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if stat.S_ISFIFO(os.fstat(output).st_mode):
            os.dup2(nowhere, output)
