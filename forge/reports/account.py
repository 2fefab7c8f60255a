"""A run's data as tables and bars for a terminal: what became of every row, tokens, digests, lengths. Counts nothing itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from forge.reports.lengths import percent, sentence
from forge.spec import Ledger

FITS, TOO_LONG = "cyan", "yellow"
_SIDES = ("rows_train", "rows_valid", "rows_test", "rows_bad", "rows_dropped")
_BAR = 40  # characters
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Line:
    """One count of every source. `summed`: what all sources have together means something."""

    label: str
    values: Mapping[str, float | None]
    say: Callable[[float], str]
    summed: bool = True
    style: str = ""

    def text(self, name: str) -> str:
        value = self.values[name]
        return "–" if value is None else self.say(value)

    @property
    def total(self) -> str:
        known = [value for value in self.values.values() if value is not None]
        return self.say(sum(known)) if self.summed and known else ""


def tables(ledger: Ledger, width: int) -> Iterator[Table]:
    """The ledger with a column a source, in as many tables as `width` (characters) asks for; the last has the sums of all sources."""
    lines, names = _lines(ledger), list(ledger.source_digests)
    label = max(len(line.label) for line in lines) + 2
    sums = max(len("all"), *(len(line.total) for line in lines)) + 2
    while names:
        here: list[str] = []
        room = width - label - (sums if len(ledger.source_digests) > 1 else 0)
        while names and (not here or room >= _width(names[0], lines)):
            room -= _width(names[0], lines)
            here.append(names.pop(0))
        yield _table(lines, here, sums=not names and len(ledger.source_digests) > 1)


def digests(ledger: Ledger) -> Table:
    """The first 12 hex digits of what has to be equal for two runs to have seen, or been measured on, the same."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    wholes = {"data": ledger.digest, "validation tokens": ledger.valid_digest}
    wholes |= {"tokenizer": ledger.tokenizer_digest, "chat template": ledger.template_digest}
    for what, digest in (*wholes.items(), *((f"source {name}", digest) for name, digest in ledger.source_digests.items())):
        table.add_row(Text(what), Text(digest[:12] or "none"))
    return table


def bars(ordered: np.ndarray, sequence_length: int) -> Table:
    """How many rows have so many tokens, in bins that double; a rule stands between what fits and what is too long.

    ordered: ascending lengths, at least one.
    """
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    edges = doubling(int(ordered[0]), int(ordered[-1]), sequence_length)
    counts = np.diff(np.searchsorted(ordered, edges))
    for first, behind, count in zip(edges, edges[1:], counts, strict=False):
        if first == sequence_length + 2:
            table.add_row(*_limit(ordered, sequence_length))
        style = FITS if first <= sequence_length + 1 else TOO_LONG
        table.add_row(Text(f"{first:,}–{behind - 1:,}", justify="right"), Text(bar(count / counts.max()), style), f"{count:,}")
    if edges[-1] == sequence_length + 2:
        table.add_row(*_limit(ordered, sequence_length))
    return table


def bar(share: float) -> str:
    """A bar of _BAR characters at most; what is there at all is seen."""
    eighths = max(round(share * _BAR * 8), 1 if share else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def doubling(low: int, high: int, sequence_length: int) -> list[int]:
    """First lengths of bins that double away from the limit and hold low … high; the last is where the last bin ends."""
    edges, part = [sequence_length + 2], sequence_length
    while edges[0] > low:
        part //= 2
        edges.insert(0, part + 1)
    part = sequence_length
    while edges[-1] <= high:
        part *= 2
        edges.append(part + 1)
    return edges


def _limit(ordered: np.ndarray, sequence_length: int) -> tuple[Text, Text, Text]:
    words = f" {sentence(ordered, sequence_length)} "
    return Text("─" * 8, justify="right"), Text(words.center(_BAR, "─")), Text("")


def _lines(ledger: Ledger) -> list[Line]:
    """Every count of the ledger, the rows in groups that visibly add up; counts that this doesn't know stand at the end."""
    known: set[str] = set()

    def line(label: str, key: str, say: Callable[[float], str] = "{:,.0f}".format, summed: bool = True, style: str = "") -> Line:
        known.add(key)
        return Line(label, {name: ledger.counts.get(f"data/{name}/{key}") for name in ledger.source_digests}, say, summed, style)

    def parts(prefix: str, indent: str) -> list[Line]:
        found = dict.fromkeys(key for key in _keys(ledger) if key.startswith(prefix))
        return [line(indent + key.removeprefix(prefix), key) for key in found]

    def ratio(label: str, part: Line, whole: Line) -> Line:
        shares = {name: None if value is None else value / max(whole.values[name] or 0, 1) for name, value in part.values.items()}
        return Line(label, shares, percent, summed=False)

    rows = [line("rows read", "rows_in", style="bold"), *(line(f"  {key.removeprefix('rows_')}", key) for key in _SIDES[:3])]
    for key in _SIDES[3:]:
        rows += [line(f"  {key.removeprefix('rows_')}", key), *parts(f"{key}/", "    ")]
    sums = {name: sum(ledger.counts.get(f"data/{name}/{key}", 0) for key in _SIDES) for name in ledger.source_digests}
    rows.append(Line("  = sum of the five", sums, "{:,.0f}".format, style="bold"))
    tokens, targets = line("tokens to train on", "tokens_train", style="bold"), line("  learnt (targets)", "targets_train")
    cut = line("  cut", "tokens_cut")
    noted = parts("rows_noted/", "rows noted: ")
    learning = [
        tokens,
        cut,
        ratio("  cut, share", cut, tokens),
        targets,
        ratio("  learnt, share", targets, tokens),
        line("rows split", "rows_split"),
        line("rows truncated", "rows_truncated"),
        *noted,
        line("packed rows", "rows_packed"),
        line("padding", "padding_share", percent, summed=False),
        line("weight asked", "weight", percent, summed=False),
        line("epochs planned", "epochs_planned", "{:,.2f}".format, summed=False),
        line("rows evaluated", "rows_evaluated"),
        line("targets evaluated", "targets_evaluated"),
    ]
    return [*rows, *learning, *(line(key, key, "{:,.10g}".format) for key in dict.fromkeys(_keys(ledger)) if key not in known)]


def _keys(ledger: Ledger) -> Iterator[str]:
    """The names of counts of sources, without the source; counts of all sources together are none."""
    for key in ledger.counts:
        for name in ledger.source_digests:
            if key.startswith(f"data/{name}/"):
                yield key.removeprefix(f"data/{name}/")
                break


def _width(name: str, lines: Sequence[Line]) -> int:
    return max(len(name), *(len(line.text(name)) for line in lines)) + 2


def _table(lines: Sequence[Line], names: Sequence[str], sums: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    table.add_column("")
    for name in (*names, *(["all"] if sums else [])):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for line in lines:
        if line.style and table.rows and not line.label.startswith(" "):
            table.add_section()
        cells = [line.text(name) for name in names] + ([line.total] if sums else [])
        table.add_row(Text(line.label), *cells, style=line.style)
    return table
