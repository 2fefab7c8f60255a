"""The words of the command line, and of /set, as settings."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from forge import binding, keys
from forge.errors import ConfigError
from forge.serving.contract import Sampling
from forge.serving.prompt import Mode
from forge.serving.ranges import MaxTokens, MinP, RepetitionPenalty, Seed, Temperature, TopK, TopP

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_DEFAULT = Sampling()

_Text = Annotated[str, Field(min_length=1)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class SamplingSpec:
    """What each name means is said at forge.serving.contract.Sampling. `seed` null: another text each time."""

    temperature: Temperature = _DEFAULT.temperature
    top_p: TopP = _DEFAULT.top_p
    top_k: TopK = _DEFAULT.top_k
    min_p: MinP = _DEFAULT.min_p
    repetition_penalty: RepetitionPenalty = _DEFAULT.repetition_penalty
    max_tokens: MaxTokens = _DEFAULT.max_tokens
    seed: Seed | None = _DEFAULT.seed


@checked(frozen=True, kw_only=True, config=_STRICT)
class ChatSpec(SamplingSpec):
    """`model`, `against`: models:/NAME@ALIAS, models:/NAME/VERSION, or a folder. `mode` auto: by whether there is a chat template."""

    model: Annotated[_Text, Field(examples=keys.MODELS)]
    against: _Text | None = None
    mode: Mode = "auto"
    system: _Text | None = None
    uri: _Text | None = None


_SAMPLING = tuple(field.name for field in fields(SamplingSpec))


def read(words: Sequence[str]) -> ChatSpec:
    """Raises ConfigError with all problems, a line each."""
    return keys.read(ChatSpec, words)


def changed(now: SamplingSpec, words: Sequence[str]) -> SamplingSpec:
    """With some settings of sampling changed. Raises ConfigError."""
    problems = binding.Problems()
    found = binding.spec(SamplingSpec, sampling(now) | keys.tree(words, _SAMPLING), "", problems)
    if found is None:
        raise ConfigError("\n".join(problems))
    return found


def sampling(now: SamplingSpec) -> dict[str, object]:
    """Its settings, by name."""
    return {name: value for name, value in asdict(now).items() if name in _SAMPLING}
