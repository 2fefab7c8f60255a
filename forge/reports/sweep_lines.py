"""The validation curves of a sweep's children over each other, and how much each swept key matters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from forge.reports import curves
from forge.reports.palette import LIGHT
from forge.reports.panels import GREY, INK, LINE, NORMAL, RULE, SMALL, cut, font, one_line, text_width
from forge.reports.sweep_children import Child, best, measured, short
from forge.reports.sweep_page import FAILED, HEAD, SIDE, WIDTH, counts, heading, page

MOST_LABELS, MOST_BARS = 6, 14
_FAINT = "#c3c8ce"
_NAMES = 214.0  # points right of the curves

End = tuple[float, float, Child, str]  # x, y, whose, colour


def overlay(children: Sequence[Child]) -> Figure:
    """Needs a child with a curve. Named: the lowest losses, up to six."""
    height = 400.0
    figure, ax = page(height)
    drawn = [(child, curve) for child in children for curve in [_finite(child)] if len(curve)]
    chosen = best([child for child, _ in drawn])
    named = [child for child, _ in measured([child for child, _ in drawn])][:MOST_LABELS]
    if chosen and chosen not in named:
        named = [*named[: MOST_LABELS - 1], chosen]
    low, high, above = _limits([curve for _, curve in drawn], _finite(chosen or drawn[0][0]))
    last = max(1.0, *(curve[-1, 0] for _, curve in drawn))
    top = heading(ax, "Validation loss of all runs", _note(children, above, 0 < len(named) < len(drawn))) + 20
    left, right, bottom = SIDE + 44, WIDTH - SIDE - _NAMES, height - 42
    _axes(ax, (low, high), last, (left, right, top, bottom))
    ends: list[End] = []
    colours = iter(LIGHT.sources)
    for child, curve in drawn:
        stroke = LIGHT.valid if child is chosen else next(colours) if child in named else _FAINT
        x, y = left + curve[:, 0] / last * (right - left), bottom - (curve[:, 1] - low) / (high - low) * (bottom - top)
        x, y = curves.decimate(*_below(x, y, top))
        if len(x):
            _curve(ax, x, y, child, stroke, 5 if child is chosen else 4 if child in named else 2)
            ends += [(float(x[-1]), float(y[-1]), child, stroke)] if child in named else []
    _label(ax, ends, chosen, right, (top, bottom))
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """Needs one key. `shares`: of the key in what moves the loss; the highest first, from 0 on."""
    ranked = sorted(shares.items(), key=lambda pair: -pair[1])
    shown, names = ranked[:MOST_BARS], short(list(shares))
    height = HEAD + 44 + 24.0 * len(shown)
    figure, ax = page(height)
    rest = ranked[MOST_BARS:]
    more = f"; {len(rest)} more keys come to {sum(value for _, value in rest):.2f}" if rest else ""
    whole = "; all add up to 1" if abs(sum(shares.values()) - 1) < 0.005 else ""
    top = heading(ax, "How much each key matters for the loss", f"longer matters more{whole}{more}") + 10
    room = max(text_width(ax, cut(ax, names[key], NORMAL, 220), NORMAL) for key, _ in shown)
    left, right = SIDE + room + 12, WIDTH - SIDE - 40
    longest = max(max(value for _, value in shown), 1e-12)
    for row, (key, value) in enumerate(shown):
        y = top + 24.0 * (row + 0.5)
        end = left + max(0.0, value) / longest * (right - left)
        ax.text(left - 10, y, cut(ax, names[key], NORMAL, 220), color=INK, ha="right", va="center", **font(NORMAL))
        ax.plot([left, max(end, left + 0.8)], [y, y], color=LIGHT.train, linewidth=13, solid_capstyle="butt")
        ax.text(end + 6, y, f"{value:.2f}", color=INK, va="center", **font(NORMAL))
    return figure


def has_curve(children: Sequence[Child]) -> bool:
    return any(len(_finite(child)) for child in children)


def _finite(child: Child) -> np.ndarray:
    """(evaluations, 2): steps and losses, by step."""
    points = np.array(sorted(child.curve), dtype=float).reshape(-1, 2)
    return points[np.isfinite(points[:, 1])]


def _limits(found: Sequence[np.ndarray], chosen: np.ndarray) -> tuple[float, float, bool]:
    """Of the loss's axis, and whether a curve leaves it: the last two thirds of the best curve, and how most of the others end.

    The untrained model's loss, and children that diverged, would flatten all that tells the others apart.
    """
    highest = max(float(curve[:, 1].max()) for curve in found)
    low = min(float(curve[:, 1].min()) for curve in found)
    usual = float(np.quantile([curve[:, 1].min() for curve in found], 0.8))
    late = chosen[chosen[:, 0] >= 0.3 * chosen[-1, 0], 1] if len(chosen) > 4 else chosen[:, 1]
    low, high = curves.limits([low, min(highest, max(float(late.max()), low + 2.5 * (usual - low)))])
    return low, high, highest > high


def _curve(ax: Axes, x: np.ndarray, y: np.ndarray, child: Child, stroke: str, order: int) -> None:
    """What did not come to its end has a mark there: a cross where it failed, else a ring."""
    ax.plot(x, y, color=stroke, linewidth={5: 2.8, 4: 1.5}.get(order, 0.9), zorder=order, solid_capstyle="round")
    failed, early = child.status == "failed", child.status in ("pruned", "stopped")
    if failed or early or len(x) == 1:
        shade = FAILED if failed else GREY if stroke == _FAINT else stroke
        style: dict[str, Any] = {"marker": "x" if failed else "o", "mfc": "white" if early else shade, "markersize": 4.5, "mew": 1.3}
        ax.plot(x[-1:], y[-1:], color=shade, zorder=order + 1, **style)


def _below(x: np.ndarray, y: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """The curve without what lies above the axis, and with the points at which it crosses `top`; y runs downwards."""
    out: list[tuple[float, float]] = []
    for i in range(len(x)):
        if i and (y[i] < top) != (y[i - 1] < top):
            share = (top - y[i - 1]) / (y[i] - y[i - 1])
            out.append((x[i - 1] + share * (x[i] - x[i - 1]), top))
        out.append((x[i], y[i]) if y[i] >= top else (x[i], np.nan))
    kept = np.array(out).reshape(-1, 2)
    kept = kept[~np.isnan(kept[:, 1])]
    return kept[:, 0], kept[:, 1]


def _axes(ax: Axes, span: tuple[float, float], last: float, box: tuple[float, float, float, float]) -> None:
    left, right, top, bottom = box
    low, high = span
    for value in MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high):
        if low <= value <= high:
            y = bottom - (value - low) / (high - low) * (bottom - top)
            ax.plot([left, right], [y, y], color=RULE, linewidth=0.6, zorder=1)
            ax.text(left - 8, y, curves.tick(value), color=GREY, ha="right", va="center", **font(SMALL))
    for value in MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]).tick_values(0, last):
        if value <= last:
            ax.text(
                left + value / last * (right - left), bottom + 12, curves.tick(value), color=GREY, ha="center", va="center", **font(SMALL)
            )
    ax.text((left + right) / 2, bottom + 27, "step", color=GREY, ha="center", va="center", **font(SMALL))


def _label(ax: Axes, ends: Sequence[End], chosen: Child | None, right: float, sides: tuple[float, float]) -> None:
    """Each named curve's best loss and name right of its end, moved apart; a thin line leads to them."""
    texts = [_lines(ax, child, child is chosen, right) for _, _, child, _ in ends]
    gap = LINE * max((len(lines) for lines in texts), default=1) + 3
    places = curves.spread([y for _, y, *_ in ends], gap, *sides)
    for (x, y, child, stroke), place, lines in zip(ends, places, texts, strict=True):
        ax.plot([x, max(right, x), right + 12, right + 18], [y, y, place, place], color=stroke, linewidth=0.7, alpha=0.7, zorder=3,
                linestyle=(0, (1, 1.5)) if right - x > 8 else "-")  # fmt: skip
        for i, line in enumerate(lines):
            down = (i - (len(lines) - 1) / 2) * LINE
            shade = INK if child is chosen else stroke
            ax.text(right + 22, place + down, line, color=shade, va="center", **font(SMALL, child is chosen))


def _lines(ax: Axes, child: Child, bold: bool, right: float) -> list[str]:
    """Up to two lines, broken between two swept values."""
    loss = "" if child.loss is None else f"{child.loss:.3f} "
    room, words = WIDTH - right - 22 - 8, one_line(f"{'best ' * bold}{loss}{child.name}").split(" ")
    fits = [n for n in range(2, len(words) + 1) if text_width(ax, " ".join(words[:n]), SMALL, bold) <= room]
    first = max(fits, default=2 if len(words) > 1 else 1)
    parts = [" ".join(words[:first]), " ".join(words[first:])]
    return [cut(ax, part, SMALL, room, bold) for part in parts if part]


def _note(children: Sequence[Child], above: bool, faint: bool) -> str:
    seconds = sum(child.seconds or 0.0 for child in children)
    parts = [counts(children) + (f", {curves.duration(seconds)} in all" if seconds else ""), "nats per token, lower is better"]
    parts += ["named: the lowest"] * faint + ["higher losses lie above the picture"] * above
    early = {"failed": "×: failed", "pruned": "○: pruned", "stopped": "○: stopped"}
    marks = [sign for status, sign in early.items() if any(child.status == status and len(child.curve) for child in children)]
    return "; ".join(parts + marks)
