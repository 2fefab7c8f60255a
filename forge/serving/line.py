"""What passes between the generation thread and those who ask."""

import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from forge.errors import ForgeError, ServingError
from forge.serving.contract import Completion, Piece, Sampling, Stats
from forge.serving.faults import Cancelled, TimedOut
from forge.serving.prompt import Prompt

Listener = Callable[[Piece | Completion | Exception], None]


@dataclass(eq=False)
class Request:
    prompt: Prompt | list[int]
    sampling: Sampling
    deadline: float | None  # on time.monotonic's clock
    listener: Listener | None
    future: "Future[Completion]" = field(default_factory=Future)
    cancelled: bool = False

    def fault(self) -> ServingError | None:
        """Why to go on no more."""
        if self.cancelled:
            return Cancelled("this request was cancelled")
        if self.deadline is not None and time.monotonic() > self.deadline:
            return TimedOut("not finished within the server's time limit: lower `max_tokens`, or give the server a longer one")
        return None

    def show(self, piece: Piece) -> None:
        if self.listener is not None:
            self.listener(piece)

    def answer(self, completion: Completion) -> None:
        if self.listener is not None:
            self.listener(completion)
        self.future.set_result(completion)

    def fail(self, error: Exception) -> None:
        error = detached(error)
        if self.listener is not None:
            with suppress(Exception):  # it may be the listener that failed
                self.listener(error)
        self.future.set_exception(error)


def detached(error: Exception) -> Exception:
    """Without the frames, which hold the model and arrays that only the generation thread may destroy; a bug's are kept as text."""
    if not isinstance(error, ForgeError):
        error.add_note("".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


@dataclass(eq=False)
class Line:
    """What the thread and its owner share. A None in the inbox ends the service after what is queued before it.

    stop: set to end it after the next token. closed: why it takes no more.
    """

    inbox: "queue.SimpleQueue[Request | None]" = field(default_factory=queue.SimpleQueue)
    stop: threading.Event = field(default_factory=threading.Event)
    stats: Stats = field(default_factory=Stats)
    closed: ServingError | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, request: Request) -> None:
        """Raises why it takes no more."""
        with self._lock:
            if self.closed is None:
                self.inbox.put(request)
                return
        raise again(self.closed)

    def halt(self) -> None:
        self.stop.set()
        self.inbox.put(None)

    def end(self, why: ServingError) -> None:
        """Nobody serves any more: who came too late gets the reason."""
        with self._lock:
            self.closed = why
        while not self.inbox.empty():
            if (late := self.inbox.get()) is not None:
                late.fail(again(why))


def again(error: ServingError) -> ServingError:
    """The same for another request, since an exception is its raiser's alone."""
    return type(error)(str(error))
