"""Batches made on another thread while the model computes.

Cost: `ahead` batches of memory, and a thread that sleeps once they are there. It hides what making a batch takes, some 20 µs a document,
where the model computes elsewhere: a batch of 1,000 short documents takes 20 ms, of which about 5 stay, since making one is mostly Python
and shares its lock. On a CPU a step takes so much longer that nothing is gained.
"""

import threading
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from forge.spec import Batch, Batches

_PATIENCE_S = 2.0  # how long closing waits for a batch that is being made


@dataclass(frozen=True)
class _Made:
    """What one next() gave, or the error that it raised, and the cursor behind it."""

    outcome: Batch | BaseException
    cursor: int


@dataclass
class _Shared:
    """What the owner and the thread share, under `changed`. The thread holds this and never the owner, so that the owner can be forgotten.

    `seek`: where the thread has to go on from. `round` tells what was read before a seek from what was read after it.
    """

    ahead: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    ready: deque[_Made] = field(default_factory=deque)
    seek: int | None = None
    round: int = 0
    failed: bool = False
    closed: bool = False

    def wanted(self) -> bool:
        return self.closed or self.seek is not None or (len(self.ready) < self.ahead and not self.failed)


class Prefetched(Batches):
    """`batches`, read `ahead` at a time, and until it is closed by this alone. Use as a context manager, or close().

    The cursor is that of what was consumed: setting it drops what was read ahead. An error of theirs is raised in the next() that would
    have met it, and a further next() tries again. No thread runs before the first next().
    """

    def __init__(self, batches: Batches, ahead: int = 2):
        self._batches, self._cursor = batches, batches.cursor
        self._shared = _Shared(ahead, seek=batches.cursor)
        self._thread = threading.Thread(target=_read, args=(batches, self._shared), name="prefetch", daemon=True)
        self._finish = weakref.finalize(self, _close, self._shared, self._thread)  # also at exit, before threads are cut off

    @property
    def cursor(self) -> int:
        return self._cursor

    @cursor.setter
    def cursor(self, value: int) -> None:
        self._cursor = value
        self._go_on_from(value)

    def next(self) -> Batch:
        shared = self._shared
        if self._thread.ident is None and not shared.closed:
            self._thread.start()
        with shared.changed:
            shared.changed.wait_for(lambda: shared.ready or shared.closed)
            if shared.closed:
                raise RuntimeError("these batches are closed")
            made = shared.ready.popleft()
            self._cursor = made.cursor
            shared.changed.notify_all()
        if isinstance(made.outcome, Batch):
            return made.outcome
        self._go_on_from(self._cursor)
        raise made.outcome

    def epochs(self, cursor: int) -> Mapping[str, float]:
        return self._batches.epochs(cursor)

    def close(self) -> None:
        """End the thread and leave `batches` where this was; next() then raises RuntimeError. More than once is fine."""
        if self._finish.alive:
            self._finish()
            if not self._thread.is_alive():
                self._batches.cursor = self._cursor

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _go_on_from(self, cursor: int) -> None:
        with self._shared.changed:
            self._shared.ready.clear()
            self._shared.seek, self._shared.failed = cursor, False
            self._shared.round += 1
            self._shared.changed.notify_all()


def _read(batches: Batches, shared: _Shared) -> None:
    """The thread: seek where asked, read while there is room, stop at an error until there is a seek."""
    while True:
        with shared.changed:
            shared.changed.wait_for(shared.wanted)
            if shared.closed:
                return
            seek, shared.seek, number = shared.seek, None, shared.round
        made = _next(batches, seek)
        with shared.changed:
            if number == shared.round:
                shared.ready.append(made)
                shared.failed = isinstance(made.outcome, BaseException)
                shared.changed.notify_all()
        del made  # else the thread would keep what was consumed alive


def _next(batches: Batches, seek: int | None) -> _Made:
    outcome: Batch | BaseException
    try:
        if seek is not None:
            batches.cursor = seek
        outcome = batches.next()
    except BaseException as error:  # whatever it is, the one who asked for the batch has to see it
        outcome = error
    return _Made(outcome, batches.cursor)


def _close(shared: _Shared, thread: threading.Thread) -> None:
    with shared.changed:
        shared.closed = True
        shared.ready.clear()
        shared.changed.notify_all()
    if thread.ident is not None and thread is not threading.current_thread():  # a garbage collection may run on any thread
        thread.join(_PATIENCE_S)
