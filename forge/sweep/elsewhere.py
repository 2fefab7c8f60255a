"""A launcher that hands each job to a cluster and looks, twice a second, which have ended.

Nothing here knows a cluster: forge.sweep.clusters does.
"""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from forge.sweep import child
from forge.sweep.launch import Ended, Job

Handle = Any  # the cluster's own idea of a job

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Task:
    """A job as it travels: pickled, and called on another machine. `began`: a file that is made as soon as it is."""

    job: Job
    began: Path

    def __call__(self) -> Ended:
        self.began.touch()
        return child.run(self.job)

    def checkpoint(self) -> None:
        """What submitit is to queue anew when it has to end a job: nothing. The child saves its own checkpoint as it ends."""


class Cluster(Protocol):
    def start(self, task: Task) -> "Handle | Ended":
        """Returns at once: the job, or how it ended where the cluster would not take it."""

    def ended(self, handle: Handle) -> Ended | None:
        """How it ended, also where it was lost; None while it waits or runs."""

    def cancel(self, handle: Handle) -> None:
        """End it now, whether it waits or runs."""

    def close(self) -> None:
        """Called at the end."""


class Elsewhere:
    """A Launcher. `folder` is one that all machines see."""

    def __init__(self, cluster: Cluster, folder: Path):
        self._cluster, self._folder = cluster, folder
        self._running: dict[Future[Ended], tuple[Handle, Task]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="sweep", daemon=True)
        self._watcher.start()

    def submit(self, job: Job) -> "Future[Ended]":
        self._folder.mkdir(parents=True, exist_ok=True)
        task = Task(job, self._folder / f"{job.run_id}.began")
        task.began.unlink(missing_ok=True)
        future: Future[Ended] = Future()
        handle = self._cluster.start(task)
        if isinstance(handle, Ended):
            future.set_result(handle)
        else:
            with self._lock:
                self._running[future] = handle, task
        return future

    def stop(self) -> None:
        """Those that still wait never start. Those that run see the tag on the parent run."""
        self._cancel(lambda task: not task.began.exists(), signal.SIGINT)

    def kill(self) -> None:
        self._cancel(lambda task: True, signal.SIGKILL)

    def close(self) -> None:
        self._closed.set()
        self._watcher.join()
        self._cluster.close()

    def _cancel(self, wanted: Callable[[Task], bool], number: signal.Signals) -> None:
        with self._lock:
            found = {future: handle for future, (handle, task) in self._running.items() if wanted(task)}
            for future in found:
                del self._running[future]
        for future, handle in found.items():
            self._cluster.cancel(handle)
            future.set_result(Ended(-number, ""))

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            with self._lock:
                running = list(self._running.items())
            for future, (handle, _) in running:
                try:
                    ended: Ended | Exception | None = self._cluster.ended(handle)
                except Exception as error:  # else the sweep would wait for ever
                    ended = error
                if ended is None:
                    continue
                with self._lock:
                    if self._running.pop(future, None) is None:
                        continue  # cancelled meanwhile
                if isinstance(ended, Exception):
                    future.set_exception(ended)
                else:
                    future.set_result(ended)
