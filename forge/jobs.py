"""What a command line asks for: composes the jobs with Hydra, checks all of them, and lets Hydra run a single one.

Hydra stops at the first wrong key and leaves with a code of its own. So preflight() composes every job first, accepting
any key, and reports all problems of all jobs at once. Only then does Hydra run. Composing twice costs about 0.2 s.
The jobs of a sweep are run by forge.sweep, each in a process of its own.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from forge import binding, paths, stages, words
from forge.config import Config, bind, check
from forge.errors import ConfigError, ForgeError
from forge.mistakes import in_our_words
from forge.stages import Chain

if TYPE_CHECKING:
    from forge.sweep.space import Space

_OF_THE_SWEEP = ("hydra.sweep.", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher", "hydra.run.dir", "hydra.mode")


@dataclass(frozen=True)
class Jobs:
    """What a command line asks for: the checked jobs, and the keys in which they differ when it is a sweep.

    `overrides`: each job's own, for `config()` and, behind `flags`, for a process that runs it alone. `space`: where a search is to find
    the jobs, this is what it looks through, and the jobs here are samples that cover its bounds and choices. `chain`: the jobs are its
    stages, and those after the first don't know yet which version they start from.
    """

    configs: tuple[Config, ...]
    overrides: tuple[tuple[str, ...], ...]
    swept: tuple[str, ...]
    multirun: bool
    show: bool  # --cfg: print, run nothing
    argv: tuple[str, ...]  # for Hydra: as typed, but any key is accepted, since all were checked
    flags: tuple[str, ...] = ()
    hydra: DictConfig | None = None  # of a sweep or a chain: Hydra's own settings, such as its folder and launcher
    space: "Space | None" = None
    folders: tuple[Path, ...] = ()
    config_name: str | None = None
    chain: Chain | None = None

    def config(self, overrides: Sequence[str]) -> Config:
        """The checked configuration of one more job. Raises ConfigError."""
        try:
            return check(_compose(list(overrides), list(self.folders), self.config_name))
        except _hydra_errors() as error:
            raise ConfigError(in_our_words(error)) from error


@dataclass(frozen=True)
class _Expanded:
    """The overrides of each job, and what they have in common."""

    jobs: list[list[str]]
    swept: tuple[str, ...] = ()
    hydra: DictConfig | None = None
    space: "Space | None" = None
    chain: Chain | None = None


def preflight(argv: list[str]) -> Jobs | None:
    """Compose and check every job of the command line; None when it only asks Hydra for information.

    Raises ConfigError with all problems of all jobs, before anything is loaded or written.
    """
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_intermixed_args(argv)
    if args.help or args.hydra_help or args.info or args.shell_completion:
        return None
    if args.config_path:
        raise ConfigError("--config-path would hide forge's own configuration: put your folder beside it with --config-dir")
    if args.cfg and args.multirun:
        raise ConfigError("--cfg prints the configuration of one job: leave out -m")
    folders = [paths.conf(), *([Path(args.config_dir)] if args.config_dir else [])]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: there is no such folder")
    _refuse_hidden(folders)
    typed = words.expanded(args.overrides, folders, args.multirun)
    try:
        expanded = _chained(typed, folders, args.config_name, args.multirun)
        if expanded is None:
            expanded = _expand(typed, folders, args.config_name) if args.multirun else _Expanded([typed])
        configs, problems = _bound(expanded, folders, args.config_name)
    except _hydra_errors() as error:
        raise ConfigError(in_our_words(error)) from error
    if problems:
        raise ConfigError("\n".join(problems))
    if args.multirun:
        _refuse_resume(configs)
    if expanded.chain:
        _require_releases(expanded.chain, configs)
    elif expanded.space is None:
        _refuse_duplicates(configs, expanded.jobs)
    flags = [word for word in argv if word not in args.overrides]  # Hydra takes them in front only
    return Jobs(
        configs=tuple(c for c in configs if c is not None),
        overrides=tuple(tuple(job) for job in expanded.jobs),
        swept=expanded.swept,
        multirun=args.multirun,
        show=bool(args.cfg),
        argv=(*flags, *(_accept_any_key(word, folders) for word in (stages.heads(typed) or () if expanded.chain else typed))),
        flags=(
            *_flag("--config-dir", args.config_dir and str(Path(args.config_dir).absolute())),
            *_flag("--config-name", args.config_name),
        ),
        hydra=expanded.hydra,
        space=expanded.space,
        folders=tuple(folders),
        config_name=args.config_name,
        chain=expanded.chain,
    )


def launch(task: Callable[[DictConfig], Any], argv: Sequence[str]) -> None:
    """Hand over to Hydra, which calls `task` with each job's configuration. Raises the ForgeError that a job raised."""
    import hydra

    raised: list[ForgeError] = []

    def guarded(config: DictConfig) -> None:
        try:
            task(config)
        except ForgeError as error:  # Hydra would print a traceback and leave with a code of its own
            raised.append(error)

    _register()
    sys.argv[1:] = argv
    hydra.main(version_base="1.3", config_path=str(paths.conf()), config_name="config")(guarded)()
    if raised:
        raise raised[0]


def single(argv: list[str], refusal: str) -> Config | None:
    """The one job of a command line; None where it only asked Hydra to print. Raises ConfigError, with `refusal` for a sweep."""
    asked = preflight(argv)
    if asked is None or asked.show:
        launch(lambda _: None, asked.argv if asked else argv)
        return None
    if asked.multirun:
        raise ConfigError(f"{refusal}: leave out -m")
    if asked.chain:
        raise ConfigError(f"{refusal}, and this is a chain of {' and '.join(asked.chain.stages)}: name the experiment of one of them")
    return asked.configs[0]


def task_overrides() -> list[str]:
    """The overrides of the job that is running."""
    from hydra.core.hydra_config import HydraConfig

    return [o.removeprefix("++") for o in HydraConfig.get().overrides.task] if HydraConfig.initialized() else []


def _register() -> None:
    OmegaConf.register_new_resolver("forge.root", lambda: str(paths.root()), replace=True)
    OmegaConf.register_new_resolver("forge.pid", lambda: str(os.getpid()), replace=True)


def _compose(overrides: list[str], folders: list[Path], config_name: str | None, hydra_too: bool = False) -> DictConfig:
    from hydra import compose, initialize_config_dir

    _register()
    lenient = [_accept_any_key(o, folders) for o in overrides]
    if len(folders) > 1:
        places = ",".join("'file://" + str(folder.resolve()).replace("'", "\\'") + "'" for folder in folders[1:])
        lenient.append(f"hydra.searchpath=[{places}]")
    with initialize_config_dir(config_dir=str(folders[0]), version_base="1.3"):
        config = compose(config_name or "config", overrides=lenient, return_hydra_config=hydra_too)
    return config


def _accept_any_key(override: str, folders: list[Path]) -> str:
    """`key=value` -> `++key=value` unless key chooses a group, so that unknown keys reach check(), which names the nearest."""
    key, _, value = override.partition("=")
    is_group = "/" in key or "@" in key or any((folder / key).is_dir() for folder in folders)
    if is_group and value == "null":
        options = (path.stem for folder in folders for path in (folder / key).glob("*.yaml"))
        raise ConfigError(f"{override}: a group needs one of its options{binding.nearest('', options)}")
    return override if is_group or key[:1] in "+~" or key.startswith("hydra.") else f"++{override}"


def _expand(overrides: list[str], folders: list[Path], config_name: str | None) -> _Expanded:
    """The jobs of a sweep. An experiment may sweep by itself through hydra.sweeper.params."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    fixed = [o.input_line or "" for o in parser.parse_overrides(overrides) if not o.is_sweep_override()]
    composed = _compose(fixed, folders, config_name, hydra_too=True)
    target = str(composed.hydra.sweeper.get("_target_"))
    if target.rpartition(".")[2] != BasicSweeper.__name__:
        raise ConfigError(f"hydra/sweeper: {target} can't drive a sweep of forge: leave it out, and choose how to search with sweep=…")
    params = composed.hydra.sweeper.get("params") or {}
    parsed = parser.parse_overrides([f"{key}={value}" for key, value in params.items()] + overrides)
    of_jobs = [o for o in parsed if not o.get_key_element().lstrip("+~").startswith(_OF_THE_SWEEP)]
    swept = tuple(dict.fromkeys(o.get_key_element().lstrip("+~") for o in of_jobs if o.is_sweep_override()))
    if OmegaConf.select(composed, "sweep.sampler"):
        from forge.sweep import space

        found = space.read(of_jobs)
        if composed.sweep.sampler == "grid":
            found.require_finite()
        return _Expanded(found.probes(), swept, composed.hydra, found)
    for override in of_jobs:
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{override.get_key_element().lstrip('+~')}: an interval needs a search: add sweep=tpe or sweep=random")
    return _Expanded(BasicSweeper.split_arguments(of_jobs, None)[0], swept, composed.hydra)


def _chained(typed: list[str], folders: list[Path], config_name: str | None, multirun: bool) -> _Expanded | None:
    """The stages, where the configuration has any."""
    heads = stages.heads(typed)
    if heads is None or (multirun and any("," in word for word in heads)):  # a swept experiment's stages are unknown keys of its jobs
        return None
    composed = _compose(heads, folders, config_name, hydra_too=True)
    if "stages" not in composed:
        return None
    if multirun:
        raise ConfigError("a chain of stages can't be swept: leave out -m, or sweep one stage by its own experiment")
    tree: dict[str, Any] = OmegaConf.to_container(_without_hydra(composed), resolve=True)  # type: ignore[assignment]
    chain, listed = stages.read(tree)
    found = stages.split(chain, listed, typed, tree.keys() - {"stages"})
    jobs = [words.expanded(found[stage], folders) for stage in chain.stages]
    return _Expanded(jobs, hydra=composed.hydra, chain=chain)


def _without_hydra(composed: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])  # parts of its own wait for a job


def _bound(expanded: _Expanded, folders: list[Path], config_name: str | None) -> tuple[list[Config | None], list[str]]:
    """The jobs' configurations, and their problems, each once; of a chain, each with its stage unless all have it."""
    configs, found = [], []
    for job in expanded.jobs:
        problems = binding.Problems()
        configs.append(bind(_compose(job, folders, config_name), problems))
        found.append(list(problems))
    if expanded.chain:
        common = set.intersection(*map(set, found))
        for stage, lines in zip(expanded.chain.stages, found, strict=True):
            own = [line.replace("yet: set ", f"yet: set {stage}.", 1) for line in lines if line not in common]
            lines[:] = [*(line for line in lines if line in common), *(f"{stage}.{line}" for line in own)]
    return configs, list(dict.fromkeys(line for lines in found for line in lines))


def _flag(name: str, value: str | None) -> tuple[str, ...]:
    return (name, value) if value else ()


def _refuse_hidden(folders: list[Path]) -> None:
    """Of two files of one name Hydra takes forge's, without a word."""
    ours, *others = folders
    for folder in others:
        for path in sorted(folder.rglob("*.yaml")):
            if (ours / path.relative_to(folder)).is_file():
                raise ConfigError(f"{path}: forge has a {path.relative_to(folder)} of its own, which would win; give yours another name")


def _refuse_duplicates(configs: list[Config | None], overrides: list[list[str]]) -> None:
    seen: dict[str, list[str]] = {}
    for config, job in zip(configs, overrides, strict=True):
        if config is not None and seen.setdefault(config.identity, job) is not job:
            raise ConfigError(f"two jobs of the sweep are the same experiment: {' '.join(job)}; sweep over what changes a result")


def _require_releases(chain: Chain, configs: list[Config | None]) -> None:
    for stage, after, config in zip(chain.stages, chain.stages[1:], configs, strict=False):
        if config is not None and not config.release.enabled:
            raise ConfigError(f"release.enabled=false: {after} starts from what {stage} releases; add {stage}.release.enabled=true")


def _refuse_resume(configs: list[Config | None]) -> None:
    if any(config is not None and config.resume not in (None, "auto") for config in configs):
        raise ConfigError("resume=… names one run, but a sweep goes on by itself when the same command is typed again: leave it out")


def _hydra_errors() -> tuple[type[Exception], ...]:
    from hydra.errors import HydraException

    return HydraException, OmegaConfBaseException
