"""Conversations to text, and the spans of it that the model has to learn to say.

Spans come from the template's {% generation %} blocks where it has them, else from rendering a second time with markers in
place of what the assistant said: the text around a marker is the template's. Positions are characters of the text.
Cost: two renderings a conversation, and one or two more for each turn that the template rewrites.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forge.data.templates import MARK, RAISED, Span, Template, common
from forge.spec import BadRow, Conversation, Message
from forge.values import Mask


@dataclass(frozen=True)
class Rendered:
    """`spans` are the targets, in order. `notes` are short codes for what differs from the row:

    system_folded       the template has no system role: the text went in front of the first user turn
    special_in_content  a turn spells a special token, which the tokenizer will take for one
    turn_changed        the template leaves a turn's text out, or changes more of it than its ends
    thinking_dropped    the template leaves out what the assistant thought
    tools_dropped       the template leaves out the functions that may be called
    """

    text: str
    spans: tuple[Span, ...]
    notes: tuple[str, ...]


class _Unclear(Exception):
    """The template's text doesn't show where a turn begins or ends."""


def render(row: Conversation, template: Template, mask: Mask) -> Rendered | BadRow:
    """mask: "all" text, every turn of the assistant's ("assistant") or its "last", each with the token that ends it."""
    messages, tools = [_plain(message) for message in row.messages], row.tools
    notes: list[str] = []
    if messages and messages[0]["role"] == "system" and not template.takes_system:
        if len(messages) < 2 or messages[1]["role"] != "user":
            return _refused(row, "has no system role, and no user turn follows that could take the system text")
        messages = [{**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:]]
        notes.append("system_folded")
    try:
        text, blocks = template.render(messages, tools)
    except RAISED as error:
        return _refused(row, f"refuses it: {error}")
    if lost := _lost_call(template, messages, tools):
        return _refused(row, f"leaves out the call of {lost!r}")
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if mask != "all" and not turns:
        return BadRow(row.origin, "no_target", "no turn is the assistant's: nothing to learn; drop the row or set data.mask=all")
    try:
        spans = [(0, len(text))] if mask == "all" else _Turns(template, messages, tools, text).spans(turns, blocks, mask)
    except _Unclear as error:
        way_out = "use a template that marks answers with {% generation %}, or set data.mask=all"
        return BadRow(row.origin, "template_mask", f"the chat template doesn't show {error}; {way_out}")
    return Rendered(text, tuple(spans), (*notes, *_changes(template, messages, tools, text)))


def _lost_call(template: Template, messages: Sequence[Message], tools: Sequence[Message]) -> str | None:
    """The name of a call that the template doesn't write. Told by marks, since text may hold a name for other reasons."""
    calls = [call for message in messages for call in _calls(message)]
    if not calls:
        return None
    marks = iter(range(len(calls)))
    marked = template.attempt([_with_calls(message, lambda call: {"name": f"{MARK}{next(marks)}{MARK}"}) for message in messages], tools)
    return next((call["name"] for n, call in enumerate(calls) if marked is not None and f"{MARK}{n}{MARK}" not in marked), None)


@dataclass(frozen=True)
class _Turns:
    """Where the turns of one rendered conversation lie."""

    template: Template
    messages: Sequence[Message]
    tools: Sequence[Message]
    text: str

    def spans(self, turns: Sequence[int], blocks: list[Span], mask: Mask) -> list[Span]:
        if mask == "last":
            turns = turns[-1:]
        if blocks:
            earlier = self._blocks_before(turns[0]) if mask == "last" else 0
            return [(start, self._past_end(start, stop)) for start, stop in blocks[earlier:]]
        spans: list[Span] = []
        for n, said in zip(turns, self._said(turns), strict=True):
            floor = spans[-1][1] if spans else 0
            spans.append(self._whole(n) if said is None else (self._start(n, said[0], floor), self._end(n, said[1])))
        return spans

    # ---- by {% generation %} blocks ---------------------------------------------------------------------------------------

    def _blocks_before(self, n: int) -> int:
        try:
            return len(self.template.render(self.messages[:n], self.tools)[1])
        except RAISED:
            return 0

    def _past_end(self, start: int, stop: int) -> int:
        """A block's end, moved behind the token that ends the turn where the block stops short of it."""
        if self.template.turn_end.search(self.text, start, stop):
            return stop
        following = self.template.added.search(self.text, stop)
        return following.end() if following and not self.text[stop : following.start()].strip() else stop

    # ---- by markers ---------------------------------------------------------------------------------------------------------

    def _said(self, turns: Sequence[int]) -> list[Span | None]:
        """Where the text holds what was said in each of the turns; None where a marker in its place doesn't show."""
        marks = {n: f"{MARK}{n}{MARK}" for n in turns}
        marked = self.template.attempt([_marked(m, marks[n]) if n in marks else m for n, m in enumerate(self.messages)], self.tools)
        found = _aligned(self.text, marked or "", [(marks[n], _words(self.messages[n])) for n in turns])
        return list(found) if found else [self._replaced(n) for n in turns]

    def _replaced(self, n: int) -> Span | None:
        """What of the text differs when turn n alone says something else."""
        marked = self.template.attempt([*self.messages[:n], _marked(self.messages[n], MARK), *self.messages[n + 1 :]], self.tools)
        if marked is None or MARK not in marked:
            return None
        return common(self.text, marked), len(self.text) - common(self.text[::-1], marked[::-1])

    def _start(self, n: int, at: int, floor: int) -> int:
        """Behind the header that asks for turn n. What the template puts between it and the content is the model's to say."""
        header = self.template.header
        if header and self.text.endswith(header, floor, at):
            return at
        prompt = self.template.attempt(self.messages[:n], self.tools, prompt=True)
        if prompt is not None and self.text.startswith(prompt):
            return len(prompt)
        behind = self.text.rfind(header, floor, at) if header else -1
        if behind >= 0:
            return behind + len(header)
        if _calls(self.messages[n]):
            raise _Unclear(f"where turn {n + 1}, which calls a tool, begins")
        return at

    def _end(self, n: int, at: int) -> int:
        """Behind the token that ends turn n: the first one after the content, or after the rest of the call where it ends with one."""
        if _calls(self.messages[n]):
            following = self.template.turn_end.search(self.text, at)
            if following is None:
                raise _Unclear(f"where turn {n + 1}, which calls a tool, ends")
            return following.end()
        following = self.template.added.search(self.text, at)
        if following and not self.text[at : following.start()].strip():
            return following.end()
        tail = self.template.tail
        return at + len(tail) if self.text.startswith(tail, at) else at

    def _whole(self, n: int) -> Span:
        """Turn n by what it adds to the text."""
        before, after = (self.template.attempt(self.messages[: n + added], self.tools, prompt=not added) for added in (0, 1))
        if before is not None and after is not None and self.text.startswith(before):
            ends = list(self.template.turn_end.finditer(self.text, len(before), common(after, self.text)))
            if ends:
                return len(before), ends[-1].end()
        raise _Unclear(f"where turn {n + 1} begins and ends")


def _aligned(text: str, marked: str, said: Sequence[tuple[str, str]]) -> list[Span] | None:
    """Where `text` has the words that `marked` has a mark for. None unless they are equal in all else, and words in all but their ends."""
    spans: list[Span] = []
    at = 0
    for mark, words in said:
        before, found, marked = marked.partition(mark)
        if not found or not text.startswith(before, at):
            return None
        at += len(before)
        following = marked.partition(MARK)[0]
        variants = (words, words.strip(), words.rstrip(), words.lstrip())
        here = next((v for v in variants if text.startswith(v + following, at)), None)
        if here is None:
            return None
        spans.append((at, at + len(here)))
        at += len(here)
    return spans if text[at:] == marked else None


def _plain(message: Message) -> dict[str, Any]:
    """Without empty fields, and with the arguments of calls as objects: templates write them as JSON, and text would be quoted twice."""
    plain = {key: value for key, value in message.items() if value is not None}
    return dict(_with_calls(plain, lambda call: {"arguments": _parsed(call.get("arguments", {}))}))


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _function(call: Message) -> Message:
    """The part with name and arguments: calls come with and without a wrapper around it."""
    return call.get("function") or call


def _with_calls(message: Message, change: Callable[[Message], Message]) -> Message:
    """`change` gives what is different of a call's function."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_with_call(call, change(_function(call))) for call in calls]} if calls else message


def _with_call(call: Message, changes: Message) -> Message:
    return {**call, "function": {**call["function"], **changes}} if call.get("function") else {**call, **changes}


def _calls(message: Message) -> list[Message]:
    return [_function(call) for call in message.get("tool_calls", ())]


def _words(message: Message) -> str:
    """What _marked puts a mark in place of."""
    calls = _calls(message)
    return calls[-1]["name"] if calls else message.get("content", "")


def _marked(message: Message, mark: str) -> Message:
    """The content is where a turn ends; in a turn that calls tools it is the last call, of which the name is sure to be text."""
    if calls := message.get("tool_calls"):
        return {**message, "tool_calls": [*calls[:-1], _with_call(calls[-1], {"name": mark})]}
    return {**message, "content": mark}


def _changes(template: Template, messages: Sequence[Message], tools: Sequence[Message], text: str) -> Iterator[str]:
    contents = [message["content"] for message in messages if message.get("content")]
    if any(template.special.search(content) for content in contents):
        yield "special_in_content"
    missing = [content.rpartition("</think>") for content in contents if not _shown(content, text)]
    if not all(_shown(answer, text) for _, _, answer in missing):
        yield "turn_changed"
    thoughts = [thought.replace("<think>", "") for thought, _, _ in missing]
    if not all(_shown(thought, text) for thought in (*thoughts, *(message.get("reasoning_content", "") for message in messages))):
        yield "thinking_dropped"
    if tools and MARK not in (template.attempt(messages, [_with_call(tool, {"name": MARK}) for tool in tools]) or MARK):
        yield "tools_dropped"


def _shown(words: str, text: str) -> bool:
    """Whether the text holds the words, but for their ends; some templates quote tool results as JSON."""
    return words.strip() in text or json.dumps(words, ensure_ascii=False)[1:-1] in text


def _refused(row: Conversation, why: str) -> BadRow:
    return BadRow(row.origin, "template_refused", f"the chat template {why}; mend the row or choose another data.template")
