"""SIGINT, SIGTERM and SIGHUP, made kind: inside a `patient` block they are noted and the block finishes its step; elsewhere they raise."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from forge.errors import Stopped


class AskedToStop(Stopped):
    """Someone asked by another way than a signal, such as a tag in MLflow. The exit code is that of Ctrl-C, 130."""

    def __init__(self, reason: str):
        super().__init__(signal.SIGINT)
        self.args = (reason,)


class Interrupts:
    """A context manager that installs the handlers and puts the former ones back. Under nohup SIGHUP stays ignored."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._patient = False

    def __enter__(self) -> "Interrupts":
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        self._former = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM, *hangup)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def asked(self) -> str | None:
        """The reason to stop, once a signal was noted."""
        return f"stopped by {signal.Signals(self._noted).name}" if self._noted else None

    @contextmanager
    def patient(
        self, others: Callable[[], str | None] = lambda: None, agree: Callable[[str | None], str | None] = lambda reason: reason
    ) -> Iterator[Callable[[], str | None]]:
        """Inside, the first signal is only noted; it is raised as Stopped at the end. A second one is raised at once.

        Gives what answers whether to stop, by a signal or by `others`, whose reason is raised as AskedToStop once it was given out.
        `agree` makes one process's reason that of all that train together.
        """
        given: list[str] = []

        def asked() -> str | None:
            reason = agree(self.asked() or others())
            if reason and not self._noted:
                given.append(reason)
            return reason

        self._patient = True
        try:
            yield asked
        finally:
            self._patient = False
        if self._noted:
            raise Stopped(self._noted)
        if given:
            raise AskedToStop(given[0])

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._patient and self._noted is None:
            self._noted = number
            print("\nforge: stopping after this step; once more to stop at once", file=sys.stderr)
        else:
            raise Stopped(number)
