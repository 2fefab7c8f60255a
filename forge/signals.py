"""SIGINT, SIGTERM and SIGHUP, made kind: inside a `patient` block they are noted and the block finishes its step; elsewhere they raise."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from forge.errors import Stopped


class Interrupts:
    """A context manager that installs the handlers and puts the former ones back."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._patient = False

    def __enter__(self) -> "Interrupts":
        self._former = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def asked(self) -> str | None:
        """The reason to stop, once a signal was noted."""
        return f"stopped by {signal.Signals(self._noted).name}" if self._noted else None

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Inside, the first signal is only noted; it is raised as Stopped at the end. A second one is raised at once."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        if self._noted:
            raise Stopped(self._noted)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._patient and self._noted is None:
            self._noted = number
            print("\nforge: stopping after this step; once more to stop at once", file=sys.stderr)
        else:
            raise Stopped(number)
