"""Where a sweep's children run: in processes of this machine (forge.sweep.pool), or wherever another launcher takes them.

A launcher runs forge.sweep.child.run(job) once, somewhere, and gives what it returns. Results are not its business: the parent reads
them from the tracking store.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """One child, ready to be started. Plain values, so that it can be pickled.

    `title`: such as "[2/8] lr=1e-3". `arguments`: those of forge.train. `folder`: where it runs, `log`: the file that takes what it prints,
    after what is there. `environment` is added to the one that it is started in.
    """

    number: int
    title: str
    run_id: str
    arguments: tuple[str, ...]
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a child's process ended: its exit code, minus a signal's number where that killed it, and the last lines that it printed."""

    exit_code: int
    tail: str


class Launcher(Protocol):
    def submit(self, job: Job) -> "Future[Ended]":
        """Returns at once. The parent has at most `sweep.jobs` jobs submitted at a time. An exception in the future: the job was lost."""

    def stop(self) -> None:
        """Ask all that run to save and end (SIGINT). Called once. A launcher that can't reach them does nothing: the parent sets the tag
        forge.stop on its own run too, which they watch."""

    def kill(self) -> None:
        """End all that run, now."""

    def close(self) -> None:
        """Called at the end, when nothing runs any more."""
