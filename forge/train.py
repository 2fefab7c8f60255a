"""python -m forge.train +experiment=… : one run, with -m a sweep, or a chain of runs where the experiment has stages.

Heavy imports wait until the configuration is known to be right: a typo is refused in a second.
"""

import os
import sys

from omegaconf import DictConfig

from forge import jobs, paths
from forge.config import check
from forge.entry import entry
from forge.errors import ConfigError, ModelError, Stopped
from forge.imports import lasting


def main(argv: list[str]) -> int:
    """The exit code: 0, the error's own, or 128 + the signal's number."""
    return entry(_train, argv, interrupted="interrupted before a run was opened")


def _train(argv: list[str]) -> int:
    follows = os.environ.get("MLX_RANK", "0") != "0"
    try:
        with lasting():
            asked = jobs.preflight(argv)
        if asked and not asked.show:
            _require(asked)
    except (ConfigError, ModelError) as error:
        if follows:
            return error.exit_code  # the first process says it
        raise
    if asked is None or asked.show:
        jobs.launch(lambda _: None, asked.argv if asked else argv)
        return 0
    if follows:  # it keeps nothing, so it needs no folder of Hydra's
        with lasting():
            from forge.runner import train

        train(asked.configs[0], [])
        return 0
    if asked.multirun:
        with lasting():
            from forge.sweep.parent import sweep

        return sweep(asked)
    if asked.chain:
        with lasting():
            from forge.chain import run_chain

        return run_chain(asked)
    jobs.launch(_single, asked.argv)
    return 0


def _require(asked: jobs.Jobs) -> None:
    """Raises ConfigError and ModelError for what would end a run that need not be opened."""
    paths.require_writable()
    if "MLX_RANK" in os.environ and asked.multirun:
        raise ConfigError("a sweep inside mlx.launch: leave out -m, and start each run with its own mlx.launch")
    if "MLX_RANK" in os.environ and asked.chain:
        raise ConfigError("a chain inside mlx.launch: start each stage with its own mlx.launch, by its experiment")
    with lasting():
        from forge.tracking import registry

    registry.require(asked.configs[:1] if asked.chain else asked.configs)  # a later stage's base is not there yet


def _single(composed: DictConfig) -> None:
    with lasting():
        from forge.runner import train
        from forge.tracking.next_steps import next_steps

    config = check(composed)
    try:
        outcome = train(config, jobs.task_overrides())
    except Stopped as stopped:
        if config.tracking.parent_run:  # what goes on is the sweep or the chain
            stopped.way_on = "the same command again goes on from it"
        raise
    assert outcome, "only processes that follow have none"
    if config.tracking.parent_run is None:  # a sweep says itself what there is to look at
        print("\n" + next_steps(config, outcome.run_id, outcome.released is not None))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
