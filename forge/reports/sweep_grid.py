"""A heat map of two swept keys: each cell has the loss, or the mean of the losses, of the children with its two values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from forge.reports import curves
from forge.reports.panels import GREY, INK, LINE, NORMAL, RULE, SMALL, cut, font, text_width, wrap
from forge.reports.sweep_children import Child, best, by_influence, places, reach, short, varying
from forge.reports.sweep_page import FAILED, HEAD, LOSSES, SIDE, UNIT, WIDTH, colour, counts, elide, heading, ink_on, page
from forge.reports.sweep_scale import Scale

MOST = 8  # values of a key; more numbers become ranges, of more words those with the lowest losses are shown
_RANGES = 6
_BAR = 110.0  # points: the legend's colours
_LEFT = 150.0  # points beside the cells, for the values of the one key


@dataclass(frozen=True)
class Cell:
    """The mean loss of `n` children; those that ended early count only where none came to its end. Without a loss: all failed."""

    loss: float | None
    n: int
    failed: int
    early: bool


def draw(children: Sequence[Child], importances: Mapping[str, float] | None = None) -> Figure:
    """Needs two keys that vary and a child with a loss. Of more keys the two most influential ones span the map."""
    keys = varying(children)
    chosen = by_influence(children, keys, importances)
    across, down = (Scale.of([child.swept.get(key) for child in children], key) for key in chosen[:2])
    (columns, at_x), (rows, at_y) = (_shown(children, scale) for scale in (across, down))
    cells = {
        (x, y): cell([child for child, i, j in zip(children, at_x, at_y, strict=True) if (i, j) == (x, y)])
        for x, y in set(zip(at_x, at_y, strict=True))
        if x is not None and y is not None
    }
    width, height = min(130.0, (WIDTH - 2 * SIDE - _LEFT) / len(columns)), 46.0 if len(rows) <= 6 else 36.0
    names = short(keys)
    figure, ax = page(HEAD + 72 + height * len(rows) + 68)
    top = heading(ax, f"Loss over {names[chosen[0]]} and {names[chosen[1]]}", _note(children, chosen, cells, (across, down))) + 34
    left = SIDE + _LEFT
    losses = [found.loss for found in cells.values() if found.loss is not None]
    span = reach(losses) if losses else (0.0, 0.0)
    finished = {at: found.loss for at, found in cells.items() if found.loss is not None and not found.early}
    framed = _framed(children, list(zip(at_x, at_y, strict=True)), cells, finished)
    for x in range(len(columns)):
        for y in range(len(rows)):
            box = (left + x * width, top + (len(rows) - 1 - y) * height, width, height)
            _cell(ax, cells.get((x, y)), box, span, (x, y) == framed)
    _names(ax, (names[chosen[0]], names[chosen[1]]), columns, rows, (left, top, width, height))
    if losses:
        _legend(ax, span, max(losses) > span[1], left, top + height * len(rows) + 46)
    return figure


def _framed(
    children: Sequence[Child],
    at: Sequence[tuple[int | None, int | None]],
    cells: Mapping[tuple[int, int], Cell],
    losses: Mapping[tuple[int, int], float],
) -> tuple[int | None, int | None] | None:
    """The best one's cell; where cells are means, the one with the lowest."""
    if any(found.n > 1 for found in cells.values()):
        return min(losses, key=lambda place: losses[place], default=None)
    chosen = best(children)
    return next((place for child, place in zip(children, at, strict=True) if child is chosen), None)


def cell(members: Sequence[Child]) -> Cell:
    done = [child.loss for child in members if child.loss is not None and child.status == "finished"]
    early = [child.loss for child in members if child.loss is not None and child.status != "finished"]
    counted = done or early
    failed = sum(child.loss is None for child in members)
    return Cell(fmean(counted) if counted else None, len(counted), failed, not done and bool(early))


def _shown(children: Sequence[Child], scale: Scale) -> tuple[list[str], list[int | None]]:
    """Labels, and which of them each child has; None: not among those shown."""
    labels, at = scale.groups([child.swept.get(scale.key) for child in children], MOST if len(scale.typed) <= MOST else _RANGES)
    if len(labels) <= MOST:
        return labels, list(at)
    lowest = {i: min((c.loss for c, j in zip(children, at, strict=True) if i == j and c.loss is not None), default=np.inf) for i in set(at)}
    kept = sorted(sorted(lowest, key=lambda i: lowest[i])[:MOST])
    return [labels[i] for i in kept], [kept.index(i) if i in kept else None for i in at]


def _note(children: Sequence[Child], chosen: Sequence[str], cells: Mapping[tuple[int, int], Cell], scales: Sequence[Scale]) -> str:
    mean = any(found.n > 1 for found in cells.values())
    parts = [counts(children), "a cell: the mean of its n finished runs" if mean else "a cell: the loss of its run", "framed: the lowest"]
    if chosen[2:]:
        parts.append(f"averaged over {', '.join(short(chosen)[key] for key in chosen[2:])}")
    if any(found.early for found in cells.values()):
        parts.append("early: none of its runs came to its end")
    parts += [f"{short(chosen)[s.key]}: the {MOST} of {len(s.words)} with the lowest losses" for s in scales if len(s.words) > MOST]
    return "; ".join(parts)


def _cell(ax: Axes, found: Cell | None, box: tuple[float, float, float, float], span: tuple[float, float], best: bool) -> None:
    x, y, width, height = box
    fill = colour(found.loss, *span) if found and found.loss is not None else (1.0, 1.0, 1.0, 1.0)
    ax.add_patch(Rectangle((x + 1, y + 1), width - 2, height - 2, facecolor=fill, edgecolor=RULE if fill == (1.0,) * 4 else "none",
                           linewidth=0.8, linestyle=(0, (2, 2)) if found is None else "-"))  # fmt: skip
    if found is None:
        return
    ink, middle = ink_on(fill), (x + width / 2, y + height / 2)
    if found.loss is None:
        reach_x, reach_y = width / 2 - 5, height / 2 - 5
        for way in (-1, 1):
            ax.plot([middle[0] - reach_x, middle[0] + reach_x], [middle[1] - way * reach_y, middle[1] + way * reach_y], color=FAILED,
                    linewidth=0.9, alpha=0.55)  # fmt: skip
        ax.text(*middle, "failed" if found.failed == 1 else f"{found.failed} failed", color=FAILED, ha="center", va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, **font(SMALL))  # fmt: skip
        return
    small = ", ".join([f"n = {found.n}"] * (found.n > 1) + ["early"] * found.early + [f"{found.failed} failed"] * bool(found.failed))
    shift = 6.0 if small else 0.0
    value = curves.decimals(found.loss, places(*span)) if found.loss <= span[1] else curves.compact(found.loss)
    ax.text(
        middle[0],
        middle[1] - shift,
        cut(ax, value, NORMAL + 1, width - 6, True),
        color=ink,
        ha="center",
        va="center",
        **font(NORMAL + 1, True),
    )
    if small:
        ax.text(middle[0], middle[1] + 7, cut(ax, small, SMALL - 1, width - 8), color=ink, ha="center", va="center", **font(SMALL - 1))
    if best:
        ax.add_patch(Rectangle((x + 3.2, y + 3.2), width - 6.4, height - 6.4, fill=False, edgecolor="white", linewidth=1.2, zorder=4))
        ax.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=INK, linewidth=2.6, zorder=5))


def _names(ax: Axes, names: tuple[str, str], columns: Sequence[str], rows: Sequence[str], at: tuple[float, float, float, float]) -> None:
    """The values along both sides, and the keys, each with an arrow to its side."""
    left, top, width, height = at
    bottom = top + height * len(rows)
    for x, text in enumerate(columns):
        for i, line in enumerate(wrap(ax, text, SMALL, False, width - 6, 2)):
            ax.text(left + (x + 0.5) * width, bottom + 11 + i * LINE, line, color=INK, ha="center", va="center", **font(SMALL))
    for y, text in enumerate(rows):
        ax.text(left - 8, bottom - (y + 0.5) * height, elide(ax, text, _LEFT - 8), color=INK, ha="right", va="center", **font(SMALL))
    ax.text(left - 8, bottom + 11, cut(ax, names[0], NORMAL, _LEFT - 8, True), color=INK, ha="right", va="center", **font(NORMAL, True))
    ax.text(left - 8, top - 12, cut(ax, names[1], NORMAL, _LEFT - 8, True), color=INK, ha="right", va="center", **font(NORMAL, True))


def _legend(ax: Axes, span: tuple[float, float], more: bool, x: float, y: float) -> None:
    """The colours from the lowest loss to the highest, and what they are."""
    low, high = span
    if high > low:
        limits = ax.get_xlim(), ax.get_ylim()
        texts = [curves.decimals(value, places(low, high)) for value in span]
        ax.text(x, y, texts[0], color=INK, va="center", **font(SMALL))
        x += text_width(ax, texts[0], SMALL) + 6
        ax.imshow(np.linspace(0, 1, 256)[None, :], cmap=LOSSES, extent=(x, x + _BAR, y + 4.5, y - 4.5), aspect="auto")
        ax.set(xlim=limits[0], ylim=limits[1])
        text = texts[1] + (" or more" if more else "")
        ax.text(x + _BAR + 6, y, text, color=INK, va="center", **font(SMALL))
        x += _BAR + text_width(ax, text, SMALL) + 20
    ax.text(x, y, UNIT, color=GREY, va="center", **font(SMALL))
