"""python -m forge.reproduce RUN [--check] [steps=N] [allowed_targets=[mypackage.]] : does a training run come out the same again?

RUN is an id, the beginning of one, or a name. Compares first what the run's numbers depend on (code, versions, machine, settings, data,
base) with what there is now; --check ends there. Then it trains again as the run was configured, as a run of its own beside it (tag
forge.reproduces; nothing is released), up to the last step that was recorded, or step N, and compares every train/… and val/… value.
Settings, data or base that drifted can't give the same numbers, so nothing is trained then; anything else that drifted may.

Targets outside forge have to be allowed anew: composing a configuration runs the code that it names. Costs the start of a run, and
without --check the training. Leaves with 0 where all is equal, and with 1 where something differs.
"""

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked
from rich.console import Console
from rich.table import Table
from rich.text import Text

from forge import keys, paths
from forge.entry import Parser, entry
from forge.errors import ConfigError, Stopped
from forge.imports import lasting

if TYPE_CHECKING:
    from forge.config import Config
    from forge.pins import Pin
    from forge.spec import History
    from forge.tracking.reader import MlflowClient

_WIDE = 160  # characters of a line in a file, so that nothing is cut


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Reproduced:
    """`steps`: so many are made again; null: all that were recorded. `allowed_targets`: prefixes of packages that a _target_ may name."""

    steps: Annotated[int, Field(ge=1)] | None = None
    allowed_targets: tuple[Annotated[str, Field(pattern=r"^\w[\w.]*\.$")], ...] = ()


def main(argv: list[str]) -> int:
    """The exit code: 0 where all is equal, 1 where something differs, or an error's own."""
    return entry(_reproduce, argv, interrupted="interrupted before a run was opened")


def _reproduce(argv: list[str]) -> int:
    parser = Parser("forge.reproduce", (__doc__ or "").partition(" : ")[2])
    parser.add_argument("run", metavar="RUN", help="an id, the beginning of one, or a name")
    parser.add_argument("settings", nargs="*", default=[], metavar="KEY=VALUE", help="steps=N, allowed_targets=[mypackage.]")
    parser.add_argument("--check", action="store_true", help="compare what the run depends on, and train nothing")
    asked = parser.parse_intermixed_args(argv)
    wanted = keys.read(Reproduced, asked.settings)
    if "MLX_RANK" in os.environ:
        raise ConfigError("forge.reproduce trains in one process: leave out mlx.launch")
    with lasting():
        from forge import pins, rerun
        from forge.tracking import reader
        from forge.tracking.names import WENT_ON
        from forge.tracking.recorded import recorded

    client = reader.opened(asked.uri)
    run = reader.find(client, asked.run)
    first = rerun.history(client, run)
    recorded_steps = rerun.last_step(first)
    upto = min(wanted.steps or recorded_steps, recorded_steps)
    own = recorded(client, run, (), wanted.allowed_targets)
    config = rerun.configuration(client, run, own, asked.uri, wanted.allowed_targets, upto)
    paths.require_writable()
    overrides = (reader.text(client, run.id, "config/overrides.txt") or "").splitlines()
    print(f"run {run.name} ({run.id}), {run.status}, {recorded_steps:,} steps recorded", flush=True)
    if (step := run.tags.get(WENT_ON)) is not None:
        print(f"it went on after a stop at step {step}; what follows was recorded when it last did")
    found = pins.around(client, run, own)
    found += pins.ground(run, config)
    _free()
    drifted = [pin for pin in found if pin.drifted]
    _print(found)
    _say_drift(drifted, own)
    if asked.check:
        return 1 if drifted else 0
    if decisive := [pin.name for pin in drifted if pin.decides]:
        print(f"differs: {', '.join(decisive)} drifted, so the numbers can't be equal; nothing was trained")
        return 1
    second = _again(client, config, overrides)
    result = rerun.likeness(first, second, upto)
    print(f"\n{result.sentence()}")
    if drifted:
        print(f"{'although' if not result.differences else 'and'} this drifted: {', '.join(pin.name for pin in drifted)}")
    elif result.differences:
        print("no pin drifted: what differs is not recorded, such as files that a _target_ reads")
    return 1 if result.differences else 0


def _again(client: "MlflowClient", config: "Config", overrides: list[str]) -> "History":
    """Train, and read back what was recorded. `overrides`: those that the run was started with."""
    from forge import rerun
    from forge.runner import train
    from forge.tracking import reader

    try:
        outcome = train(config, overrides)
    except Stopped as stopped:
        stopped.way_on = "the same command makes another run"
        raise
    assert outcome, "only processes that follow have none"
    return rerun.history(client, reader.get(client, outcome.run_id))


def _free() -> None:
    """What looking at data and base took."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()


def _print(found: Sequence["Pin"]) -> None:
    from forge.pins import shown

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("pin", "then", "now", ""):
        table.add_column(name, overflow="fold")
    for pin in found:
        mark, style = ("drifted", "bold red") if pin.drifted else ("", "")
        table.add_row(*(Text(cell, style) for cell in (pin.name, shown(pin.then), shown(pin.now), mark)))
    console.print(table)


def _say_drift(drifted: Sequence["Pin"], own: "Config") -> None:
    from forge.pins import relative

    if not drifted:
        print("no pin drifted")
    elif {pin.name for pin in drifted} & {"data", "base"} and (below := relative(own)):
        print(f"{', '.join(below)}: counted from the folder in which the run was started; go there, and try again")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
