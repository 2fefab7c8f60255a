"""python -m forge.watch [RUN] [--once] [--every SECONDS] : follows a run, a sweep or a chain from the tracking store.

RUN is an id, the beginning of one, or a name; without it, the newest run that is running. It reads, and writes nothing; it looks every
two seconds, and pauses ten times as long as a look took, so that training is not kept waiting. Where the store is busy or away, it looks
again. Leaves with 0 when the run has ended, with 1 when it failed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forge.entry import Parser, entry
from forge.errors import TrackingError
from forge.progress import clock, curve
from forge.tracking.names import kind, way_on

if TYPE_CHECKING:
    from forge.tracking.live import View

_LINE_EVERY_S = 15.0
_SILENT_S = 120.0  # four heartbeats
_EVALUATIONS, _CHILDREN = 6, 100  # lines of a table
_STYLES = {"RUNNING": "cyan", "FINISHED": "green", "FAILED": "bold red", "KILLED": "yellow"}


def main(argv: list[str]) -> int:
    """The exit code: 0, 1 where the run failed, or an error's own."""
    return entry(_watch, argv, interrupted="no longer watching; the run goes on")


def _watch(argv: list[str]) -> int:
    parser = Parser("forge.watch", "Follows a run, a sweep or a chain from the tracking store.")
    parser.add_argument("run", nargs="?", metavar="RUN", help="an id, the beginning of one, or a name; without it, the newest that runs")
    parser.add_argument("--once", action="store_true", help="show the run as it is, and leave")
    parser.add_argument("--every", type=_seconds, default=2.0, metavar="SECONDS", help="how often to look, 2 if not given")
    asked = parser.parse_args(argv)

    from forge.tracking import live, reader

    client = reader.opened(asked.uri)
    run = live.find(client, asked.run)
    return _follow(lambda former: live.look(client, run.id, former), asked.once, asked.every)


def _follow(look: Callable[["View | None"], "View"], once: bool, every: float) -> int:
    view, took = look(None), 0.0
    console = Console(highlight=False)
    if once or not view.running:
        console.print(_Screen(view))
        return _code(view)
    shown = _Screen(view) if console.is_terminal else _Lines(view)
    with ExitStack() as stack:
        if isinstance(shown, _Screen):
            stack.enter_context(Live(shown, console=console, refresh_per_second=2))
        while shown.view.running:
            time.sleep(max(every, 10 * took))
            started = time.monotonic()
            try:
                shown.take(look(shown.view))
            except TrackingError as error:
                shown.away(str(error))
            took = time.monotonic() - started
    if isinstance(shown, _Lines):
        console.print(_Screen(shown.view))
    return _code(shown.view)


def _code(view: "View") -> int:
    return 1 if view.run.status == "FAILED" or view.dead else 0


class _Lines:
    """For a file: a line at each evaluation, at least every 15 s, and at each change of a sweep's child."""

    def __init__(self, view: "View"):
        self.view, self._last, self._away = view, 0.0, ""
        self._told: dict[str, tuple[str, int | None]] = {}
        self.take(view)

    def take(self, view: "View") -> None:
        self.view, self._away = view, ""
        now, late = time.monotonic(), time.monotonic() - self._last > _LINE_EVERY_S
        for each in view.children or (view,):
            state = (each.run.status, max(each.course.valid, default=None))
            if self._told.get(each.run.id) != state or (late and each.running):
                self._told[each.run.id], self._last = state, now
                print(f"{each.run.name}  {each.run.status}  {each.course.line()}", flush=True)

    def away(self, why: str) -> None:
        if not self._away:
            print(f"forge: {why}; looking again", flush=True)
        self._away = why


class _Screen:
    """For a terminal: all there is to say, anew at each look."""

    def __init__(self, view: "View"):
        self.view, self._away = view, ""

    def take(self, view: "View") -> None:
        self.view, self._away = view, ""

    def away(self, why: str) -> None:
        self._away = why

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        view, width = self.view, options.max_width
        yield _heading(view, width)
        running = [child for child in view.children if child.running]
        if view.children:
            yield _children(view, width, max(5, console.height - 12) if console.is_terminal else _CHILDREN)
        elif "trainer.total_steps" not in view.run.params and view.running:
            yield Text("it has not begun to train", "dim")
        for each in running[:1] if view.children else (view,):
            if each.course.total:
                yield Text(f"\n{each.run.name}" if view.children else "", "bold")
                yield from each.course.lines(width, each.elapsed)
        if view.course.valid:
            yield Text()
            yield _evaluations(view, width)
        if not view.running:
            yield Text()
            yield from _end(view)
        if self._away:
            yield Text(f"{self._away}; looking again", "yellow")


def _heading(view: "View", width: int) -> Text:
    """The name, cut where it would push the status off the line, the status, and what there is to note."""
    name = Text(view.run.name, "bold")
    name.truncate(max(8, width - 34), overflow="ellipsis")
    line = Text.assemble(name, f" ({view.run.id[:8]})  ", _status(view), no_wrap=True)
    if view.dead:
        line.append(f"  its process is gone; {way_on(view.run.tags)} goes on with it", "bold red")
    elif view.running and view.silent > _SILENT_S:
        line.append(f"  no sign of life for {clock(view.silent)}", "bold yellow")
    elif view.children and view.running:
        ended = sum(not child.running for child in view.children)
        line.append(f"  {ended} of {view.expected} ended, {clock(view.elapsed)}", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _evaluations(view: "View", width: int) -> Table:
    """The last ones, and the lowest: its step, the loss of all and of as many sources as fit."""
    valid, lowest = view.course.valid, view.course.lowest
    shown = [step for rank, step in enumerate(sorted(valid, reverse=True)) if rank < _EVALUATIONS or step == lowest]
    names, room = [], width - 9 - 12 - 8
    for name in view.sources if len(view.sources) > 1 else ():
        room -= max(7, len(name)) + 2
        names += [name] if room >= 0 else []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("step", "validation", *names, ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for step in reversed(shown):
        losses = [f"{by_step[step]:.3f}" if step in (by_step := view.sources[name]) else "" for name in names]
        note, style = ("lowest", "green") if step == lowest else ("", "")
        table.add_row(f"{step:,}", f"{valid[step]:.3f}", *losses, note, style=style)
    return table


def _children(parent: "View", width: int, room: int) -> Table:
    """Each run in a line, the first started first; of more than `room`, those that run and the lowest of the rest.

    A chain's stages learn from other data each, so none is the best.
    """
    children = parent.children
    losses = {child.run.id: child.lowest for child in children}
    known = [loss for loss in losses.values() if loss is not None and kind(parent.run.tags) != "chain"]

    def rank(child: "View") -> tuple[bool, float]:
        loss = losses[child.run.id]
        return not child.running, float("inf") if loss is None else loss

    shown = sorted(children, key=rank)[:room]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, right in (("run", False), ("status", False), ("step", True), ("best", True), ("", False)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis", max_width=width // 3)
    for child in (child for child in children if child in shown):
        loss, course = losses[child.run.id], child.course
        best = Text("-" if loss is None else f"{loss:.4f}", "bold green" if known and loss == min(known) else "")
        steps = f"{course.step:,}/{course.total:,}" if course.total else "-"
        drawn = curve([course.valid[step] for step in sorted(course.valid)], 12) if width >= 72 else ""
        table.add_row(Text(child.run.name), Text(*_status(child)), steps, best, Text(drawn, "cyan"))
    if len(shown) < len(children):
        table.add_row(Text(f"and {len(children) - len(shown)} more", "dim"))
    return table


def _end(view: "View") -> Iterator[Text]:
    tags = view.run.tags
    cause = tags.get("forge.cause") or tags.get("forge.stop_reason")
    yield Text.assemble(_status(view), f": {cause}" if cause else "")
    if best := tags.get("forge.best_reason"):
        yield Text(f"best checkpoint: {best}")
    if best := tags.get("best/child"):
        yield Text(f"best run: {best}")


def _status(view: "View") -> tuple[str, str]:
    return view.run.status, _STYLES.get(view.run.status, "")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
