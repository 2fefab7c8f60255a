"""key=value words of a command line -> the settings of an entry that composes no training configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from forge import binding
from forge.errors import ConfigError

T = TypeVar("T")

MODELS = ["models:/NAME@ALIAS", "FOLDER"]  # how a model may be named


def read(kind: type[T], words: Sequence[str]) -> T:
    """`kind` is a dataclass that pydantic checks (forge.settings.checked). What is to be text stays as typed: a run may be named 1e5, and
    a path may hold a # or a colon. Raises ConfigError: all problems, a line each, or what to write where nothing but a word is missing; the
    field's `examples` say how."""
    hints = get_type_hints(kind)
    text = {name for name, hint in hints.items() if hint in (str, str | None)}
    split = [(*word.partition("="), word) for word in words]
    typed = {key: None if value == "null" else value for key, equals, value, _ in split if equals and key in text}
    given = tree([word for key, _, _, word in split if key not in typed], list(hints))
    _require(kind, given | typed)
    problems = binding.Problems()
    found = binding.spec(kind, given | typed, "", problems)
    if found is None:
        raise ConfigError("\n".join(problems))
    return found


def _require(kind: type, given: Mapping[str, Any]) -> None:
    known = getattr(kind, "__pydantic_fields__", {})
    if given.keys() <= known.keys():
        for name, about in known.items():
            if about.is_required() and name not in given:
                ways = " or ".join(f"{name}={way}" for way in about.examples or [name.upper()])
                raise ConfigError(f"which {name}? Write {ways}; --help lists the settings")


def tree(words: Sequence[str], valid: Sequence[str] = ()) -> dict[str, Any]:
    """["a.b=1"] -> {"a": {"b": 1}}, values read as YAML. Raises ConfigError, which names the `valid` keys."""
    for word in words:
        if "=" not in word or word.startswith(("-", "=")):
            names = f" (valid: {', '.join(f'{name}=…' for name in valid)})" if valid else ""
            raise ConfigError(f"{word}: not a setting; write key=value{names}")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(words)), resolve=True)  # type: ignore[return-value]
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{' '.join(words)}: {' '.join(str(error).split())}") from error
