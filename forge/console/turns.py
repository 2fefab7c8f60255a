"""What was said: turns of a question and its answer, as a prompt for the model, kept within its context.

When the context is full the oldest turns are left out of what the model sees; they stay in the history, for /save. An answer is left at
least max_tokens, or a quarter of the context where that is less.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from forge.serving.faults import PromptTooLong
from forge.serving.prompt import Message

_LEAST = 4  # an answer has a 4th of the context, if it wants so much


@dataclass
class Turn:
    """`answer` None: there is none yet, since it was stopped before it began, or failed."""

    user: str
    answer: str | None = None


@dataclass
class History:
    """`first`: the turns before it are no longer shown to the model."""

    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    first: int = 0

    def undo(self) -> Turn | None:
        """Take the last turn back; what had been left out may fit again."""
        self.first = 0
        return self.turns.pop() if self.turns else None

    def messages(self, first: int = 0) -> tuple[Message, ...]:
        """The chat from that turn on. Turns without an answer are left out, but for the last, which is to be answered."""
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system is not None else []
        for turn in self._of(first):
            found.append({"role": "user", "content": turn.user})
            if turn.answer is not None:
                found.append({"role": "assistant", "content": turn.answer})
        return tuple(found)

    def text(self, first: int = 0) -> str:
        """The text from that turn on: each turn is a line of its own, gone on with where the user's words end."""
        return "\n".join(turn.user + (turn.answer or "") for turn in self._of(first))

    def fit(self, encode: Callable[[int], list[int]], context: int | None, wanted: int) -> tuple[list[int], int]:
        """The tokens of the prompt for the last turn, and how many turns more than before were left out.

        `encode`: the tokens from a turn on. `wanted`: tokens of the answer. Costs an encoding, and once the context is full, log₂ of the
        turns. Raises PromptTooLong where the last turn alone doesn't fit.
        """
        kept: dict[int, list[int]] = {}

        def fits(first: int) -> bool:
            kept[first] = encode(first)
            return context is None or len(kept[first]) + min(wanted, context // _LEAST) <= context

        last = len(self.turns) - 1
        first = self.first if fits(self.first) else bisect_left(range(last), True, self.first + 1, key=fits) if self.first < last else last
        ids = kept[first] if first in kept else encode(first)
        if context is not None and len(ids) >= context:
            system = " and the system prompt" if self.system is not None else ""
            raise PromptTooLong(
                f"this message{system} come to {len(ids):,} tokens, but the model's context holds {context:,}, prompt and answer together: "
                "shorten the message"
            )
        left_out, self.first = first - self.first, first
        return ids, left_out

    def _of(self, first: int) -> list[Turn]:
        """Those that are shown from that turn on."""
        shown = self.turns[first:]
        return [turn for turn in shown if turn.answer is not None or turn is self.turns[-1]]
