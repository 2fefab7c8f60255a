"""Training and long preparations in the terminal: a bar where there is one, plain lines where output goes to a file."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from forge.spec import Metrics

_LINE_EVERY_S = 15.0


class Display:
    """A context manager whose show() takes what the engine emits."""

    def __init__(self, total_steps: int, first_step: int = 0):
        self._total, self._first = total_steps, first_step
        self._console = Console()
        self._valid: float | None = None
        self._last_line = self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total_steps, completed=first_step, numbers="")

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, metrics: Metrics, step: int) -> None:
        self._valid = metrics.get("val/loss", self._valid)
        if step <= self._first and self._first:
            return  # what an earlier life of the run emitted
        numbers = self._numbers(metrics)
        self._bar.update(self._task, completed=step, numbers=numbers)
        now = time.monotonic()
        if not self._console.is_terminal and ("val/loss" in metrics or now - self._last_line > _LINE_EVERY_S):
            self._last_line = now
            print(f"step {step}/{self._total}  {numbers}  eta {self._eta(step, now)}", file=sys.stdout, flush=True)

    def _numbers(self, metrics: Metrics) -> str:
        parts = [f"loss {metrics['train/loss']:.3f}"] if "train/loss" in metrics else []
        parts += [f"val {self._valid:.3f}"] if self._valid is not None else []
        parts += [f"{metrics['perf/tokens_per_s']:,.0f} tokens/s"] if "perf/tokens_per_s" in metrics else []
        return "  ".join(parts)

    def _eta(self, step: int, now: float) -> str:
        done = step - self._first
        if done <= 0:
            return "–"
        seconds = round((now - self._started) / done * (self._total - step))
        return f"{seconds // 60}:{seconds % 60:02d}"


class Work:
    """A context manager around work on `total` bytes (None: unknown): done(bytes) moves it on. What takes no time shows nothing."""

    def __init__(self, what: str, total: int | None = None):
        self._what, self._total, self._done = what, total, 0
        self._started = self._last_line = time.monotonic()
        console = Console()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._lines = not console.is_terminal
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> "Work":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def done(self, size: int) -> None:
        self._done += size
        self._bar.update(self._task, completed=self._done)
        now = time.monotonic()
        if self._lines and now - self._last_line > _LINE_EVERY_S:
            self._last_line = now
            rate = self._done / (now - self._started)
            of = f" of {self._total / 1e6:,.0f}" if self._total else ""
            print(f"{self._what}: {self._done / 1e6:,.0f}{of} MB, {rate / 1e6:.1f} MB/s", flush=True)
