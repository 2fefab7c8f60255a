"""python -m forge.plan [--find-batch] +experiment=… : what a run would take, from a few timed steps. Opens no run and keeps no weights.

What it says is kept for the run of the same configuration, which logs it and, at its end, how far off it was. With --find-batch it looks
for the most rows a micro-batch may have.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from forge import jobs, paths
from forge.config import Config
from forge.entry import entry
from forge.progress import size, spark
from forge.reports.curves import duration

if TYPE_CHECKING:
    from forge.estimate import Estimate

_FIND = "--find-batch"


def main(argv: list[str]) -> int:
    """The exit code: 0, 5 where the run would not fit into memory, or that of the error which the run would have ended with."""
    return entry(_plan, argv)


def _plan(argv: list[str]) -> int:
    find = _FIND in argv
    config = jobs.single([word for word in argv if word != _FIND], "plan looks at one job")
    if config:
        paths.require_writable()
        _show(config, find)
    return 0


def _show(config: Config, find: bool) -> None:
    """Raises TrainingError where the run needs more memory than it may use."""
    from forge import batch_size, estimate
    from forge.assemble import assemble, plan, update_of
    from forge.reports import forecast

    def fetch(uri: str) -> tuple[Path, str]:
        from forge.tracking import registry

        return registry.fetch(config.tracking.uri, uri)

    parts = assemble(config, fetch)
    update = update_of(config, parts.loaded.model)
    steps = plan(config, parts.data, update.peak)
    if find:
        print(batch_size.largest(config, parts, update))
        return
    rates = [steps.lr(step) for step in range(1, steps.total_steps + 1)]
    made = estimate.estimate(config, parts, update, steps)
    file = estimate.keep(made)
    picture = file.with_name("learning_rate.png")
    forecast.draw(rates, config.name).savefig(picture)
    _print(made, spark(rates), picture)


def _print(made: "Estimate", rates: str, picture: Path) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("steps", f"{made.steps:,}")
    table.add_row("tokens", f"{made.tokens:,.0f} targets")
    table.add_row("epochs", ", ".join(f"{name} {epochs:.2f}" for name, epochs in made.epochs.items()))
    table.add_row("learning rate", rates)
    table.add_row("trained", f"{made.trainable:,} of {made.parameters:,} parameters ({made.trainable / made.parameters:.2%})")
    table.add_row("memory", f"{size(made.peak_gib)}: " + ", ".join(f"{what} {size(gib)}" for what, gib in made.memory.items()))
    table.add_row("disk", f"{size(made.disk_gib)}, at {size(made.checkpoint_gib)} a checkpoint")
    table.add_row("time", f"{duration(made.total_seconds)}: " + ", ".join(f"{what} {duration(s)}" for what, s in made.seconds.items()))
    table.add_row("on", f"{made.device}; start, tracking, answers to questions and release come on top")
    console.print(table)
    print(f"the learning rate as a picture: {picture}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
