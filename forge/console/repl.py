"""The conversation: reads what the user types, has it answered, and carries out commands."""

import difflib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from forge.console import files, settings, view
from forge.console.lines import Reader
from forge.console.settings import SamplingSpec
from forge.console.side import Reply, Side, ask
from forge.console.view import Columns, Stream, tell
from forge.errors import ForgeError, ServingError
from forge.progress import size
from forge.serving.contract import Sampling

HELP = '''\
/system TEXT     the system prompt from the next answer on; without TEXT: none
/retry           answer the last message again, with the next seed
/undo            take back the last message and its answer
/reset           begin anew; the system prompt stays
/save FILE       write the chat as JSON, or as JSON lines where the name ends in .jsonl
/load FILE       go on with a chat from such a file
/set KEY=VALUE   change sampling: temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed; without a key: show it
/stats           tokens, speed and memory
/quit            leave, as Ctrl-D does
Ctrl-C stops an answer; what has come of it is kept. Several lines: Alt-Enter, or between """ and """.
A message that begins with a slash is typed with two.'''


@dataclass
class Chat:
    """`replies`: the last of each side. `answers` and `tokens` (of each side): in all. `tries`: how often the last message was answered
    again."""

    sides: Sequence[Side]
    sampling: SamplingSpec
    console: Console
    replies: list[Reply] = field(default_factory=list)
    answers: int = 0
    tokens: list[int] = field(init=False)
    tries: int = 0
    drawn: int | None = None  # the seed of the last message, where none is set

    def __post_init__(self) -> None:
        self.tokens = [0] * len(self.sides)

    def run(self, reader: Reader) -> None:
        """Until the user leaves."""
        while (text := reader.read()) is not None:
            try:
                if not self._do(text):
                    return
            except ForgeError as error:
                for line in str(error).splitlines():
                    tell(self.console, f"error: {line}", "bold red")
            except KeyboardInterrupt:  # at any other moment than while an answer comes
                tell(self.console, "")

    def _do(self, text: str) -> bool:
        """Answer, or obey; False to leave."""
        if not text.strip():
            return True
        if not text.startswith("/") or text.startswith("//"):
            self._answer(text.removeprefix("/"))
            return True
        name, _, rest = text[1:].partition(" ")
        name = name.strip()
        if name == "quit":
            return False
        commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: tell(self.console, HELP),
            "system": self._system,
            "retry": lambda _: self._retry(),
            "undo": lambda _: self._undo(),
            "reset": lambda _: self._reset(),
            "save": self._save,
            "load": self._load,
            "set": self._set,
            "stats": lambda _: self._stats(),
        }
        if name not in commands:
            close = difflib.get_close_matches(name, [*commands, "quit"], n=1)
            meant = f"did you mean /{close[0]}? " if close else ""
            raise ServingError(f"/{name}: there is no such command; {meant}/help lists them, and // begins a message with a slash")
        commands[name](rest.strip())
        return True

    # ---- answers ----

    def _answer(self, text: str) -> None:
        self.tries, self.drawn = 0, secrets.randbits(32)
        self._ask(text)

    def _retry(self) -> None:
        if not self.sides[0].history.turns:
            raise ServingError("there is nothing to answer yet")
        self.tries += 1
        if self.sampling.temperature == 0:
            tell(self.console, "[temperature=0: the answer will be the same]", "dim")
        self._ask(None)

    def _ask(self, text: str | None) -> None:
        given = self.sampling.seed if self.sampling.seed is not None else self.drawn or 0
        known: dict[str, Any] = settings.sampling(self.sampling) | {"seed": (given + self.tries) % 2**63}
        sampling = Sampling(**known)
        self.replies, self.answers = [], self.answers + 1
        if len(self.sides) > 1 and view.columns_fit(self.console):
            with Columns(self.console, self.sides) as columns:
                self._count(ask(self.sides, text, sampling, columns.show))
            for side, reply in zip(self.sides, self.replies, strict=True):
                self._note(side, reply)
        else:
            for side in self.sides:
                self._in_turn(side, text, sampling)

    def _in_turn(self, side: Side, text: str | None, sampling: Sampling) -> None:
        if len(self.sides) > 1:
            tell(self.console, f"── {side.name} ──", "bold")
        stream = Stream(self.console, side)
        try:
            self._count(ask([side], text, sampling, stream.show))
        finally:
            stream.end()
        self._note(side, self.replies[-1])

    def _count(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            self.tokens[len(self.replies)] += reply.tokens
            self.replies.append(reply)

    def _note(self, side: Side, reply: Reply) -> None:
        """What there is to say of an answer beside itself."""
        of = f"{side.name}: " if len(self.sides) > 1 else ""
        for note in _notes(side, reply, self.sampling.max_tokens):
            tell(self.console, f"[{of}{note}]", "dim")
        if reply.error is not None:
            tell(self.console, f"error: {of}{reply.error}", "bold red")

    # ---- commands ----

    def _system(self, text: str) -> None:
        if not any(side.chat for side in self.sides):
            raise ServingError("a model that continues text has no system prompt; write what it has to know into the text")
        for side in self.sides:
            side.history.system = (text or None) if side.chat else None
        tell(self.console, "[the system prompt is set]" if text else "[no system prompt]", "dim")

    def _undo(self) -> None:
        taken, *_ = [side.history.undo() for side in self.sides]
        if taken is None:
            raise ServingError("there is nothing to take back")
        tell(self.console, f"[taken back: {' '.join(taken.user.split())[:60]}]", "dim")

    def _reset(self) -> None:
        for side in self.sides:
            side.history.turns.clear()
            side.history.first = 0
        tell(self.console, "[begun anew]", "dim")

    def _save(self, name: str) -> None:
        for side, file in zip(self.sides, files.beside(files.place(name), len(self.sides)), strict=True):
            tell(self.console, f"[{files.save(file, side.history)} messages written to {file}]", "dim")

    def _load(self, name: str) -> None:
        named = files.place(name)
        found = [files.load(file if file.exists() else named) for file in files.beside(named, len(self.sides))]
        for side, history in zip(self.sides, found, strict=True):
            side.history = history
            if not side.chat and history.system is not None:
                history.system = None
                tell(self.console, f"[{side.name} continues text: the system prompt is left out]", "dim")
        asked = "; the last one has no answer, /retry has it answered" if found[0].turns and found[0].turns[-1].answer is None else ""
        tell(self.console, f"[{len(found[0].messages())} messages read{asked}]", "dim")

    def _set(self, words: str) -> None:
        self.sampling = settings.changed(self.sampling, words.split())
        shown = settings.sampling(self.sampling).items()
        tell(self.console, "  ".join(f"{key}={'null' if value is None else value}" for key, value in shown))

    def _stats(self) -> None:
        if not self.replies:
            raise ServingError("there is no answer yet to count")
        for side, reply, total in zip(self.sides, self.replies, self.tokens, strict=False):
            if len(self.sides) > 1:
                tell(self.console, side.name, "bold")
            tell(self.console, "\n".join(f"{name:<14}{value}" for name, value in _measures(side, reply, self.answers, total)))


def _notes(side: Side, reply: Reply, max_tokens: int) -> list[str]:
    found = []
    if reply.left_out:
        turns = "turn no longer fits" if reply.left_out == 1 else f"{reply.left_out} turns no longer fit"
        found.append(f"the oldest {turns} into the context of {side.context:,} tokens: the model goes on without; /reset begins anew")
    if reply.stopped:
        found.append("stopped; /retry answers again")
    elif reply.completion and reply.completion.finish_reason == "length":
        cut = reply.completion.completion_tokens >= max_tokens
        found.append(f"cut at max_tokens={max_tokens}" if cut else f"cut: the context of {side.context:,} tokens is full")
    elif reply.completion and not reply.text:
        found.append("the model ended its answer at once")
    return found


def _measures(side: Side, reply: Reply, answers: int, total: int) -> list[tuple[str, str]]:
    """Of the last answer, and of all."""
    stats, used = side.engine.stats(), reply.prompt_tokens + reply.tokens
    cached = f", {reply.completion.cached_tokens:,} of them cached" if reply.completion else ""
    return [
        ("prompt", f"{reply.prompt_tokens:,} tokens{cached}"),
        ("answer", f"{reply.tokens:,} tokens"),
        ("speed", f"{reply.rate:,.1f} tokens/s" if reply.rate else "-"),
        ("first token", f"after {reply.first:.2f} s" if reply.first is not None else "-"),
        ("context", f"{used:,}" + (f" of {side.context:,}" if side.context else "") + " tokens"),
        ("all answers", f"{answers:,}, {total:,} tokens"),
        ("memory", f"{size(stats.memory_gib)}, {size(stats.peak_memory_gib)} at most"),
    ]
