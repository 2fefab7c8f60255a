"""Answers in the terminal: as they come, thoughts dimmed, and those of two models in two columns. What models say gives no orders."""

from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forge.console.safe import plain
from forge.console.side import Reply, Side
from forge.serving.parts import Part, Splitter

_NARROWEST = 60  # characters that two columns need
_ROWS_KEPT = 3  # of the screen: the names, and room for the cursor
_GAP = 3


class Pieces:
    """What is to be written of an answer as it comes: (text, whether it is a thought). Marks of thoughts go; `labels`: words stand for
    them, where nothing can be dimmed."""

    def __init__(self, side: Side, inside: bool, labels: bool):
        self._splitter, self._labels = Splitter(side.format, (), inside), labels
        self._thought: bool | None = None

    def add(self, fresh: str) -> list[tuple[str, bool]]:
        return self._written(self._splitter.add(fresh))

    def rest(self) -> list[tuple[str, bool]]:
        return self._written(self._splitter.end())

    def _written(self, parts: Sequence[Part]) -> list[tuple[str, bool]]:
        found = []
        for part in parts:
            thought = part.kind == "reasoning"
            label = self._label(thought) if thought != self._thought and part.text else ""
            found.append((label + plain(part.text), thought))
            self._thought = thought if part.text else self._thought
        return [(text, thought) for text, thought in found if text]

    def _label(self, thought: bool) -> str:
        gap = "" if self._thought is None else "\n\n"
        if not self._labels or (self._thought is None and not thought):
            return gap
        return gap + ("[thought]\n" if thought else "[answer]\n")


def columns_fit(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and console.width >= _NARROWEST


def tell(console: Console, text: str, style: str = "") -> None:
    """A line of our own, or some, of which parts may come from outside."""
    console.print(Text(plain(text), style), soft_wrap=True)


class Stream:
    """One answer, written as it comes."""

    def __init__(self, console: Console, side: Side):
        self._console, self._side = console, side
        self._pieces: Pieces | None = None
        self._last = "\n"

    def show(self, number: int, reply: Reply, fresh: str) -> None:
        self._pieces = self._pieces or Pieces(self._side, reply.thinks, labels=self._console.color_system is None)
        self._write(self._pieces.add(fresh))

    def end(self) -> None:
        self._write(self._pieces.rest() if self._pieces else [])
        if not self._last.endswith("\n"):
            self._console.out("")

    def _write(self, parts: Sequence[tuple[str, bool]]) -> None:
        for text, thought in parts:
            self._console.out(text, end="", highlight=False, style="dim" if thought else None)
            self._last = text


class Columns:
    """Two answers side by side: while they come their ends, as many lines as the screen has, then all of them."""

    def __init__(self, console: Console, sides: Sequence[Side]):
        self._console, self._sides = console, sides
        self._pieces: list[Pieces | None] = [None for _ in sides]
        self._texts = [Text(overflow="fold") for _ in sides]
        self._live = Live(console=console, transient=True, refresh_per_second=8, get_renderable=self._ends)

    def __enter__(self) -> "Columns":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        for number, pieces in enumerate(self._pieces):
            self._add(number, pieces.rest() if pieces else [])
        self._console.print(self._table(self._texts))

    def show(self, number: int, reply: Reply, fresh: str) -> None:
        pieces = self._pieces[number] or Pieces(self._sides[number], reply.thinks, labels=self._console.color_system is None)
        self._pieces[number] = pieces
        self._add(number, pieces.add(fresh))

    def _add(self, number: int, parts: Sequence[tuple[str, bool]]) -> None:
        text = self._texts[number].copy()  # the one before may be being drawn
        for part, thought in parts:
            text.append(part, "dim" if thought else None)
        self._texts[number] = text

    def _ends(self) -> Table:
        width = self._console.width // len(self._sides) - _GAP
        rows = max(1, self._console.height - _ROWS_KEPT)
        ends = [text.wrap(self._console, width)[-rows:] for text in self._texts]
        return self._table([Text("\n").join(lines) for lines in ends])

    def _table(self, texts: Sequence[Text]) -> Table:
        table = Table(box=None, expand=True, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for side in self._sides:
            table.add_column(Text(plain(side.name), overflow="ellipsis", no_wrap=True), ratio=1, overflow="fold")
        table.add_row(*texts)
        return table
