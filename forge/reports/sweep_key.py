"""The loss against the one key that was swept: along an axis where its values are numbers, else a row for each value."""

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forge.reports import curves
from forge.reports.palette import LIGHT
from forge.reports.panels import GREY, INK, LINE, NORMAL, RULE, SMALL, cut, font, text_width
from forge.reports.sweep_children import Child, best, measured, places, reach, short, varying
from forge.reports.sweep_page import FAILED, HEAD, SIDE, UNIT, WIDTH, counts, elide, heading, page
from forge.reports.sweep_scale import UNSET, Scale

MOST_ROWS = 24
_JOINED = 24  # values up to which a line joins their means
_BEYOND = 22.0  # points past the axis of the loss, for children without one
_ROW = 21.0  # points

Spot = tuple[float, float]


def draw(children: Sequence[Child]) -> Figure:
    """Needs a key that varies and a child with a loss."""
    key = varying(children)[0]
    scale = Scale.of([child.swept.get(key) for child in children], key)
    return _along(children, scale) if scale.typed else _rows(children, scale)


def _along(children: Sequence[Child], scale: Scale) -> Figure:
    height = 370.0
    figure, ax = page(height)
    top = (
        heading(
            ax,
            f"Loss over {short([scale.key])[scale.key]}",
            _note(children, "line: the mean of each value" if len(scale.typed) <= _JOINED else ""),
        )
        + 20
        + _BEYOND
    )
    left, right, bottom = SIDE + 50, WIDTH - SIDE - 30, height - 46
    low, high, more = _span(children)
    low -= 0.07 * (high - low)  # an empty strip for the label, below the best one

    def at(child: Child) -> Spot:
        x = left + scale.place(child.swept.get(scale.key)) * (right - left)
        return x, top - _BEYOND if child.loss is None else bottom - (min(high, child.loss) - low) / (high - low) * (bottom - top)

    for value in _ticks(low, high):
        y = bottom - (value - low) / (high - low) * (bottom - top)
        ax.plot([left - 10, right + 10], [y, y], color=RULE, linewidth=0.6, zorder=1)
        ax.text(left - 18, y, curves.tick(value), color=GREY, ha="right", va="center", **font(SMALL))
    for place, text in scale.ticks(12):
        x = left + place * (right - left)
        ax.plot([x, x], [bottom, bottom + 4], color=RULE, linewidth=0.8)
        ax.text(x, bottom + 13, elide(ax, text, (right - left) / 12), color=INK, ha="center", va="center", **font(SMALL))
    name = short([scale.key])[scale.key] + (", log axis" if scale.log else "")
    ax.text((left + right) / 2, bottom + 30, cut(ax, name, SMALL, right - left), color=GREY, ha="center", va="center", **font(SMALL))
    numbers = [child for child in children if child.loss is not None and child.swept.get(scale.key, UNSET) not in scale.words]
    xs = sorted({at(child)[0] for child in numbers})
    if 1 < len(xs) <= _JOINED:
        ax.plot(
            xs, [fmean(at(child)[1] for child in numbers if at(child)[0] == x) for x in xs], color=LIGHT.train, linewidth=1.4, alpha=0.6
        )
    _spots(ax, children, at)
    if any(child.loss is None for child in children):
        ax.text(left - 18, top - _BEYOND, "failed", color=FAILED, ha="right", va="center", **font(SMALL))
    if more:
        ax.text(left - 18, top - 9, "or more", color=GREY, ha="right", va="center", **font(SMALL))
    if chosen := best(children):
        _label(ax, chosen, at(chosen), 16.0, (left, right), places(low, high))
    return figure


def _rows(children: Sequence[Child], scale: Scale) -> Figure:
    """Values from the lowest loss down."""
    lowest = {word: min((c.loss for c in children if c.swept.get(scale.key, UNSET) == word and c.loss is not None), default=np.inf)
              for word in scale.words}  # fmt: skip
    words = sorted(scale.words, key=lambda word: lowest[word])[:MOST_ROWS]
    shown = [child for child in children if child.swept.get(scale.key, UNSET) in words]
    height = HEAD + 84 + _ROW * len(words)
    figure, ax = page(height)
    cut_off = f"the {len(words)} lowest of {len(scale.words)} values" if len(words) < len(scale.words) else "lowest first"
    top = heading(ax, f"Loss over {short([scale.key])[scale.key]}", _note(children, cut_off)) + 16
    name = max(text_width(ax, elide(ax, word, 240), SMALL) for word in words)
    left, right, bottom = SIDE + name + 24, WIDTH - SIDE - 60, top + _ROW * len(words)
    low, high, more = _span(shown)

    def at(child: Child) -> Spot:
        y = top + (words.index(child.swept.get(scale.key, UNSET)) + 0.5) * _ROW
        return right + _BEYOND if child.loss is None else left + (min(high, child.loss) - low) / (high - low) * (right - left), y

    for word in words:
        y = top + (words.index(word) + 0.5) * _ROW
        ax.plot([left - 10, right + 8], [y, y], color=RULE, linewidth=0.6, zorder=1)
        ax.text(left - 18, y, elide(ax, word, 240), color=INK, ha="right", va="center", **font(SMALL))
    for value in _ticks(low, high):
        x = left + (value - low) / (high - low) * (right - left)
        ax.plot([x, x], [top, bottom], color=RULE, linewidth=0.6, zorder=1)
        ax.text(x, bottom + 12, curves.tick(value), color=GREY, ha="center", va="center", **font(SMALL))
    _spots(ax, shown, at)
    if any(child.loss is None for child in shown):
        ax.text(right + _BEYOND, bottom + 12, "failed", color=FAILED, ha="center", va="center", **font(SMALL))
    if more:
        ax.text(right, bottom + 12 + LINE, "or more", color=GREY, ha="center", va="center", **font(SMALL))
    if chosen := best(shown):
        _label(ax, chosen, at(chosen), -15.0, (left, right), places(low, high))
    return figure


def _note(children: Sequence[Child], how: str) -> str:
    early = "hollow: ended early" if any(child.status in ("pruned", "stopped") for child in children) else ""
    return "; ".join(part for part in (counts(children), UNIT, how, early) if part)


def _span(children: Sequence[Child]) -> tuple[float, float, bool]:
    """Limits of the loss's axis, and whether some lie past them."""
    losses = [loss for _, loss in measured(children)]
    low, high = reach(losses)
    return *curves.limits([low, high]), max(losses) > high


def _ticks(low: float, high: float) -> list[float]:
    return [float(value) for value in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= value <= high]


def _spots(ax: Axes, children: Sequence[Child], at: Callable[[Child], Spot]) -> None:
    for child in children:
        x, y = at(child)
        if child.loss is None:
            ax.plot([x], [y], "x", color=FAILED, markersize=6, mew=1.6, zorder=4)
        else:
            hollow = child.status != "finished"
            ax.plot(
                [x],
                [y],
                "o",
                markersize=6.5,
                mfc="white" if hollow else LIGHT.train,
                mec=LIGHT.train if hollow else "white",
                mew=1.2,
                zorder=3,
            )


def _label(ax: Axes, chosen: Child, spot: Spot, shift: float, sides: tuple[float, float], digits: int) -> None:
    """A ring around the best one, and its loss."""
    ax.plot(*([value] for value in spot), "o", markersize=11, mfc="none", mec=INK, mew=1.6, zorder=5)
    text = f"best {curves.decimals(chosen.loss or 0.0, digits)}"
    half = text_width(ax, text, NORMAL, True) / 2
    x = min(max(spot[0], sides[0] + half), sides[1] - half)
    ax.text(x, spot[1] + shift, text, color=INK, ha="center", va="center", zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}, **font(NORMAL, True))  # fmt: skip
