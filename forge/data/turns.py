"""The turns of a conversation as chat templates want them: one name a role, content as text, an order that makes sense.

Pure; linear in the text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from forge.spec import Message

_ALIASES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "bot", "model", "chatbot", "ai", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "ipython"),
}
ROLES: Mapping[str, str] = {alias: role for role, aliases in _ALIASES.items() for alias in aliases}
_CALL_ROLES = ("function_call", "tool_call")  # ShareGPT: such a turn's text is the call, as JSON
_TEXT_KEYS = ("name", "tool_call_id", "reasoning_content", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_MAX_DEPTH = 50


def read(turns: Any, part: str = "") -> list[Message]:
    """The turns of a list, or one turn alone, with role and content (or from and value).

    Kept of a turn: role, content, tool_calls, name, tool_call_id, reasoning_content, thinking, which is what templates know. Any
    other key (metadata, weight, …) is left out, and so is a key whose value is null, as tables hold where a row has no such key.
    An assistant that only calls tools has the content "". Calls come out as {"type": "function", "function": {"name", "arguments"}},
    with the id where there is one; arguments written as JSON text become an object where they are one.
    `part` names the list in messages. Raises Refused.
    """
    if isinstance(turns, Mapping):
        turns = [turns]
    if not isinstance(turns, list | tuple):
        raise Refused("wrong_type", f"{_of(part)}the turns are of type {_kind(turns)}; write a list of objects with role and content")
    return [_turn(turn, f"{_of(part)}turn {number}") for number, turn in enumerate(turns, 1)]


def check(messages: Sequence[Message], part: str = "") -> None:
    """Raises Refused for an empty turn, for turns in an order that no template renders, and where no assistant speaks.

    In order: at most one system turn, first; then user and assistant in turn; a tool after an assistant that calls, or after a tool.
    """
    before: Message | None = None
    for number, message in enumerate(messages, 1):
        where = f"{_of(part)}turn {number} ({message['role']})"
        if message["role"] in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in message:
            raise Refused("empty_turn", f"{where} says nothing; give it content or drop the row")
        if problem := _misplaced(message["role"], before):
            raise Refused("role_order", f"{where} {problem}")
        before = message
    if not any(message["role"] == "assistant" for message in messages):
        raise Refused("no_target", f"{_of(part)}no assistant turn, so nothing to learn from; add an answer or drop the row")


def tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a record: a list of objects, or such a list as JSON text; none for null and for blank text. Raises Refused."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    found = _objects(value, "tools")
    return tuple(_plain(tool, f"tool {number}", drop_nulls=not isinstance(value, str)) for number, tool in enumerate(found, 1))


def text(value: Any, where: str) -> str:
    """`value` where it is text that can be written as UTF-8 and holds no NUL. Raises Refused."""
    if not isinstance(value, str):
        raise Refused("wrong_type", f"{where} is of type {_kind(value)}; write text")
    if "\0" in value:
        raise Refused("nul", f"{where} holds a NUL character at {value.index(chr(0))}; remove it or drop the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused("not_utf8", f"{where} holds half a character at {error.start} (a lone surrogate); mend it or drop the row") from None
    return value


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise Refused("wrong_type", f"{where} is of type {_kind(turn)}; write an object with role and content")
    turn = {key: value for key, value in turn.items() if value is not None}
    named = turn.get("role", turn.get("from"))
    alias = named.strip().lower() if isinstance(named, str) else ""
    if alias not in ROLES:
        found = "no role" if named is None else f"the role {named!r:.40}"
        raise Refused("unknown_role", f"{where} has {found}; write one of {', '.join(ROLES)}")
    said = turn.get("content", turn.get("value", ""))
    if alias in _CALL_ROLES:
        turn["tool_calls"], said = said, ""
    message: dict[str, Any] = {"role": ROLES[alias], "content": _content(said, where)}
    message |= {key: text(turn[key], f"{where}, {key}") for key in _TEXT_KEYS if key in turn}
    calls = turn.get("tool_calls") or turn.get("function_call")
    if calls and ROLES[alias] != "assistant":
        raise Refused("wrong_type", f"{where} is a {ROLES[alias]}'s and has tool_calls; give them to an assistant turn")
    if calls:
        asked = enumerate(_objects(calls, f"{where}, tool_calls"), 1)
        message["tool_calls"] = [_call(call, f"{where}, call {number}") for number, call in asked]
    return message


def _content(said: Any, where: str) -> str:
    """Text, also where it comes in parts. Parts are put together with nothing between, as templates do."""
    if not isinstance(said, list | tuple):
        return text(said, f"{where}, content")
    parts = []
    for part in said:
        kind = part.get("type") or "text" if isinstance(part, Mapping) else _kind(part)
        if kind not in _TEXT_PARTS or not isinstance(part, Mapping):
            raise Refused("not_text", f"{where} has a part of type {kind!r:.40}; only text is learnt from: drop the part or the row")
        parts.append(text(part.get("text"), f"{where}, a part's text"))
    return "".join(parts)


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function") or call
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise Refused("wrong_type", f"{where} names no function; write {{'name': …, 'arguments': {{…}}}}")
    number = {"id": text(call["id"], f"{where}, id")} if call.get("id") is not None else {}
    arguments = _arguments(function.get("arguments"), where)
    return {**number, "type": "function", "function": {"name": text(name, where), "arguments": arguments}}


def _arguments(given: Any, where: str) -> Mapping[str, Any] | str:
    """The object that templates want; text stays text where it is no JSON object."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    if isinstance(given, str):
        parsed = _from_json(given)
        return _plain(parsed, where, drop_nulls=False) if isinstance(parsed, Mapping) else text(given, where)
    if not isinstance(given, Mapping):
        raise Refused("wrong_type", f"{where} has arguments of type {_kind(given)}; write an object")
    return _plain(given, where)


def _objects(value: Any, where: str) -> list[Mapping[str, Any]]:
    """A list of objects, or one alone; the whole or its items may be JSON text."""
    found = _from_json(value) if isinstance(value, str) else value
    items = [found] if isinstance(found, Mapping) else found
    items = [_from_json(item) if isinstance(item, str) else item for item in items] if isinstance(items, list | tuple) else [None]
    if not all(isinstance(item, Mapping) for item in items):
        raise Refused("wrong_type", f"{where}: not a list of objects (as JSON or as text that is JSON); mend it or drop the row")
    return items


def _from_json(value: str) -> Any:
    """What JSON text holds; None where it is none."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _plain(value: Any, where: str, *, drop_nulls: bool = True, depth: int = 0) -> Any:
    """A JSON value checked all through. In tables a null under a key means that the row has no such key; in JSON text it is a null."""
    if isinstance(value, str):
        return text(value, where)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == _MAX_DEPTH:
        raise Refused("wrong_type", f"{where} is nested more than {_MAX_DEPTH} deep; make it flatter or drop the row")
    if isinstance(value, Mapping):
        kept = {text(key, f"{where}, a key"): item for key, item in value.items() if not (drop_nulls and item is None)}
        return {key: _plain(item, where, drop_nulls=drop_nulls, depth=depth + 1) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, drop_nulls=drop_nulls, depth=depth + 1) for item in value]
    raise Refused("wrong_type", f"{where} holds a value of type {_kind(value)}; write what JSON can hold")


def _misplaced(role: str, before: Message | None) -> str | None:
    """What is wrong with a turn of this role after that one."""
    last = before["role"] if before else None
    if role == "system":
        return None if last is None else "is not the first; move its text into the first turn or drop the row"
    if role == "tool":
        fits = last == "tool" or (before is not None and "tool_calls" in before)
        return None if fits else "answers no call; give the assistant turn before it tool_calls"
    if role == last:
        return f"follows another {role} turn; join the two"
    if role == "user":
        return "follows a tool's result; put the assistant's answer between" if last == "tool" else None
    return "has no user turn before it; start with what is asked" if last in (None, "system") else None


def _of(part: str) -> str:
    return f"{part}: " if part else ""


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


class Refused(Exception):
    """Why a record is no row: `reason`, a short code for counting, and `detail`, what is wrong and what to do."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
