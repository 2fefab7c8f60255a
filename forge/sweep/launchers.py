"""Launchers that take a sweep's children to other machines: `hydra/launcher=submitit_slurm`, `submitit_local` and `ray`.

    make = launchers.chosen(asked.hydra)    # before anything is opened: raises ConfigError; None: the pool of this machine
    launcher = make(folder) if make else Pool(...)

`asked.hydra` is the `hydra` node that jobs.preflight composed, `folder` one of this launcher's own that all machines see. Names and keys
are those of Hydra's plugins, which are not used: those start all jobs at once and wait for all of them. Where one is installed, Hydra
holds our YAML against its schema, and refuses.

What a job computes is forge.sweep.child.run, so a sweep has the same children, parent and table wherever they are trained. A job that is
lost with its machine, preempted or out of time is an Ended with a cause; none is started twice, since the same command goes on with it.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from forge import binding
from forge.errors import ConfigError
from forge.sweep.clusters import Ray, Submitit
from forge.sweep.elsewhere import Elsewhere
from forge.sweep.launch import Launcher
from forge.values import Count

Make = Callable[[Path], Launcher]

_BASIC = "BasicLauncher"  # Hydra's default
_NEEDS = {"submitit_local": ("submitit", "slurm"), "submitit_slurm": ("submitit", "slurm"), "ray": ("ray", "ray")}  # module, extra


def chosen(hydra: DictConfig) -> Make | None:
    """What makes the chosen launcher; None for the default one. Raises ConfigError for one that forge does not have, wrong keys of one
    that it has, and one whose extra is not installed."""
    node: dict[str, Any] = OmegaConf.to_container(hydra.launcher, resolve=True)  # type: ignore[assignment]
    module, _, name = str(node.get("_target_")).rpartition(".")
    if name == _BASIC:
        return None
    if module != __name__ or name not in _NEEDS:
        choice = hydra.runtime.choices.get("hydra/launcher", name)
        raise ConfigError(f"hydra/launcher={choice}: forge has {', '.join(_NEEDS)}; for several jobs at once on this machine, sweep.jobs=N")
    needed, extra = _NEEDS[name]
    if importlib.util.find_spec(needed) is None:
        raise ConfigError(f"hydra/launcher={name} needs {needed}: pip install 'forge-mlx[{extra}]'")
    problems = binding.Problems()
    make = binding.target(node, "hydra.launcher", problems)
    if make is None:
        raise ConfigError("\n".join(problems))
    return make


def submitit_local(folder: Path, *, timeout_min: Count, gpus_per_node: Annotated[int, Field(ge=0)]) -> Launcher:
    """Processes of this machine, started and watched as SLURM's would be."""
    # Ctrl-C is for the parent, which asks the children kindly.
    parameters = {"timeout_min": timeout_min, "gpus_per_node": gpus_per_node, "local_setup": ["trap '' INT"]}
    return Elsewhere(Submitit("local", folder, parameters), folder)


def submitit_slurm(
    folder: Path,
    *,
    name: str,
    timeout_min: Count,
    signal_delay_s: Count,
    cpus_per_task: Count | None = None,
    mem_gb: Annotated[float, Field(gt=0)] | None = None,
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None,
    gres: str | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    exclude: str | None = None,
    comment: str | None = None,
    setup: list[str] | None = None,
    additional_parameters: dict[str, Any] | None = None,
) -> Launcher:
    """SLURM's queue. Raises ConfigError where there is none."""
    common = {"name": name, "timeout_min": timeout_min, "cpus_per_task": cpus_per_task, "mem_gb": mem_gb, "gpus_per_node": gpus_per_node}
    own = {
        "signal_delay_s": signal_delay_s,
        "gres": gres,
        "partition": partition,
        "account": account,
        "qos": qos,
        "constraint": constraint,
        "exclude": exclude,
        "comment": comment,
        "setup": setup or None,
        "additional_parameters": {"no-requeue": True, **(additional_parameters or {})},
    }
    given = {**common, **{f"slurm_{key}": value for key, value in own.items()}}
    return Elsewhere(Submitit("slurm", folder, {key: value for key, value in given.items() if value is not None}), folder)


def ray(folder: Path, *, ray: dict[Literal["init", "remote"], dict[str, Any]]) -> Launcher:
    """Tasks of a Ray cluster, or of this machine. Raises ConfigError where there is none at the address, and for unknown options."""
    return Elsewhere(Ray(ray.get("init", {}), ray.get("remote", {})), folder)
