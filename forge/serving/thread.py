"""Threads that MLX computes in. One that has done its work is used again, so that there are as many as ever worked at one time.

They never end, they park, and a process that exits lets them park first: one that exits while an MLX thread ends, or computes, aborts with
"terminate called without an active exception".
"""

import atexit
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

# forge/__init__.py has run by now and put the fast BLAS in place, which has to be before mlx is first imported.
import mlx.core as mx

# How long an exiting process waits for a step of the models.
_LAST_STEP_S = 30

_lock = threading.Lock()
_parked: list["SimpleQueue[_Work]"] = []  # the inbox of each thread that has nothing to do
_running: set["_Work"] = set()


@dataclass(eq=False)
class _Work:
    run: Callable[[], None]
    stop: Callable[[], None]
    ended: threading.Event = field(default_factory=threading.Event)


def start(run: Callable[[], None], stop: Callable[[], None]) -> threading.Event:
    """Have a thread call `run`; the event is set when it has returned. Where the process exits first, `stop` has it return soon."""
    work = _Work(run, stop)
    with _lock:
        _running.add(work)
        inbox = _parked.pop() if _parked else None
    if inbox is None:
        inbox = SimpleQueue()
        threading.Thread(target=_serve, args=(inbox,), name="forge-generation", daemon=True).start()
    inbox.put(work)
    return work.ended


def _serve(inbox: "SimpleQueue[_Work]") -> None:
    while True:
        work = inbox.get()
        try:
            work.run()
        except Exception:  # a bug; the thread has to park all the same
            traceback.print_exc()
        with suppress(RuntimeError):  # a device that is gone
            mx.clear_cache()
        with _lock:
            _running.remove(work)
            _parked.append(inbox)
        ended = work.ended
        del work
        ended.set()


@atexit.register
def _stop() -> None:
    with _lock:
        running = list(_running)
    for work in running:
        work.stop()
    until = time.monotonic() + _LAST_STEP_S
    for work in running:
        work.ended.wait(max(0.0, until - time.monotonic()))
