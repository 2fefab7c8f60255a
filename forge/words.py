"""What a command line may say in other words than Hydra's: the model to start from by what it is, and a path from ~ without quotes.

model=models:/forge-notes@champion    ->  model=registry model.uri=models:/forge-notes@champion
model=~/models/qwen3                  ->  model=local model.path=/home/ann/models/qwen3
"""

import re
from collections.abc import Sequence
from pathlib import Path

from forge import paths
from forge.errors import ConfigError

_REGISTERED = "models:/"
VERSION = re.compile(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))")  # its name, and its number or alias
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PLAIN = re.compile(r"[\w/.:@+-]+")  # needs no quotes in an override


def expanded(words: Sequence[str], folders: Sequence[Path], several: bool = False) -> list[str]:
    """The overrides that `words` stand for; of these, themselves. `folders`: of the configuration, whose options go first; `several`: a
    value may be a list, as -m takes it. Raises ConfigError for a model that can't be."""
    return [new for word in words for new in _model(word, folders, several)]


def quoted(text: str) -> str:
    """As an override holds any text: backslashes in front of a quote are doubled, and the quote gets one."""
    return text if _PLAIN.fullmatch(text) else "'" + re.sub(r"(\\*)'", r"\1\1\\'", text + "'")[:-2] + "'"


def _model(word: str, folders: Sequence[Path], several: bool) -> list[str]:
    key, _, value = word.partition("=")
    if key != "model":
        return [f"{key}={quoted(value)}"] if value.startswith("~") and not (several and "," in value) else [word]
    values = [_bare(one) for one in (value.split(",") if several else [value])]
    found = [_kind(one, folders) for one in values]
    if None in found:
        if any(found):
            raise ConfigError(f"{word}: options and models can't be mixed; name models alone, such as model=models:/a@champion,models:/b/2")
        return [word]
    kinds = dict.fromkeys(kind for kind, _ in filter(None, found))
    if len(kinds) > 1:
        raise ConfigError(f"{word}: registered models and folders can't be swept together; sweep over either")
    (option, setting), *_ = kinds
    return [f"model={option}", f"model.{setting}=" + ",".join(quoted(text) for _, text in filter(None, found))]


def _kind(value: str, folders: Sequence[Path]) -> tuple[tuple[str, str], str] | None:
    """The option that takes the model, its setting, and what to set; None for what is an option itself."""
    if value.startswith(_REGISTERED):
        if not VERSION.fullmatch(value):
            raise ConfigError(f"model={value}: write models:/NAME@ALIAS or models:/NAME/VERSION")
        return ("registry", "uri"), value
    if any((folder / "model" / f"{value}.yaml").is_file() for folder in folders):
        return None
    path = paths.given("model", value)
    if not ("/" in value or value.startswith(("~", ".")) or (value and path.is_dir())):
        return None
    if not path.is_dir():
        what = "this is a file" if path.is_file() else "there is no such folder"
        hub = f"; from the hub it is model=hub model.id={value}" if _HUB_ID.fullmatch(value) else ""
        raise ConfigError(f"model={value}: {what}; give a model's folder, or a registered one as models:/NAME@ALIAS{hub}")
    return ("local", "path"), str(path.absolute())


def _bare(value: str) -> str:
    quotes = value[:1] in ("'", '"') and value[:1] == value[-1:] and len(value) > 1
    return value[1:-1] if quotes else value
