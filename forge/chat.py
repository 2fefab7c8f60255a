"""python -m forge.chat model=models:/NAME@ALIAS|FOLDER [KEY=VALUE …] : talk to a model in the terminal.

against=…  a second model, which answers everything too, beside the first; with equal seeds, and a history of its own
mode=      auto (default): chat where the model has a chat template, else it continues your text; instruct, base: one of the two
system=…   the system prompt
uri=…      the tracking store of models:/… (default: MLFLOW_TRACKING_URI, else mlflow.db at the root)
temperature=, top_p=, top_k=, min_p=, repetition_penalty=, max_tokens=, seed=   sampling; /set changes it

/help lists the commands. Where input is no terminal each line is a message or a command, so that a session can be scripted. When the
context is full the model no longer sees the oldest turns, and that is said. Everything runs in this process; nothing is sent anywhere.
"""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from forge import paths
from forge.console import settings
from forge.console.settings import ChatSpec
from forge.entry import entry
from forge.errors import ModelError
from forge.imports import lasting
from forge.words import VERSION

if TYPE_CHECKING:
    from forge.console.side import Side

_REGISTERED = "models:/"


def main(argv: list[str]) -> int:
    """The exit code: 0 however the user left, or an error's own."""
    return entry(_chat, argv)


def _chat(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print((__doc__ or "").strip())
        return 0
    asked = settings.read(argv)
    names = [asked.model] + ([asked.against] if asked.against else [])
    places = [_place(name, asked.uri) for name in names]
    with lasting():
        from forge.console.lines import reader
        from forge.console.repl import Chat
        from forge.console.side import Side
        from forge.console.view import tell

    for stream in (sys.stdin, sys.__stdout__):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    console = Console(highlight=False)
    sides = []
    for folder, name in places:
        side = Side(name, folder, asked.mode, asked.system)
        sides.append(side)
        tell(console, _greeting(side, asked))
    tell(console, "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves", "dim")
    Chat(sides, asked, console).run(reader(sys.stdin, lambda text: tell(console, text, "bold")))
    for side in sides:
        side.engine.close()
    return 0


def _place(name: str, uri: str | None) -> tuple[Path, str]:
    """The folder of a model, and what to call it. Raises ModelError and TrackingError."""
    if not name.startswith(_REGISTERED):
        folder = paths.given("model", name)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name}: no model lies there; give a folder with config.json and *.safetensors, or models:/NAME@ALIAS")
        return folder, folder.resolve().name
    if not VERSION.fullmatch(name):
        raise ModelError(f"{name}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    from forge.tracking import reader, registry

    reader.opened(uri)  # one that is there: none is made
    folder, version = registry.fetch(uri, name)
    return folder, version.removeprefix(_REGISTERED)


def _greeting(side: "Side", asked: ChatSpec) -> str:
    context = f"context {side.context:,} tokens" if side.context else "context not known"
    if side.chat:
        template = "" if side.has_template else " in forge's simple template, since it has none of its own"
        return f"{side.name}: chat{template}, {context}"
    why = "as mode=base asks" if asked.mode == "base" else "since it has no chat template"
    left_out = "; system=… is left out" if asked.system else ""
    return f"{side.name}: continues your text, {why}; {context}{left_out}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
