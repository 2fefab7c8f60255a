"""A composed configuration, checked as a whole: typed specs for numbers, bound callables for choices of function."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field

from forge import binding, settings
from forge.errors import ConfigError
from forge.stages import STAGE

# What decides where results go, and not which results they are.
_NOT_IDENTITY = (
    *("name", "resume", "tracking", "release", "sweep", "allowed_targets", "data.limits", "data.cache_gb", "callbacks.pruning"),
    *(f"evaluation.{what}" for what in ("answers", "samples", "max_new_tokens", "retention", "harness")),
)

_SPECS: dict[str, type] = {
    "data": settings.DataSpec,
    "schedule": settings.ScheduleSpec,
    "trainer": settings.TrainerSpec,
    "evaluation": settings.EvaluationSpec,
    "release": settings.ReleaseSpec,
    "tracking": settings.TrackingSpec,
    "sweep": settings.SweepSpec,
}
_INSTEAD = {  # of a key without a value
    "model.uri": ", or name what to start from: model=models:/NAME@champion, model=FOLDER, or model=hub model.id=OWNER/NAME"
}
_TARGETS = ("model", "adapter", "objective", "optimizer")
GROUPS = (*_TARGETS, *_SPECS, "callbacks")


class _Top(BaseModel):
    """What stands at the top of a configuration; the groups are checked one by one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: dict[str, Any]
    adapter: dict[str, Any]
    data: dict[str, Any]
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any]
    evaluation: dict[str, Any]
    release: dict[str, Any]
    tracking: dict[str, Any]
    sweep: dict[str, Any]
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    resume: str | None
    allowed_targets: list[Annotated[str, Field(pattern=r"^\w[\w.]*\.$")]]


@dataclass(frozen=True)
class Config:
    """A whole configuration, checked. Callables have their knobs bound. `resolved` is the plain tree it came from."""

    name: str
    seed: int
    resume: str | None
    identity: str
    model: Callable[..., Any]
    adapter: Callable[..., Any]
    objective: Callable[..., Any]
    optimizer: Callable[..., Any]
    shape: Callable[[float], float]
    sources: Mapping[str, Callable[..., Any]]
    filters: Mapping[str, Callable[..., Any]]
    callbacks: Mapping[str, Any]
    data: settings.DataSpec
    schedule: settings.ScheduleSpec
    trainer: settings.TrainerSpec
    evaluation: settings.EvaluationSpec
    release: settings.ReleaseSpec
    tracking: settings.TrackingSpec
    sweep: settings.SweepSpec
    resolved: Mapping[str, Any]

    def releases(self, parent: str | None) -> bool:
        """Whether a run below `parent` releases its best checkpoint: a sweep chooses among its children, a chain's stages all do."""
        return self.release.enabled and (parent is None or STAGE in self.tracking.tags)

    def yaml(self) -> str:
        return OmegaConf.to_yaml(OmegaConf.create(dict(self.resolved)))


def check(config: DictConfig) -> Config:
    """Raises ConfigError that lists every problem, a line each."""
    problems = binding.Problems()
    checked = bind(config, problems)
    if problems or checked is None:
        raise ConfigError("\n".join(problems))
    return checked


def identity(resolved: Mapping[str, Any]) -> str:
    """A hash (16 hex digits) of every setting that can change a result; runs that share it are the same experiment."""
    return hashlib.sha256(json.dumps(relevant(resolved), sort_keys=True).encode()).hexdigest()[:16]


def relevant(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change a result."""
    return {key: _relevant(key, value) for key, value in resolved.items() if key not in _NOT_IDENTITY}


def _relevant(group: str, value: Any) -> Any:
    return {key: v for key, v in value.items() if f"{group}.{key}" not in _NOT_IDENTITY} if isinstance(value, dict) else value


def dotted(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """{"a": {"b": 1}} -> ("a.b", 1)."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def bind(config: DictConfig, problems: binding.Problems) -> Config | None:
    """check() for who collects the problems of several configurations: adds them to `problems`, and is None when there are any."""
    for key in _missing(OmegaConf.to_container(config, resolve=False)):
        problems.add(key, f"has no value yet: set {key}=…{_INSTEAD.get(key, '')}")
    if problems:
        return None  # what refers to these can't be resolved
    try:
        tree: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        problems.add(error.full_key or "config", str(error).splitlines()[0])
        return None
    binding.spec(_Top, tree, "", problems)

    found: dict[str, Any] = {}
    for group, kind in _SPECS.items():
        if isinstance(tree.get(group), dict):
            found[group] = binding.spec(kind, tree[group], group, problems)
    allowed = [str(prefix) for prefix in tree.get("allowed_targets") or ()]
    for group in _TARGETS:
        if isinstance(tree.get(group), dict):
            found[group] = binding.target(tree[group], group, problems, allowed)
    if found.get("schedule"):
        found["shape"] = binding.target(found["schedule"].shape, "schedule.shape", problems, allowed)
    if found.get("data"):
        named = found["data"].sources.items()
        nodes = found["data"].filters.items()
        found["filters"] = {name: binding.target(node, f"data.filters.{name}", problems, allowed) for name, node in nodes}
        found["sources"] = {name: binding.target(s.source, f"data.sources.{name}.source", problems, allowed) for name, s in named}
        if not any(s.weight > 0 for _, s in named):
            problems.add("data.sources", "no source has a weight above 0")
    callbacks = tree.get("callbacks")
    if isinstance(callbacks, dict):
        bound = {name: binding.target(node, f"callbacks.{name}", problems, allowed) for name, node in callbacks.items() if node is not None}
        known = {name: build for name, build in bound.items() if build is not None}
        found["callbacks"] = {name: build() for name, build in known.items() if is_dataclass(build.func)}  # others may do anything
        for name in known.keys() - found["callbacks"].keys():
            problems.add(f"callbacks.{name}", "has to be a dataclass: checkpoints save its fields")
    if problems:
        return None
    rest = {key: tree[key] for key in ("name", "seed", "resume")}
    return Config(**rest, **found, identity=identity(tree), resolved=tree)


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """The dotted keys whose value is still ???."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing(value, f"{path}.{key}" if path else str(key))
    elif node == "???":
        yield path
