"""Training and long preparations in the terminal: a few lines that move where there is one, plain lines where output goes to a file.

What is shown comes from the metrics alone, so a run that is read back from the store looks like one's own. A metric takes microseconds,
the lines some milliseconds, twice a second.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import TracebackType

from rich.console import Console, ConsoleOptions
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from forge.spec import Metrics

_LINE_EVERY_S = 15.0
_WIDEST, _LABEL = 100, 12  # characters
_POINTS = 400  # of a curve that are kept
_BLOCKS = " ▁▂▃▄▅▆▇█"


def spark(values: Sequence[float], width: int = 60, low: float = 0.0) -> str:
    """One line of blocks from `low` to the largest value; each stands for the mean of its part of the run.

    spark([0, 4, 8, 4], width=4) is " ▄█▄".
    """
    width = min(width, len(values))
    bounds = [round(i * len(values) / width) for i in range(width + 1)] if width else []
    means = [sum(values[a:b]) / (b - a) - low for a, b in pairwise(bounds)]
    top = max(means, default=0.0) or 1.0
    return "".join(_BLOCKS[max(0, round(mean / top * (len(_BLOCKS) - 1)))] for mean in means)


def curve(values: Sequence[float], width: int) -> str:
    """spark() of a loss: from a little below its lowest value, so that the lowest is a block too."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    return spark(values, width, low - (high - low) / 6)


def clock(seconds: float) -> str:
    """75 -> "1:15", 4000 -> "1:06:40"."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def size(gib: float) -> str:
    """1.5 -> "1.50 GiB", 0.0123 -> "12.6 MiB"."""
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{gib * 1024:.1f} MiB"


class Thinned:
    """A curve of any length in `_POINTS` values or fewer: the means of as many neighbours as that takes."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._each = 1
        self._waiting: list[float] = []

    def add(self, value: float) -> None:
        self._waiting.append(value)
        if len(self._waiting) == self._each:
            self.values.append(sum(self._waiting) / self._each)
            self._waiting = []
        if len(self.values) == _POINTS:
            self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2], strict=True)]
            self._each *= 2


class Course:
    """How far a run is: what the engine emitted of it so far, as lines to show. Shown from one thread while another adds to it."""

    def __init__(self, total_steps: int):
        self.total, self.step = total_steps, 0
        self.losses = Thinned()
        self.valid: dict[int, float] = {}  # by step
        self.last: dict[str, float] = {}
        self._left: float | None = None
        self._told = time.monotonic()

    def take(self, metrics: Metrics, step: int) -> None:
        self.last |= metrics
        self.step = max(self.step, step)
        if "train/loss" in metrics and math.isfinite(metrics["train/loss"]):
            self.losses.add(metrics["train/loss"])
        if "val/loss" in metrics:
            self.valid = {**self.valid, step: metrics["val/loss"]}  # a new one: the thread that draws may be going through the old
        if "perf/eta_s" in metrics:
            self._left, self._told = metrics["perf/eta_s"], time.monotonic()

    def left(self) -> float | None:
        """Seconds until the last step and its evaluation are done; None before there is anything to tell it from."""
        return None if self._left is None else max(0.0, self._left - (time.monotonic() - self._told))

    @property
    def lowest(self) -> int | None:
        """The step of the lowest validation loss so far, the earlier of equals."""
        return min(self.valid, key=lambda step: (self.valid[step], step)) if self.valid else None

    def line(self) -> str:
        """All in one line, to be kept in a file: its parts stand two spaces apart."""
        last, parts = self.last, [f"step {self.step}/{self.total}"]
        parts += [f"loss {last['train/loss']:.3f}"] if "train/loss" in last else []
        if self.valid:
            at = max(self.valid)
            parts.append(f"val {self.valid[at]:.3f}{' (lowest)' if at == self.lowest else ''}")
        parts += self._speed()
        left = self.left()
        return "  ".join([*parts, f"eta {'-' if left is None else clock(left)}"])

    def lines(self, width: int, elapsed: float | None = None) -> Iterator[Text]:
        """Four lines or fewer, none wider than `width`."""
        width = min(width, _WIDEST)
        left = self.left()
        times = [clock(elapsed)] if elapsed is not None else []
        times += [f"eta {clock(left)}"] if left is not None and self.step < self.total else []
        numbers = "  ".join([f"{self.step:,}/{self.total:,}", *times])
        yield _row("training", _bar(self.step / max(1, self.total), width - _LABEL - len(numbers) - 2), "  ", numbers, width=width)
        if self.losses.values:
            loss = f"{self.last['train/loss']:.3f}"
            drawn = Text(curve(self.losses.values, min(60, width - _LABEL - len(loss) - 2)), "cyan")
            yield _row("loss", (loss, "bold"), "  ", drawn, width=width)
        if self.valid:
            yield _row("validation", *self._validation(), width=width)
        if speed := self._speed():
            yield _row("speed", "   ".join(speed), width=width)

    def _validation(self) -> Iterator[str | tuple[str, str]]:
        at, lowest = max(self.valid), self.lowest
        assert lowest is not None, "something was evaluated"
        yield f"{self.valid[at]:.3f}", "bold"
        yield f" at step {at:,}  "
        yield ("the lowest", "green") if at == lowest else (f"lowest {self.valid[lowest]:.3f} at step {lowest:,}", "yellow")

    def _speed(self) -> list[str]:
        last = self.last
        parts = [f"{last['perf/tokens_per_s']:,.0f} tokens/s"] if "perf/tokens_per_s" in last else []
        return parts + ([size(last["memory/peak_gib"])] if "memory/peak_gib" in last else [])


class Display:
    """A context manager whose show() takes what the engine emits."""

    def __init__(self, total_steps: int, first_step: int = 0):
        self._course, self._first = Course(total_steps), first_step
        self._console = Console()
        self._last_line = self._started = time.monotonic()
        # Not transient: the last state stays on the screen, whatever ended the run.
        self._live = Live(self, console=self._console, refresh_per_second=2) if self._console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield from self._course.lines(options.max_width, time.monotonic() - self._started)

    def show(self, metrics: Metrics, step: int) -> None:
        self._course.take(metrics, step)
        if self._live or (step <= self._first and self._first):
            return  # what an earlier life of the run emitted gets no line
        now = time.monotonic()
        if "val/loss" in metrics or now - self._last_line > _LINE_EVERY_S:
            self._last_line = now
            print(self._course.line(), flush=True)


class Work:
    """A context manager around work that may take long: done(bytes) or at(words, share) says how far it is.

    `total`: all bytes, `share`: of 1; None where unknown. It writes to the stdout of its start, wherever a library's output is turned;
    inside another display, which moves already, in plain lines. What takes no time shows nothing.
    """

    def __init__(self, what: str, total: int | None = None):
        self._what, self._total, self._done, self._share = what, total, 0, 0.0
        self._started = self._last_line = time.monotonic()
        self._out = sys.stdout
        console = Console(file=self._out)
        self._lines = not console.is_terminal or isinstance(self._out, FileProxy)
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=self._lines,
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> "Work":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def done(self, size: int) -> None:
        self._done += size
        rate = self._done / max(1e-9, time.monotonic() - self._started)
        of = f" of {self._total / 1e6:,.0f}" if self._total else ""
        self.at(f"{self._done / 1e6:,.0f}{of} MB, {rate / 1e6:.1f} MB/s", self._done / self._total if self._total else None)

    def at(self, words: str, share: float | None = None) -> None:
        line, now = f"{self._what}: {words}", time.monotonic()
        if not self._lines:
            if share is not None and share < self._share:
                self._bar.reset(self._task)  # another part of the work, with a pace of its own
            self._share = share or 0.0
            self._bar.update(self._task, description=line, total=None if share is None else 1.0, completed=share)
        elif now - self._last_line > _LINE_EVERY_S:
            self._last_line = now
            print(line, file=self._out, flush=True)


def _row(label: str, *parts: str | tuple[str, str] | Text, width: int) -> Text:
    row = Text.assemble((f"{label:<{_LABEL}}", "dim"), *parts, no_wrap=True)
    row.truncate(width, overflow="ellipsis")
    return row


def _bar(share: float, width: int) -> Text:
    full = min(max(0, width), round(share * width))
    return Text.assemble(("━" * full, "cyan"), ("━" * (width - full), "bright_black"))
