"""The launcher of this machine: so many children at once, each with its share of the cores.

A child whose share is a single core computes on one; where a GPU does the work, shares don't matter.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import pairwise

from forge.sweep import child
from forge.sweep.launch import Ended, Job


class Pool:
    """A Launcher. `echo(title, line)` gets what the children print."""

    def __init__(self, at_once: int, echo: Callable[[str, str], None] | None = None):
        self._echo = echo
        self._shares = iter(shares(sorted(os.sched_getaffinity(0)), at_once) if at_once > 1 and hasattr(os, "sched_getaffinity") else [])
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="sweep", initializer=self._take_share)
        self._lock = threading.Lock()
        self._running: set[child.Process] = set()
        self._sent: signal.Signals | None = None

    def submit(self, job: Job) -> "Future[Ended]":
        return self._threads.submit(self._run, job)

    def stop(self) -> None:
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _take_share(self) -> None:
        """Of this thread, and so of the processes that it starts."""
        with self._lock:
            share = next(self._shares, None)
        if share:
            os.sched_setaffinity(0, share)

    def _run(self, job: Job) -> Ended:
        process: list[child.Process] = []

        def started(one: child.Process) -> None:
            process.append(one)
            with self._lock:
                self._running.add(one)
                if self._sent:  # meanwhile
                    _send(one, self._sent)

        try:
            return child.run(job, partial(self._echo, job.title) if self._echo else None, started)
        finally:
            with self._lock:
                self._running.difference_update(process)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            self._sent = number
            for process in self._running:
                _send(process, number)


def shares(cores: list[int], count: int) -> list[set[int]]:
    """The cores dealt out among `count`, in neighbours; where there are fewer cores, several have the same one.

    [0, 1, 2, 3] and 2 -> {0, 1}, {2, 3}; [0, 1] and 3 -> {0}, {1}, {0}.
    """
    if count > len(cores):
        return [{cores[number % len(cores)]} for number in range(count)]
    edges = [number * len(cores) // count for number in range(count + 1)]
    return [set(cores[first:last]) for first, last in pairwise(edges)]


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Kindly to the child alone, which ends what it started; with SIGKILL to all of them."""
    with suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)  # it leads a session, so its id is the group's
        else:
            process.send_signal(number)
