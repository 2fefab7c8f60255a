"""A model with a history of its own, and the answers of one or two of them as they come.

The model computes in a thread of its own, which only puts what it has into a queue: so Ctrl-C reaches whoever waits for it.
"""

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge.console.turns import History, Turn
from forge.errors import ForgeError
from forge.serving.contract import Completion, Piece, Sampling
from forge.serving.parts import Format
from forge.serving.prompt import Chat, Prompt, encode, opens_thought

Show = Callable[[int, "Reply", str], None]  # number of the side, its reply so far, what is new of it


@dataclass
class Reply:
    """An answer as far as it has come. Times are in seconds since it was asked for. `left_out`: turns that no longer fit.

    `tokens`: generated; those of an answer that was stopped are those that were seen. `thinks`: it begins within a thought.
    """

    prompt_tokens: int
    left_out: int = 0
    thinks: bool = False
    text: str = ""
    first: float | None = None
    ended: float | None = None
    tokens: int = 0
    completion: Completion | None = None
    error: Exception | None = None
    stopped: bool = False

    def take(self, event: Piece | Completion | Exception, seconds: float) -> str:
        """What is new of the text."""
        if isinstance(event, Piece):
            if self.first is None and event.text:
                self.first = seconds
            self.text, self.tokens = self.text + event.text, self.tokens + max(1, len(event.tokens))
            return event.text
        self.ended = seconds
        if isinstance(event, Completion):
            self.completion, self.tokens = event, event.completion_tokens
            fresh, self.text = event.text[len(self.text) :], event.text
            return fresh
        self.error = event
        return ""

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one."""
        if self.first is None or self.ended is None or self.tokens < 2 or self.ended <= self.first:
            return None
        return (self.tokens - 1) / (self.ended - self.first)


class Side:
    """A loaded model. `chat` False: it continues text; True without a template of its own: in forge's "simple" one."""

    def __init__(self, name: str, folder: Path, mode: str, system: str | None):
        from mlx_lm.utils import load_tokenizer

        from forge.serving.engine import GenerationThread

        self.name, self.engine = name, GenerationThread(folder, slots=1)
        self.has_template = self.engine.tokenizer_has_template
        self.chat = mode == "instruct" or (mode == "auto" and self.has_template)
        self.history = History(system if self.chat else None)
        # Of its own: the engine's belongs to the engine's thread.
        self._tokenizer: Any = load_tokenizer(folder)
        self.format = Format.of(self._tokenizer)

    @property
    def context(self) -> int | None:
        return self.engine.context

    def prompt(self, wanted: int) -> tuple[list[int], Reply]:
        """The tokens to answer the last turn by, and the reply that is to come. Raises ServingError."""
        ids, left_out = self.history.fit(self._encode, self.context, wanted)
        return ids, Reply(len(ids), left_out, opens_thought(self._tokenizer, self._prompt(self.history.first), ids))

    def _encode(self, first: int) -> list[int]:
        return encode(self._tokenizer, self._prompt(first))

    def _prompt(self, first: int) -> Prompt:
        history = self.history
        return Chat(history.messages(first), mode="instruct") if self.chat else history.text(first)


def ask(sides: Sequence[Side], text: str | None, sampling: Sampling, show: Show) -> list[Reply]:
    """Have all sides answer at once: a new turn, or with None the last one once more. Ctrl-C stops them, and what has come is kept.

    A turn without an answer stays, for /retry. Where a prompt is refused (ServingError), all is as it was.
    """
    before = [(side.history, list(side.history.turns)) for side in sides]
    try:
        prompts = [_turn(side, text, sampling.max_tokens) for side in sides]
    except ForgeError:
        for history, turns in before:
            history.turns[:] = turns
        raise
    inbox: queue.SimpleQueue[tuple[int, float, Any]] = queue.SimpleQueue()
    replies, began, tickets = [reply for _, reply in prompts], time.perf_counter(), []
    try:
        for number, (side, (ids, _)) in enumerate(zip(sides, prompts, strict=True)):
            tickets.append(side.engine.submit(ids, sampling, listener=_into(inbox, number)))
        while any(reply.ended is None for reply in replies):
            number, at, event = inbox.get()
            show(number, replies[number], replies[number].take(event, at - began))
    except KeyboardInterrupt:
        for ticket in tickets:
            ticket.cancel()
        for reply in replies:
            if reply.ended is None:
                reply.stopped, reply.ended = True, time.perf_counter() - began
    for (history, turns), reply in zip(before, replies, strict=True):
        if isinstance(reply.error, Exception) and not isinstance(reply.error, ForgeError):
            raise reply.error
        if reply.text or reply.completion:
            history.turns[-1].answer = reply.text
        elif text is None:
            history.turns[:] = turns  # the former answer
    return replies


def _turn(side: Side, text: str | None, wanted: int) -> tuple[list[int], Reply]:
    turns = side.history.turns
    turns.append(Turn(turns.pop().user if text is None else text))
    return side.prompt(wanted)


def _into(inbox: "queue.SimpleQueue[tuple[int, float, Any]]", number: int) -> Callable[[Any], None]:
    return lambda event: inbox.put((number, time.perf_counter(), event))
