"""One background thread for all that an open run does now and then: look for a wish to stop, tell that it lives, sample the machine."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress


class Pulse:
    """Does each of `tasks` (the seconds between, what) at once, and again and again until close(). Nobody waits for it.

    What a task raises is passed over, whatever it is: the store is away, say, and the next time may work.
    """

    def __init__(self, *tasks: tuple[float, Callable[[], object]]):
        self._tasks, self._ended = tasks, threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-pulse", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(timeout=1.0)  # a server that does not answer must not hold the end up

    def _work(self) -> None:
        due = [0.0 for _ in self._tasks]
        while not self._ended.wait(max(0.0, min(due) - time.monotonic())):
            for number, (every, task) in enumerate(self._tasks):
                if due[number] <= time.monotonic() and not self.ended:
                    with suppress(Exception):
                        task()
                    due[number] = time.monotonic() + every
