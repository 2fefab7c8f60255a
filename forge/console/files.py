"""Chats in files: JSON, or JSON lines where the name ends in .jsonl. Both are rows that forge trains on."""

import json
import os
from pathlib import Path
from typing import Any

from forge import paths
from forge.console.safe import whole
from forge.console.turns import History, Turn
from forge.errors import ServingError
from forge.serving.prompt import Message

_MOST_BYTES = 2**24
_ROLES = ("system", "user", "assistant")


def place(name: str) -> Path:
    """The file that a typed name means: quotes around it, and ~ before it, are a shell's. Raises ServingError and ConfigError."""
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    if not name:
        raise ServingError("which file? write its name behind the command")
    return paths.given("file", name)


def save(file: Path, history: History) -> int:
    """How many messages were written. Raises ServingError; a file that is no chat is not written over."""
    messages = history.messages()
    if messages and messages[-1]["role"] == "user":
        messages = messages[:-1]  # not answered
    if all(turn.answer is None for turn in history.turns):
        raise ServingError("there is nothing to save yet")
    if file.exists():
        try:
            load(file)
        except ServingError as error:
            raise ServingError(f"{file}: is there already, and is no chat; choose another name") from error
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    else:
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise ServingError(f"{file}: can't be written ({error.strerror})") from error
    return len(messages)


def load(file: Path) -> History:
    """The chat in a file: a list of messages, {"messages": […]}, or a message a line. Raises ServingError, in one line."""
    try:
        if file.exists() and not file.is_file():
            raise ServingError(f"{file}: is no file")
        if file.stat().st_size > _MOST_BYTES:
            raise ServingError(f"{file}: has {file.stat().st_size:,} bytes; a chat of at most {_MOST_BYTES:,} is taken")
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ServingError(f"{file}: can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"{file}: is not UTF-8 text, so it is no chat") from error
    return _history(_messages(text, file), file)


def _messages(text: str, file: Path) -> list[Any]:
    found = _parsed(text)
    if isinstance(found, dict) and "messages" in found:
        found = found["messages"]
    if not isinstance(found, list):  # not one value, or a single message: one a line
        found = [_parsed(line) for line in text.split("\n") if line.strip()]
    if not found:
        raise ServingError(f"{file}: holds no message")
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _history(messages: list[Any], file: Path) -> History:
    history = History()
    for number, message in enumerate(messages, 1):
        role, content = _checked(message, f"{file}: message {number}")
        expected = "assistant" if history.turns and history.turns[-1].answer is None else "user"
        if role == "system" and number == 1:
            history.system = content
        elif role != expected:
            raise ServingError(f"{file}: message {number} is of the {role} where one of the {expected} has to be")
        elif role == "user":
            history.turns.append(Turn(content))
        else:
            history.turns[-1].answer = content
    return history


def _checked(message: Message, where: str) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise ServingError(f'{where} is none: a chat holds {{"role": …, "content": "text"}}, as JSON or JSON lines')
    if message.get("role") not in _ROLES:
        raise ServingError(f"{where}: role {message.get('role')!r}; it has to be one of {', '.join(_ROLES)}")
    return message["role"], whole(message["content"])


def beside(file: Path, sides: int) -> list[Path]:
    """The files of two chats held at once: `file`, and the same name with "against" in it."""
    return [file, file.with_name(f"{file.stem}.against{file.suffix}")][:sides]
