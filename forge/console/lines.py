"""What the user types: with editing, history and several lines in a terminal, plain lines where there is none."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from forge import paths
from forge.console.safe import whole

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "
QUOTES = '"""'


class Reader(Protocol):
    def read(self) -> str | None:
        """The next message or command; None when the user leaves."""


def reader(source: TextIO, echo: Callable[[str], None]) -> Reader:
    """The one that fits where the input comes from and the output goes to. `echo` shows a line that nobody typed."""
    if source.isatty() and sys.stdout.isatty():
        return Typed()
    return Lines(source, echo)


class Lines:
    '''Lines of a file or a pipe. A message of several lines stands between """ and """.'''

    def __init__(self, source: TextIO, echo: Callable[[str], None]):
        self._source, self._echo = source, echo

    def read(self) -> str | None:
        try:
            line = self._source.readline()
            if not line:
                return None
            text = line.removesuffix("\n").removesuffix("\r")
            while _open(text) and (more := self._source.readline()):
                text += "\n" + more.removesuffix("\n").removesuffix("\r")
        except KeyboardInterrupt:
            return None
        self._echo(PROMPT + text)
        return whole(_unquoted(text))


class Typed:
    """A line editor. Enter sends, Alt-Enter begins a new line; so does Enter within quotes, and a paste keeps its lines."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession

        self._session: PromptSession[str] = PromptSession(
            PROMPT, history=_history(), key_bindings=_keys(), multiline=True, prompt_continuation="… "
        )

    def read(self) -> str | None:
        try:
            return whole(_unquoted(self._session.prompt()))
        except (EOFError, KeyboardInterrupt):
            return None


def _open(text: str) -> bool:
    """Whether it is a quotation that has not ended."""
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.rstrip().endswith(QUOTES))


def _unquoted(text: str) -> str:
    if not text.startswith(QUOTES):
        return text
    return text.removeprefix(QUOTES).rstrip().removesuffix(QUOTES).removeprefix("\n").removesuffix("\n")


def _keys() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: "KeyPressEvent") -> None:
        _enter(event.current_buffer)

    @keys.add("escape", "enter")
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: "KeyPressEvent") -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


def _enter(buffer: "Buffer") -> None:
    if _open(buffer.text):
        buffer.insert_text("\n")
    else:
        buffer.validate_and_handle()


def _history() -> "History":
    """Kept for the next time where the root can be written, readable by its owner alone."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    file = paths.cache() / "chat_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            super().store_string(whole(string))

    return Kept(str(file))
