"""Parallel coordinates: an axis for each swept key, the last one for the loss, and a line for each child.

Lines that share a value lie side by side there, the better ones lower, so that a bundle shows how many it holds.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from forge.reports import curves
from forge.reports.panels import GREY, INK, LINE, NORMAL, RULE, SMALL, cut, font, wrap
from forge.reports.sweep_children import Child, best, by_influence, measured, places, reach, short, varying
from forge.reports.sweep_page import FAILED, LOSSES, SIDE, UNIT, WIDTH, colour, counts, elide, heading, page
from forge.reports.sweep_scale import UNSET, Scale

MOST = 7  # keys; with the loss, as many axes as the page has room for
_HEIGHT, _FIRST, _LAST, _BAR = 400.0, 92.0, WIDTH - 172.0, 9.0  # points: the places of the first axis and of the loss
_BUNDLE = 13.0  # points that the lines through one value may take


def draw(children: Sequence[Child], importances: Mapping[str, float] | None = None) -> Figure:
    """Needs a key that varies and a child with a loss."""
    keys = varying(children)
    kept = set(by_influence(children, keys, importances)[:MOST])
    shown = [key for key in keys if key in kept]
    left_out = f"; not shown, for they matter least: {', '.join(key for key in keys if key not in kept)}" if len(keys) > MOST else ""
    dashed = "; dashed: ended early" if any(child.status in ("pruned", "stopped") for child in children) else ""
    figure, ax = page(_HEIGHT)
    y = heading(ax, "What was swept, and the loss it led to", f"{counts(children)}; one line each, darker is better{dashed}{left_out}")
    top, bottom = y + 54, _HEIGHT - 24
    xs = [float(x) for x in np.linspace(_FIRST, _LAST, len(shown) + 1)]
    scales = [Scale.of([child.swept.get(key) for child in children], key) for key in shown]
    losses = [loss for _, loss in measured(children)]
    low, high = reach(losses)
    ranked = sorted(children, key=lambda child: (child.loss is None, child.loss or 0.0))
    heights = [_bundled(ranked, scale, top, bottom) for scale in scales]
    heights.append([top - 14 if child.loss is None else _at((child.loss - low) / (high - low or 1.0), top, bottom) for child in ranked])
    chosen = best(children)
    for rank, child in reversed(list(enumerate(ranked))):
        _line(ax, xs, [column[rank] for column in heights], child, child is chosen, (low, high), (rank, len(children)))
    for x, key, scale in zip(xs, shown, scales, strict=False):
        _axis(ax, x, cut(ax, short(keys)[key], NORMAL, xs[1] - xs[0] - 8, True), scale, xs[1] - xs[0] - 10, top, bottom)
    _losses(ax, xs[-1], low, high, max(losses) > high, top, bottom)
    if len(losses) < len(children):
        ax.text(xs[-1] + 14, top - 14, f"{len(children) - len(losses)} without a loss", color=FAILED, va="center", **font(SMALL))
    if chosen:
        _label(ax, chosen, shown, heights[-1][ranked.index(chosen)], places(low, high), bottom)
    return figure


def _at(share: float, top: float, bottom: float) -> float:
    return bottom - min(1.0, share) * (bottom - top)


def _bundled(ranked: Sequence[Child], scale: Scale, top: float, bottom: float) -> list[float]:
    """Each child's place on the axis. Those of one value are spread around it, the best lowest."""
    at = [scale.place(child.swept.get(scale.key)) for child in ranked]
    distinct = sorted(set(at))
    gap = min((b - a for a, b in pairwise(distinct)), default=1.0) * (bottom - top)
    out, seen = [], dict.fromkeys(distinct, 0)
    for place in at:
        many = at.count(place)
        room = min(_BUNDLE, 0.7 * gap, 4.0 * (many - 1))
        out.append(_at(place, top, bottom) + (room * (0.5 - seen[place] / (many - 1)) if many > 1 else 0.0))
        seen[place] += 1
    return out


def _line(
    ax: Axes, xs: Sequence[float], ys: Sequence[float], child: Child, strong: bool, span: tuple[float, float], place: tuple[int, int]
) -> None:
    """Flat where it crosses an axis, so that the eye follows it through a bundle."""
    points, codes = [(xs[0], ys[0])], [Path.MOVETO]
    for i in range(1, len(xs)):
        third = (xs[i] - xs[i - 1]) * 0.4
        points += [(xs[i - 1] + third, ys[i - 1]), (xs[i] - third, ys[i]), (xs[i], ys[i])]
        codes += [Path.CURVE4] * 3
    stroke = FAILED if child.loss is None else colour(child.loss, *span)
    rank, many = place
    width = 3.0 if strong else 1.6 if many <= 30 else 0.9
    seen = 1.0 if strong else 0.75 if many <= 60 or rank < many / 10 else 0.3
    dash = (0, (4, 2.5)) if child.status in ("pruned", "stopped") else (0, (1, 2)) if child.loss is None else "-"
    if strong:
        ax.add_patch(PathPatch(Path(points, codes), fill=False, edgecolor="white", linewidth=width + 2.4, zorder=4))
    ax.add_patch(PathPatch(Path(points, codes), fill=False, edgecolor=stroke, linewidth=width, linestyle=dash,
                           alpha=seen, zorder=5 if strong else 2))  # fmt: skip
    ax.plot(xs[:-1], ys[:-1], "o", color=stroke, markersize=6.5 if strong else 3.0 if many <= 30 else 0, mec="white", mew=0.6,
            zorder=6 if strong else 3)  # fmt: skip
    if child.loss is None:
        ax.plot(xs[-1:], ys[-1:], "x", color=FAILED, markersize=6, mew=1.6, zorder=6)


def _axis(ax: Axes, x: float, name: str, scale: Scale, room: float, top: float, bottom: float) -> None:
    ax.plot([x, x], [top, bottom], color=RULE, linewidth=1.2, zorder=1)
    ax.text(x, top - 34, name, color=INK, ha="center", va="center", **font(NORMAL, True))
    if scale.log:
        ax.text(x, top - 22, "log", color=GREY, ha="center", va="center", **font(SMALL))
    for place, text in scale.ticks(int((bottom - top) / (1.4 * LINE))):
        ax.text(x - 8, _at(place, top, bottom), elide(ax, text, min(room, 84) - 8), color=INK, ha="right", va="center", zorder=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.8}, **font(SMALL))  # fmt: skip


def _losses(ax: Axes, x: float, low: float, high: float, more: bool, top: float, bottom: float) -> None:
    """The loss's axis is the colours' legend too."""
    if high > low:
        ax.imshow(np.linspace(0, 1, 256)[::-1, None], cmap=LOSSES, extent=(x, x + _BAR, bottom, top), aspect="auto", zorder=3)
        ax.set(xlim=(0, WIDTH), ylim=(_HEIGHT, 0))
    ax.text(x, top - 34, "loss", color=INK, ha="center", va="center", **font(NORMAL, True))
    for i, line in enumerate(wrap(ax, UNIT, SMALL, False, WIDTH - x - _BAR - 10 - SIDE / 2, 2)):
        ax.text(x + 22, top - 42 + i * LINE, line, color=GREY, va="center", **font(SMALL))
    ticks = [low, high] if high - low < 1e-12 else list(np.linspace(low, high, 5))
    for value in dict.fromkeys(ticks):
        text = curves.decimals(value, places(low, high)) + (" or more" if more and value == high else "")
        y = _at((value - low) / (high - low or 1.0), top, bottom)
        ax.text(x + _BAR + 5, y, text, color=GREY, va="center", **font(SMALL))


def _label(ax: Axes, chosen: Child, shown: Sequence[str], y: float, digits: int, bottom: float) -> None:
    """Beside the loss's numbers: the best loss, and the values that led to it."""
    x = _LAST + 66
    names = short(shown)
    room = WIDTH - x - 8
    lines = [cut(ax, f"best {curves.decimals(chosen.loss or 0.0, digits)}", NORMAL, room, True)]
    lines += [cut(ax, f"{names[key]} {chosen.swept.get(key, UNSET)}", SMALL, room) for key in shown]
    y = min(y, bottom - (len(lines) - 1) * LINE)
    for i, line in enumerate(lines):
        ax.text(x, y + i * LINE, line, color=INK, va="center", **(font(SMALL) if i else font(NORMAL, True)))
