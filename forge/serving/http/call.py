"""A request in the generation thread, seen from the event loop: what it says as it comes, and its end at any moment."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.types import Receive

from forge.serving.contract import Completion, Piece, Sampling, Stats
from forge.serving.http.faults import Gone
from forge.serving.parts import Format

T = TypeVar("T")
Said = Piece | Completion | Exception


class Ticket(Protocol):
    def cancel(self) -> None: ...
    def done(self) -> bool: ...


class Engine(Protocol):
    """What of forge.serving.engine.GenerationThread is used here."""

    @property
    def failed(self) -> bool: ...
    @property
    def slots(self) -> int: ...
    @property
    def context(self) -> int | None: ...
    @property
    def tokenizer_has_template(self) -> bool: ...
    @property
    def format(self) -> Format: ...
    def submit(self, prompt: Any, sampling: Sampling, timeout_s: float | None = None, listener: Any = None) -> Ticket: ...
    def stats(self) -> Stats: ...
    def close(self) -> None: ...


class Call:
    """The completions of one request. Made and heard in the event loop. `pieces`: whether to hear of them."""

    def __init__(self, engine: Engine, jobs: Sequence[tuple[Any, Sampling]], timeout_s: float, pieces: bool):
        self.started = time.monotonic()
        self.first_token: float | None = None
        self._loop = asyncio.get_running_loop()
        self._heard = asyncio.Queue[tuple[int, Said]]()
        self._pieces = pieces
        self.tickets: list[Ticket] = []
        self.ended: dict[int, Completion] = {}
        try:
            for index, (prompt, sampling) in enumerate(jobs):
                self.tickets.append(engine.submit(prompt, sampling, timeout_s, partial(self._hear, index)))
        except BaseException:
            self.cancel()
            raise

    @property
    def unfinished(self) -> int:
        return sum(not ticket.done() for ticket in self.tickets)

    async def next(self) -> tuple[int, Piece | Completion] | None:
        """The index of a job, and what came of it next; None where all have ended. Raises the failure of a job."""
        if len(self.ended) == len(self.tickets):
            return None
        index, said = await self._heard.get()
        if isinstance(said, Exception):
            raise said
        if isinstance(said, Completion):
            self.ended[index] = said
        return index, said

    async def completions(self) -> list[Completion]:
        """All, in the order of the jobs."""
        while await self.next():
            pass
        return [self.ended[index] for index in range(len(self.tickets))]

    def cancel(self) -> None:
        for ticket in self.tickets:
            if not ticket.done():
                ticket.cancel()

    def _hear(self, index: int, said: Said) -> None:
        """In the generation thread, which must not wait."""
        if isinstance(said, Piece):
            self.first_token = self.first_token or time.monotonic()
            if not self._pieces:
                return
        with contextlib.suppress(RuntimeError):  # the event loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._heard.put_nowait, (index, said))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises Gone, and ends it, where the client leaves before; its body has been read."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
