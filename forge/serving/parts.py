"""The parts of an answer: what it says, what it thought before, and the functions it calls.

mlx_lm knows how a model marks them and how it writes a call; here its text machine cuts the text, whole or as it comes. Where it may
turn out to be a mark, text is held back. Marks go, and so do the line breaks beside them, as in the chat templates; all else stays.
A call that can't be read stays text, marks included, and so does one where no functions were named.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Kind = Literal["content", "reasoning", "call"]


@dataclass(frozen=True)
class Part:
    """`text` of a call: its arguments as JSON. `name` and `id` are a call's."""

    kind: Kind
    text: str
    name: str = ""
    id: str = ""


@dataclass(frozen=True)
class Format:
    """What a model marks its thoughts and calls with, under the names that mlx_lm reads. Safe to share between threads."""

    think_start: str | None = None
    think_end: str | None = None
    tool_call_start: str | None = None
    tool_call_end: str | None = None
    tool_parser: Callable[[str, Any], Any] | None = None
    structural_markers: tuple[str, ...] = ()
    response_transitions: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    response_initial_state: str | None = None

    @classmethod
    def of(cls, tokenizer: Any) -> "Format":
        """`tokenizer`: mlx_lm's wrapper."""
        return cls(**{name: getattr(tokenizer, name) for name in cls.__dataclass_fields__})

    def without_calls(self) -> "Format":
        transitions = {state: [edge for edge in edges if edge[1] != "tool"] for state, edges in self.response_transitions.items()}
        return replace(self, tool_call_start=None, response_transitions=transitions)

    @property
    def has_thinking(self) -> bool:
        return self.think_start is not None

    @property
    def has_tool_calling(self) -> bool:
        return self.tool_call_start is not None


def split(format: Format, text: str, tools: Sequence[Any] = (), thinking: bool = False, ended: bool = True) -> list[Part]:
    """The parts of a whole answer, neighbours of a kind put together. `thinking` and `ended` are Splitter's."""
    splitter = Splitter(format, tools, thinking)
    merged: list[Part] = []
    for part in (*splitter.add(text), *splitter.end(ended)):
        if merged and part.kind == merged[-1].kind != "call":
            merged[-1] = Part(part.kind, merged[-1].text + part.text)
        else:
            merged.append(part)
    return merged


class Splitter:
    """The parts of an answer that comes bit by bit, each as soon as it is sure; a call once it is whole.

    tools: the functions that may be called; none: what looks like a call is text. thinking: the answer begins inside a thought.
    """

    def __init__(self, format: Format, tools: Sequence[Any] = (), thinking: bool = False):
        from mlx_lm.generate import make_text_state_machine

        self._format, self._tools = format if tools else format.without_calls(), list(tools)
        self._state = format.response_initial_state or ("reasoning" if thinking else "normal")
        self._machine = make_text_state_machine(self._format)
        self._at = self._machine.make_state(self._state)
        self._call: str | None = None  # what the call holds so far
        self._caller = ""  # the state that it interrupted
        self._breaks = ""  # line breaks that a mark may follow
        self._trims = thinking  # line breaks go until text comes

    def add(self, text: str) -> list[Part]:
        self._at, segments = self._machine.split(self._at, text)
        return list(self._through(segments))

    def end(self, ended: bool = True) -> list[Part]:
        """What is still held back. `ended`: by the model itself, so that a call is whole even where its end mark is missing."""
        self._at, rest, _ = self._machine.flush(self._at)
        parts = list(self._said(rest))
        if self._call is not None:
            parts += self._called("", readable=ended or not self._format.tool_call_end)
        if self._breaks:
            parts += _part(self._state, self._breaks)
        return parts

    def _through(self, segments: Sequence[tuple[str, str]]) -> Iterator[Part]:
        """Between two segments stands one mark."""
        for n, (state, text) in enumerate(segments):
            if n:
                yield from self._enter(state)
            yield from self._said(text)

    def _enter(self, state: str) -> Iterator[Part]:
        left, self._state = self._state, state
        if state == "tool":
            self._call, self._caller = "", left
        elif left == "tool":
            yield from self._called(self._format.tool_call_end or "", readable=True)
        else:
            self._breaks, self._trims = "", True

    def _said(self, text: str) -> Iterator[Part]:
        if self._call is not None:
            self._call += text
            return
        text = text.lstrip("\n") if self._trims else text
        if text:
            self._trims = False
            text = self._breaks + text
            sure = text.rstrip("\n")
            self._breaks = text[len(sure) :]
            yield from _part(self._state, sure)

    def _called(self, end_mark: str, readable: bool) -> Iterator[Part]:
        text, self._call = self._call or "", None
        calls = _read(self._format, text, self._tools) if readable else []
        if calls:
            self._breaks, self._trims = "", True
            yield from calls
            return
        if self._caller == "reasoning":
            self._breaks = ""
        yield from self._said(f"{self._format.tool_call_start}{text}{end_mark}")


def _part(state: str, text: str) -> list[Part]:
    """Nothing for a state that says nothing, such as a header. A call that can't be read is content, even where no end mark followed."""
    kinds: dict[str, Kind] = {"normal": "content", "tool": "content", "reasoning": "reasoning"}
    return [Part(kinds[state], text)] if text and state in kinds else []


def _read(format: Format, text: str, tools: list[Any]) -> list[Part]:
    """The calls that mlx_lm's parser finds; none where it finds no call that can be written in the OpenAI form."""
    assert format.tool_parser
    try:
        found = format.tool_parser(text, tools)
        return [_call(each) for each in (found if isinstance(found, list) else [found])]
    except Exception:  # the parsers raise whatever their code trips over in what a model wrote
        return []


def _call(found: Mapping[str, Any]) -> Part:
    name, arguments = found["name"], found.get("arguments", {})
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | str):
        raise ValueError(f"no call: {found}")
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    id = found.get("id")
    id = id if isinstance(id, str) and id else uuid.uuid4().hex[:9]  # Mistral's templates want nine characters
    f"{written}{name}{id}".encode()  # raises for half of a UTF-16 pair, which JSON can spell and no answer can hold
    return Part("call", written, name, id)
