"""Records of the common dialogue and document formats -> rows. The format is looked for in each record, never guessed from the first.

Pure; linear in the text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from forge.data.turns import Refused, check, read, text, tools
from forge.errors import DataError
from forge.spec import BadRow, Conversation, Document, Message, Preference, Row

_Record = Mapping[str, Any]
_QUESTIONS = ("prompt", "question", "query")
_ANSWERS = ("completion", "response", "answer")
# What some formats keep apart and is asked along. A "prompt" is whole: such a field beside it repeats a part of it.
_BESIDE = {"instruction": ("input", "context"), "question": ("context",), "query": ("context",)}


@dataclass(frozen=True)
class _Format:
    """`shape` shows a record to the user; `fits` looks at its keys; `read` makes the row or raises Refused."""

    shape: str
    fits: Callable[[_Record], bool]
    read: Callable[[_Record, str, str], Row]


def to_row(record: Any, id: str, origin: str, *, format: str = "auto", text_field: str = "text") -> Row:
    """The row that one JSON-like record holds; a BadRow where it holds none, or a wrong one.

    auto takes the first that fits of: preference, kto, messages, sharegpt, alpaca, prompt_completion, text (`text_field`). A key
    whose value is null counts as absent. Shapes, with other names that are known:

    preference         {"prompt", "chosen", "rejected"}: text or turns; prompt or question, query, instruction. Without a prompt, chosen
                       and rejected are conversations, and the prompt is what they begin with alike, up to an assistant's turn.
    kto                {"prompt", "completion", "label"}: with label true the completion is chosen, with false rejected.
    messages           {"messages": [{"role", "content", …}], "tools"}
    sharegpt           {"conversations": [{"from", "value"}], "tools"}; a function_call's value is the call, as JSON.
    alpaca             {"instruction", "input", "output", "history"}: input or context follows the instruction after an empty line;
                       output or response; history holds pairs of question and answer.
    prompt_completion  {"prompt", "completion"}: text or turns; prompt or question, query; completion or response, answer. A context
                       beside a question or query follows it after an empty line.

    "system" or "system_prompt" beside them is put first where it isn't blank. What is kept of a turn, and the roles: forge.data.turns.
    Reasons of a BadRow: not_an_object, no_format, wrong_type, unknown_role, empty_turn, role_order, no_target, not_text, nul, not_utf8,
    no_prompt, other_prompt, same_answers, tools_in_preference. Blank text is no BadRow. Raises DataError for an unknown `format`.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f"format {format!r} is unknown; choose one of auto, {', '.join(FORMATS)}")
    try:
        return _read(record, id, origin, format, text_field)
    except Refused as refused:
        return BadRow(origin, refused.reason, refused.detail)


def _read(record: Any, id: str, origin: str, format: str, text_field: str) -> Row:
    if not isinstance(record, Mapping):
        raise Refused("not_an_object", f"the record is of type {type(record).__name__}; write an object, such as {{{text_field!r}: …}}")
    present = {key: value for key, value in record.items() if value is not None}
    tried = _DIALOGUES if format == "auto" else {format: _DIALOGUES[format]} if format in _DIALOGUES else {}
    for candidate in tried.values():
        if candidate.fits(present):
            return candidate.read(present, id, origin)
    if format in ("auto", "text") and text_field in present:
        return Document(id, text(present[text_field], f"the field {text_field!r}"), origin)
    shapes = {name: known.shape for name, known in _DIALOGUES.items()} | {"text": f"{{{text_field}}}"}
    wanted = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if format in ("auto", name))
    keys = ", ".join(f"{key!s:.40}" + ("" if key in present else " (null)") for key in list(record)[:20]) or "none"
    raise Refused("no_format", f"the record's keys are {keys}; known: {wanted}. Rename its fields, or name the field with the text")


def _messages(record: _Record, id: str, origin: str) -> Row:
    return _conversation(record, id, origin, read(record["messages"]))


def _sharegpt(record: _Record, id: str, origin: str) -> Row:
    return _conversation(record, id, origin, read(record["conversations"]))


def _alpaca(record: _Record, id: str, origin: str) -> Row:
    history = record.get("history", [])
    if not isinstance(history, list | tuple) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise Refused("wrong_type", "history is no list of pairs; write [[question, answer], …]")
    past = [{"role": role, "content": said} for pair in history for role, said in zip(("user", "assistant"), pair, strict=True)]
    answer = _side(record, _first(record, ("output", "response")), "assistant")
    return _conversation(record, id, origin, [*read(past, "history"), *_asked(record, ("instruction",)), *answer])


def _prompt_completion(record: _Record, id: str, origin: str) -> Row:
    answer = _side(record, _first(record, _ANSWERS), "assistant")
    return _conversation(record, id, origin, [*_asked(record, _QUESTIONS), *answer])


def _preference(record: _Record, id: str, origin: str) -> Row:
    chosen, rejected = (_side(record, key, "assistant") for key in ("chosen", "rejected"))
    prompt = _asked(record, (*_QUESTIONS, "instruction"))
    if all(side and side[0]["role"] in ("system", "user") for side in (chosen, rejected)):
        shared = _shared(chosen, rejected)
        if not all(turn in shared for turn in prompt):
            raise Refused("other_prompt", "the prompt is not what chosen and rejected begin with; mend it, or leave it out")
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    if chosen == rejected:
        raise Refused("same_answers", "chosen and rejected are the same, which prefers nothing; drop the row")
    return _preferred(record, id, origin, prompt, {"chosen": chosen, "rejected": rejected})


def _kto(record: _Record, id: str, origin: str) -> Row:
    if not isinstance(record["label"], bool):
        raise Refused("wrong_type", f"label is {record['label']!r:.40}; write true or false, or say format prompt_completion")
    side = "chosen" if record["label"] else "rejected"
    answer = _side(record, "completion", "assistant")
    return _preferred(record, id, origin, _asked(record, _QUESTIONS), {side: answer})


def _conversation(record: _Record, id: str, origin: str, turns: list[Message]) -> Row:
    check(turns)
    return Conversation(id, tuple(_with_system(record, turns)), origin, tools(record.get("tools")))


def _preferred(record: _Record, id: str, origin: str, prompt: list[Message], answers: Mapping[str, list[Message]]) -> Row:
    if not prompt:
        raise Refused("no_prompt", "there is no prompt; add one, or give chosen and rejected as conversations that begin alike")
    for name, answer in answers.items():
        check([*prompt, *answer], f"prompt and {name}")
        if not answer or answer[0]["role"] != "assistant":
            raise Refused("role_order", f"{name} does not begin with an assistant turn; end the prompt before the assistant's answer")
    if tools(record.get("tools")):
        raise Refused("tools_in_preference", "preference rows can't carry tools; describe them in a system turn or drop the row")
    chosen, rejected = (tuple(answers.get(name, ())) for name in ("chosen", "rejected"))
    return Preference(id, tuple(_with_system(record, prompt)), chosen, rejected, origin)


def _shared(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """The turns that both begin with, cut so that an assistant speaks next in both."""
    most = min(len(chosen), len(rejected)) - 1
    same = next((n for n in range(most) if chosen[n] != rejected[n]), most)
    ends = (n for n in range(same, 0, -1) if chosen[n]["role"] == rejected[n]["role"] == "assistant")
    return chosen[: next(ends, 0)]


def _asked(record: _Record, keys: tuple[str, ...]) -> list[Message]:
    """The prompt under the first of `keys` that is there, with what belongs to it; no turn where none is."""
    key = _first(record, keys)
    if key not in record or not isinstance(record[key], str):
        return _side(record, key, "user") if key in record else []
    beside = [text(record[field], field) for field in _BESIDE.get(key, ()) if field in record]
    said = "\n\n".join(part for part in (record[key], *beside) if part.strip())
    return [{"role": "user", "content": text(said, key)}]


def _side(record: _Record, key: str, role: str) -> list[Message]:
    """Text as one turn of that role, or turns as they are."""
    value = record[key]
    return [{"role": role, "content": text(value, key)}] if isinstance(value, str) else read(value, key)


def _with_system(record: _Record, turns: list[Message]) -> list[Message]:
    system = text(record.get("system", record.get("system_prompt", "")), "system")
    if not system.strip():
        return turns
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if turns[0]["content"] != system:
        raise Refused("role_order", "turn 1 (system) and the record's own system text differ; keep one of them")
    return turns


def _first(record: _Record, keys: tuple[str, ...]) -> str:
    return next((key for key in keys if key in record), keys[0])


def _has(record: _Record, *keys: str) -> bool:
    return all(key in record for key in keys)


def _any(record: _Record, keys: tuple[str, ...]) -> bool:
    return any(key in record for key in keys)


_DIALOGUES = {
    "preference": _Format("{prompt, chosen, rejected}", lambda r: _has(r, "chosen", "rejected"), _preference),
    "kto": _Format("{prompt, completion, label}", lambda r: _has(r, "prompt", "completion", "label"), _kto),
    "messages": _Format("{messages}", lambda r: _has(r, "messages"), _messages),
    "sharegpt": _Format("{conversations}", lambda r: _has(r, "conversations"), _sharegpt),
    "alpaca": _Format("{instruction, output}", lambda r: "instruction" in r and _any(r, ("output", "response")), _alpaca),
    "prompt_completion": _Format("{prompt, completion}", lambda r: _any(r, _QUESTIONS) and _any(r, _ANSWERS), _prompt_completion),
}
FORMATS = (*_DIALOGUES, "text")
