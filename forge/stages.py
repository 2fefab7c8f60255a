"""A chain of runs: its configuration names stages, and each override of the command line goes to all of them or to one.

    stages:                   # in the order in which they run, each from the model that the one before released
      cpt: [+experiment=cpt]  # its name: overrides of forge.train
      ift: [+experiment=ift]

On the command line `seed=1` is for all stages, `cpt.optimizer.lr=1e-3` for one. `model=…` is the first stage's, the others' is settled;
`data…` has to say which stage's it is. Run n of chain NAME is called by its stage, and registers as forge-NAME-STAGE.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forge import binding
from forge.errors import ConfigError

_OF_THE_CHAIN = ("experiment", "name", "resume", "hydra", "tracking.run_name", "tracking.experiment")
_SETTLED = ("name", "resume", "tracking.experiment", "tracking.run_name")
_BASE = ("model", "model.uri", "model.path", "model.id")
STAGE = "forge.stage"  # the tag of a run that is one
_FROM = "model.uri="


@dataclass(frozen=True)
class Chain:
    """`stages`: their names, in order. `run_name`: of the run that holds theirs."""

    name: str
    experiment: str
    run_name: str | None
    stages: tuple[str, ...]


def heads(words: Sequence[str]) -> list[str] | None:
    """The overrides that decide whether there is a chain, and what the chain itself is; None where there is none, for sure."""
    found = [word for word in words if _within(_key(word), _OF_THE_CHAIN) or _key(word) == "stages" or _key(word).startswith("hydra")]
    return found if any(_key(word) in ("experiment", "stages") for word in found) else None


def read(tree: Mapping[str, Any]) -> tuple[Chain, dict[str, list[str]]]:
    """The chain of a composed configuration, and each stage's own overrides. Raises ConfigError."""
    listed, name, tracking = tree["stages"], tree["name"], tree["tracking"]
    wrong = "stages: write the overrides of each by its name, such as stages: {cpt: [+experiment=cpt], ift: [+experiment=ift]}"
    if not isinstance(listed, Mapping) or not listed:
        raise ConfigError(wrong)
    for stage, words in listed.items():
        if not re.fullmatch(r"[a-z][\w-]*", str(stage)) or stage in tree or not isinstance(words, Sequence) or isinstance(words, str):
            raise ConfigError(f"stages.{stage}: a name that is no group's, with a list of overrides; {wrong}")
    if tree.get("resume") not in (None, "auto"):
        raise ConfigError("resume=… names one run, but a chain goes on by itself when the same command is typed again: leave it out")
    chain = Chain(str(name), str(tracking["experiment"]), tracking["run_name"], tuple(listed))
    return chain, {stage: [str(word) for word in words] for stage, words in listed.items()}


def split(chain: Chain, listed: Mapping[str, Sequence[str]], words: Sequence[str], groups: Collection[str]) -> dict[str, list[str]]:
    """The overrides of each stage. What a stage after the first starts from is known later: see start_from. Raises ConfigError.

    groups: the keys at the top of a configuration, which no stage is called by.
    """
    first, *_ = chain.stages
    found = {stage: _begun(chain, stage, own) for stage, own in listed.items()}
    for word in words:
        key = _key(word)
        stage, dot, rest = key.partition(".")
        if dot and stage in found:
            if rest in _SETTLED:
                raise ConfigError(f"{word}: a chain settles its stages' {rest}: leave it out")
            if rest in _BASE and stage != first:
                raise ConfigError(f"{word}: {stage} starts from what the stage before it releases; the chain begins with {first}.model=…")
            found[stage].append(word.replace(f"{stage}.", "", 1))
        elif stage == "stages" and dot:
            raise ConfigError(f"{word}: for one stage write {word.replace('stages.', '', 1)}")
        elif key in ("data", "data.path") or key.startswith(("data.sources", "data/")):
            ways = " or ".join(f"{_sigil(word)}{each}.{word.lstrip('+~')}" for each in chain.stages)
            raise ConfigError(f"{word}: which stage's? write {ways}")
        elif _within(key, ("model",)):
            found[first].append(word)
        elif _within(key, (*_OF_THE_CHAIN, "stages")) or key.startswith("hydra"):
            continue
        elif dot and re.fullmatch(r"[\w-]+", stage) and stage not in groups:
            raise ConfigError(f"{word}: there is no stage {stage!r}, nor such a key{binding.nearest(stage, (*found, *groups))}")
        else:
            for each in found.values():
                each.append(word)
    for before, stage in zip(chain.stages, chain.stages[1:], strict=False):
        found[stage] += ["model=registry", f"{_FROM}models:/{released_as(chain, before)}/0"]
    return found


def start_from(overrides: Sequence[str], uri: str) -> tuple[str, ...]:
    """A later stage's overrides, with the version that it starts from."""
    return (*overrides[:-1], f"{_FROM}{uri}")


def released_as(chain: Chain, stage: str) -> str:
    """The registered model of a stage, where it names no other."""
    return f"forge-{chain.name}-{stage}"


def _begun(chain: Chain, stage: str, own: Sequence[str]) -> list[str]:
    return [*own, f"name={chain.name}-{stage}", f"tracking.experiment={chain.experiment}", f"tracking.tags={{{STAGE}: {stage}}}"]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _sigil(word: str) -> str:
    return word[: len(word) - len(word.lstrip("+~"))]


def _within(key: str, keys: Sequence[str]) -> bool:
    """Whether it is one of them, or lies below one."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)
