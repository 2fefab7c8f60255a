"""How long the rows of each source are, beside what the model sees at once. A tenth of a second for a million rows."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from forge.reports import curves
from forge.reports.dashboard import DPI, SOURCES, VALID
from forge.reports.panels import FONT, GREY, INK, LINE, NORMAL, RULE, SMALL, cut, font, size_points, text_width

WIDTH = 518.0  # points
_SIDE, _HEAD, _FOOT, _GAP = 18.0, 46.0, 34.0, 12.0  # points around the panels, and between them
_WORDS = 2 * LINE + 6  # points above a panel's bars
_BARS = (130.0, 84.0, 60.0, 44.0)  # points: the height of the bars for one source, two, three, and more
_BINS = 72  # over the whole axis
_TICKS = 11  # labels that the axis has room for
_LEAST = 0.025  # of the panel's height: a row among millions is still seen


def draw(lengths: Mapping[str, np.ndarray], sequence_length: int) -> Figure:
    """One panel a source, in the colours that the dashboard gives them; lengths (N,) in tokens.

    A row is too long when it has more than sequence_length + 1 tokens: the last one is only predicted, and takes no position.
    """
    bars = _BARS[min(len(lengths), len(_BARS)) - 1]
    step = _WORDS + bars + _GAP
    height = _HEAD + len(lengths) * step - _GAP + _FOOT
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    ordered = {name: np.sort(values) for name, values in lengths.items()}
    edges = bins(ordered, sequence_length)
    colours = {name: SOURCES[i % len(SOURCES)] for i, name in enumerate(sorted(lengths))}
    for i, (name, values) in enumerate(ordered.items()):
        bottom = height - _HEAD - i * step - _WORDS - bars
        ax = figure.add_axes((_SIDE / WIDTH, bottom / height, 1 - 2 * _SIDE / WIDTH, bars / height), label=name)
        _histogram(ax, values, edges, sequence_length, colours[name])
        _axis(ax, edges, last=i == len(lengths) - 1)
        _words(ax, name, values, sequence_length, colours[name])
    _heading(figure, height, sequence_length)
    return figure


def bins(ordered: Mapping[str, np.ndarray], sequence_length: int) -> np.ndarray:
    """Edges of bins of like ratio, whole numbers: bin i holds edges[i] … edges[i + 1] - 1. `ordered`: ascending lengths.

    One edge parts what fits from what is too long, and there is room on both sides of it.
    """
    ends = [int(values[end]) for values in ordered.values() if len(values) for end in (0, -1)]
    low, limit, high = max(1, min([*ends, sequence_length // 4])), sequence_length + 2, max([*ends, 2 * sequence_length]) + 1
    ratio = (high / low) ** (1 / _BINS)
    below, above = (math.ceil(math.log(span) / math.log(ratio) - 1e-9) for span in (limit / low, high / limit))
    edges = np.round(limit * ratio ** np.arange(-below, above + 1)).astype(np.int64)
    return np.unique(edges)


def too_long(lengths: np.ndarray, sequence_length: int) -> float:
    """The share of the rows that have to be cut."""
    return float((lengths > sequence_length + 1).mean()) if len(lengths) else 0.0


def percent(share: float) -> str:
    """ "3.1 %". What is not all is never "100 %"."""
    text = f"{100 * share:.3g}"
    return "over 99.9 %" if text == "100" and share < 1 else f"{text} %"


def sentence(lengths: np.ndarray, sequence_length: int) -> str:
    share = too_long(lengths, sequence_length)
    return f"{percent(share)} too long for {sequence_length:,}" if share else f"none too long for {sequence_length:,}"


def spread(ordered: np.ndarray) -> str:
    """How many rows, and their lengths, in words; of ascending lengths."""
    if not len(ordered):
        return "no rows"
    median, most = (f"{ordered[int(share * (len(ordered) - 1))]:,}" for share in (0.5, 0.95))
    rows = f"{len(ordered):,} row{'s' if len(ordered) > 1 else ''}"
    if ordered[0] == ordered[-1]:
        return f"{rows} of {median} tokens"
    return f"{rows}; half have up to {median} tokens, 95 % up to {most}, the longest {ordered[-1]:,}"


def _histogram(ax: Axes, values: np.ndarray, edges: np.ndarray, sequence_length: int, colour: str) -> None:
    """Bars whose area shows rows: bins of few whole numbers are not equally wide on a log axis."""
    counts, sides = np.diff(np.searchsorted(values, edges)), edges - 0.5
    density = counts / np.log(sides[1:] / sides[:-1])
    heights = np.where(counts > 0, np.maximum(density / max(density.max(), 1e-12), _LEAST), 0.0)
    fits = edges[:-1] <= sequence_length + 1
    for which, shade in ((fits & (counts > 0), colour), (~fits & (counts > 0), VALID)):
        ax.bar(sides[:-1][which], heights[which], np.diff(sides)[which], align="edge", color=shade, linewidth=0, zorder=2)
    ax.axvline(sequence_length + 1.5, color=INK, linewidth=0.9, dashes=(4, 3), zorder=3)


def _axis(ax: Axes, edges: np.ndarray, last: bool) -> None:
    low, high = float(edges[0]) - 0.5, float(edges[-1]) - 0.5
    margin = max((high / low) ** 0.015, 1.02)
    ax.set_xscale("log")
    ax.set(xlim=(low / margin, high * margin), ylim=(0, 1.0), yticks=[])
    ax.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: curves.tick(v) if last else ""))
    ax.tick_params(length=3, color=RULE, labelsize=SMALL, labelcolor=GREY, labelfontfamily=FONT, pad=3)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(RULE)
    if last:
        ax.set_xlabel("tokens in a row, log axis", color=GREY, labelpad=2, **font(SMALL))


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 in each power of ten, or fewer where they would be crowded."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**e for e in exponents for m in mantissas if low <= m * 10.0**e <= high and (m * 10.0**e) % 1 == 0]
        if len(ticks) <= _TICKS:
            break
    return ticks


def _words(ax: Axes, name: str, values: np.ndarray, sequence_length: int, colour: str) -> None:
    share = sentence(values, sequence_length)
    room, _ = size_points(ax)
    title = cut(ax, name, NORMAL, room - text_width(ax, share, SMALL) - 12, True)
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(title, (0, 1), xytext=(0, 7 + LINE), color=colour, **above, **font(NORMAL, True))
    ax.annotate(cut(ax, spread(values), SMALL, room), (0, 1), xytext=(0, 6), color=GREY, **above, **font(SMALL))
    warn = VALID if too_long(values, sequence_length) else GREY
    ax.annotate(share, (1, 1), xytext=(0, 7 + LINE), ha="right", color=warn, **above, **font(SMALL))


def _heading(figure: Figure, height: float, sequence_length: int) -> None:
    what = f"area: rows; dashed: {sequence_length:,} tokens, as many as the model sees at once"
    for down, text, colour, style in ((20, "Lengths of training rows", INK, font(NORMAL + 1, True)), (34, what, GREY, font(SMALL))):
        figure.text(_SIDE / WIDTH, 1 - down / height, text, color=colour, va="baseline", **style)
