"""One sentence for each mistake in a request body."""

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from forge.serving.body import ChatBody, CompletionBody, Message, StreamOptions

_DEPTH = 64
_TOLD = 3
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60

# name: (what asks for nothing, what to do instead)
_REFUSED: dict[str, tuple[Sequence[Any], str]] = {
    "audio": ((), "this server answers with text"),
    "function_call": (("auto", "none"), "send `tools` and `tool_choice`"),
    "functions": (([],), "send them as `tools`"),
    "logit_bias": (({},), "logits can't be changed here, leave it out"),
    "modalities": ((["text"],), "this server answers with text"),
    "moderation": ((), "this server doesn't moderate, leave it out"),
    "parallel_tool_calls": ((True,), "calls can't be held to one, leave it out"),
    "prediction": ((), "it isn't made use of here, leave it out"),
    "suffix": (("",), "text can't be filled in before a suffix here, leave it out"),
    "verbosity": ((), "no such switch here, ask for it in a message"),
    "web_search_options": ((), "this server doesn't search, leave it out"),
}

_INNER: dict[str, type[BaseModel]] = {"messages": Message, "stream_options": StreamOptions}


def unwholesome(value: Mapping[str, Any]) -> str | None:
    """What is wrong with a body whatever it means: half characters, numbers without end, depth that no reader bears."""
    containers: list[tuple[tuple[Any, ...], Any, int]] = [((), value, 0)]
    while containers:
        path, container, depth = containers.pop()
        if depth > _DEPTH:
            return f"{_at(path)}: nested deeper than {_DEPTH} levels"
        inside = container.items() if isinstance(container, dict) else enumerate(container)
        for key, each in inside:
            if wrong := _unwholesome_key(key) or _unwholesome_scalar(each):
                return f"{_at((*path, key))}: {wrong}"
            if isinstance(each, dict | list):
                containers.append(((*path, key), each, depth + 1))
    return None


def _at(path: Iterable[Any]) -> str:
    """The place of a mistake, in one short line whatever the keys are."""
    joined = ".".join(map(str, path))
    return f"`{joined if joined.isprintable() and len(joined) <= 60 else _SHORT.repr(joined)[1:-1]}`"


def _unwholesome_key(key: Any) -> str | None:
    return None if isinstance(key, int) else _unwholesome_scalar(key) if isinstance(key, str) else "a key has to be text"


def _unwholesome_scalar(value: Any) -> str | None:
    if isinstance(value, str) and not _is_text(value):
        return "it holds half of a UTF-16 pair (\\ud800 to \\udfff), which is no text"
    if isinstance(value, float) and not math.isfinite(value):
        return f"a number has to be finite, got {value}"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a whole number of more than 64 bits"
    return None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refused(body: Mapping[str, Any]) -> str | None:
    """The sentence for the first key that asks for what can't be done here."""
    for name, (harmless, instead) in _REFUSED.items():
        if body.get(name) is not None and body[name] not in harmless:
            return f"`{name}`: {instead}"
    return None


def known(body: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that are refused where they ask for something: by now they don't."""
    return {key: value for key, value in body.items() if key not in _REFUSED}


def complaint(shape: type[BaseModel], errors: Sequence[Any]) -> str:
    """One sentence for what pydantic found in a body of this shape; the first few mistakes are told."""
    said = "; ".join(_complaint(shape, error) for error in errors[:_TOLD])
    return said if len(errors) <= _TOLD else f"{said}; and {len(errors) - _TOLD} more mistakes"


def _complaint(shape: type[BaseModel], error: Mapping[str, Any]) -> str:
    *parents, name = error["loc"] or ("",)
    at = _at(error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown(shape, [str(parent) for parent in parents if isinstance(parent, str)], str(name), at)
    if error["type"] == "missing":
        return f"{at} is missing"
    if error["type"] == "no_content":
        return f"{_at((*error['loc'], 'content'))} is missing"
    if error["type"] == "said":
        return f"{at}: {error['msg']}"
    said = re.sub(r" after validation, not \d+", "", error["msg"])
    said = re.sub(r"a valid dictionary( or instance of \w+)?", "an object", said)
    return f"{at}: {said}, got {_SHORT.repr(error['input'])}"


def _unknown(shape: type[BaseModel], parents: list[str], name: str, at: str) -> str:
    other = CompletionBody if shape is ChatBody else ChatBody
    if not parents and name in other.model_fields:
        return f"{at} goes with {'`prompt`' if other is CompletionBody else '`messages`'} only"
    valid = list((_INNER[parents[-1]] if parents else shape).model_fields)
    near = difflib.get_close_matches(name[:60], valid, n=1, cutoff=0.62)
    return f"unknown key {at}, " + (f"did you mean `{near[0]}`?" if near else f"valid are {', '.join(valid)}")
