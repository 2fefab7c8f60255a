"""key=value words of a command line -> the settings of an entry that composes no training configuration."""

from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from forge import binding
from forge.errors import ConfigError

T = TypeVar("T")


def read(kind: type[T], words: Sequence[str]) -> T:
    """`kind` is a dataclass that pydantic checks (forge.settings.checked). What is to be text stays as typed: a run may be named 1e5, and
    a path may hold a # or a colon. Raises ConfigError with all problems, a line each."""
    hints = get_type_hints(kind)
    text = {name for name, hint in hints.items() if hint in (str, str | None)}
    split = [(*word.partition("="), word) for word in words]
    typed = {key: None if value == "null" else value for key, equals, value, _ in split if equals and key in text}
    given = tree([word for key, _, _, word in split if key not in typed], list(hints))
    problems = binding.Problems()
    found = binding.spec(kind, given | typed, "", problems)
    if found is None:
        raise ConfigError("\n".join(problems))
    return found


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
