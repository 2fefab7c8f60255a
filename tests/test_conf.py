"""Every YAML of conf/ composes, binds, and changes nothing but its own part. CFG-1, CFG-4."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from forge.errors import ConfigError
from forge.jobs import Jobs, preflight

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
OPTIONS = [name for name in FILES if name != "config"]

# Where a part that config.yaml does not list goes to.
PLACED = {
    "data/source": "+data/source@data.sources.extra.source",
    "data/filter": "+data/filter@data.filters.extra",
    "data/policy": "+data/policy@data",
    "hydra/launcher": "hydra/launcher",  # Hydra itself lists it
}
FILLED = {
    "data/source": ["data.path=dummy"],  # null in the default data, and some sources read it
    "sweep": ["seed=0,1"],  # a search needs something to vary
}


def placed(group: str) -> str:
    """The key of the override that chooses an option of the group."""
    if group in PLACED:
        return PLACED[group]
    listed = [key for entry in OmegaConf.load(CONF / "config.yaml").defaults if isinstance(entry, DictConfig) for key in entry]
    return group if group in listed else f"+{group}"


def bound(name: str) -> Jobs:
    """The jobs that choosing this one option gives; what has no value yet gets dummy text."""
    group, _, option = name.rpartition("/")
    sweeps = "stages" not in OmegaConf.load(CONF / f"{name}.yaml")  # an experiment may sweep by itself, but for a chain
    argv = [*(["-m"] if sweeps else []), f"{placed(group)}={option}", *FILLED.get(group, [])]
    try:
        jobs = preflight(argv)
    except ConfigError as error:
        missing = re.findall(r"^([\w.]+): has no value yet", str(error), flags=re.MULTILINE)
        jobs = preflight([*argv, *(f"{key}=dummy" for key in missing)])
    assert jobs is not None
    return jobs


@functools.cache
def default() -> dict[str, Any]:
    jobs = preflight([])
    assert jobs is not None
    return dict(jobs.configs[0].resolved)


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_binds_and_changes_only_its_own_part(name: str, tmp_path: Path) -> None:
    configs = bound(name).configs
    assert configs
    assert list(tmp_path.iterdir()) == []
    group = name.split("/")[0]
    if group in default():  # an experiment or a debug option may change anything
        assert {key for key, value in configs[0].resolved.items() if value != default()[key]} <= {group}


def test_every_group_of_a_configuration_is_in_the_defaults_list() -> None:
    groups = {key for key, value in default().items() if isinstance(value, dict)}
    assert {group for group in groups if placed(group) != group} == set()
    assert {group for group in groups if not (CONF / group).is_dir()} == set()


@pytest.mark.parametrize("name", [name for name in OPTIONS if name.startswith("experiment/")])
def test_an_experiment_opens_with_its_command(name: str) -> None:
    """The first line that is not Hydra's own."""
    first = next(line for line in (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines() if "@package" not in line)
    assert re.match(rf"# python -m forge\.train( -m)? \+experiment={name.split('/')[1]}\b", first)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_opens_with_a_comment(name: str) -> None:
    assert re.match(r"(# @package \w+\n)?# \S", (CONF / f"{name}.yaml").read_text(encoding="utf-8"))
