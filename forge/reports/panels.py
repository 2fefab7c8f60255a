"""Parts that the panels of a figure share: frame, lines, labels at line ends, tables, and text that fits its place.

Lengths are in points. Text from outside is drawn without mathtext, since a "$" in a run's name must not fail its dashboard.
"""

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from forge.reports import curves
from forge.reports.curves import decimals
from forge.reports.palette import LIGHT, Palette

INK, GREY, RULE = LIGHT.ink, LIGHT.grey, LIGHT.rule
FONT = "DejaVu Sans"  # comes with matplotlib
SMALL, NORMAL, LARGE = 8.5, 9.0, 13.0  # points
LINE = 12.0  # points from a line of text to the next
_GAP = 8.0  # points of a label's room that its leader takes
LABEL = 11.5  # points from a label at a line's end to the next


def frame(
    ax: Axes,
    title: str,
    subtitle: Sequence[tuple[str, str]],
    last: float,
    ticks: int,
    say: Callable[[float], str] = curves.tick,
    palette: Palette = LIGHT,
) -> None:
    """Title, coloured subtitle (the legend) and axes from step 0 to `last`."""
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(title, (0, 1), xytext=(0, 20), color=palette.ink, **above, **font(NORMAL + 1, True))
    x = 0.0
    for text, colour in subtitle:
        ax.annotate(text, (0, 1), xytext=(x, 7), color=colour, **above, **font(SMALL))
        x += text_width(ax, text, SMALL) + 6
    ax.set_xlabel("step", color=palette.grey, labelpad=2, **font(SMALL))
    ax.set_xlim(0, max(1.0, float(last)))
    ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(max(5, ticks), steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: curves.tick(v)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: say(v)))
    ax.tick_params(length=0, labelsize=SMALL, labelcolor=palette.grey, labelfontfamily=FONT, pad=4)
    ax.grid(axis="y", color=palette.rule, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(palette.rule)


def empty(ax: Axes, title: str, palette: Palette = LIGHT) -> None:
    frame(ax, title, [], 1, 4, palette=palette)
    ax.set(xticks=[], yticks=[], xlabel="")
    ax.text(0.5, 0.5, "no data yet", transform=ax.transAxes, ha="center", va="center", color=palette.grey, **font(NORMAL))


def plot(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, **style: Any) -> None:
    """A line through the points; dots too while they are few, since a lone point has no line."""
    if len(x) <= 2:
        style = {"marker": "o", "markersize": 4, **style}
    x, y = curves.decimate(x, y)
    ax.plot(x, y, **{"color": colour, "clip_on": False, **style})  # unclipped: half a marker at an edge looks like a mistake


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], room: float) -> None:
    """Value and name beside the end of each line, moved apart where they would overlap; `room` is in points."""
    low, high = ax.get_ylim()
    _, height = size_points(ax)
    shares = [min(1.0, max(0.0, (value - low) / (high - low))) for value, _, _ in ends]
    places = curves.spread(shares, LABEL / height, 0.0, 1.0)
    for (value, name, colour), share, place in zip(ends, shares, places, strict=True):
        text = cut(ax, _end(value, name), SMALL, room - _GAP)
        ax.annotate(text, (1, share), xycoords="axes fraction", xytext=(11, (place - share) * height), color=colour,
                    textcoords="offset points", va="center", arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6,
                    "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 3}, **font(SMALL))  # fmt: skip


def end_width(ax: Axes, value: float, name: str) -> float:
    """The `room` in which label_ends() cuts nothing off."""
    return text_width(ax, one_line(_end(value, name)), SMALL) + _GAP


def _end(value: float, name: str) -> str:
    return f"{decimals(value, 2)} {name}"


def shade(ax: Axes, low: float, high: float, words: str, colour: str, alpha: float = 0.08) -> None:
    """A band from `low` to `high`, as far as the axis shows it, and what it means where there is room. After the limits are set."""
    bottom, top = ax.get_ylim()
    low, high = max(low, bottom), min(high, top)
    if low >= high:
        return
    ax.axhspan(low, high, color=colour, alpha=alpha, linewidth=0, zorder=0.5)
    (_, foot), (_, head) = (ax.transData.transform((0, y)) * 72 / ax.figure.dpi for y in (low, high))
    width, _ = size_points(ax)
    if head - foot >= LINE + 1 and text_width(ax, words, SMALL) < width - 8:
        share = ax.transAxes.inverted().transform(ax.transData.transform((0, high)))[1]
        ax.annotate(words, (0, share), xycoords="axes fraction", xytext=(4, -2.5), textcoords="offset points", va="top", color=colour,
                    **font(SMALL))  # fmt: skip


def limit_line(ax: Axes, value: float, colour: str) -> None:
    ax.axhline(value, color=colour, linewidth=1.0, dashes=(5, 3), zorder=1)


def log_axis(ax: Axes, low: float, high: float) -> None:
    """A log axis from `low` > 0 to `high` with few labels."""
    ax.set_yscale("log")
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(FixedLocator(curves.log_ticks(low, high)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: curves.tick(v)))


def size_points(ax: Axes) -> tuple[float, float]:
    return ax.bbox.width * 72 / ax.figure.dpi, ax.bbox.height * 72 / ax.figure.dpi


def table(ax: Axes, y: float, heading: str, rows: Sequence[tuple[str, str]], width: float, palette: Palette = LIGHT) -> float:
    """Draws key and value columns from `y` down. Returns the place of the next block."""
    ax.text(0, y, heading, color=palette.ink, va="center", **font(NORMAL, True))
    for key, value in rows:
        y += LINE
        value = cut(ax, value, SMALL, width - min(text_width(ax, one_line(key), SMALL), width / 2) - 8)
        ax.text(0, y, cut(ax, key, SMALL, width - text_width(ax, value, SMALL) - 8), color=palette.grey, va="center", **font(SMALL))
        ax.text(width, y, value, color=palette.ink, va="center", ha="right", **font(SMALL))
    return y + LINE * 1.6


# ---- text -------------------------------------------------------------------------------------------------------------


def font(size: float, bold: bool = False) -> dict[str, Any]:
    return {"fontfamily": FONT, "fontsize": size, "fontweight": "bold" if bold else "normal", "parse_math": False}


@functools.cache
def face(bold: bool) -> tuple[FontProperties, frozenset[int]]:
    properties = FontProperties(family=FONT, weight="bold" if bold else "normal")
    return properties, frozenset(get_font(findfont(properties)).get_charmap())


def one_line(text: str) -> str:
    """Without line breaks, and with "?" for what the font can't draw (matplotlib would warn and draw a box)."""
    return "".join(char if ord(char) in face(False)[1] else "?" for char in " ".join(str(text).split()))


def text_width(ax: Axes, text: str, size: float, bold: bool = False) -> float:
    properties = face(bold)[0].copy()
    properties.set_size(size)
    renderer = ax.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    return renderer.get_text_width_height_descent(text, properties, False)[0] * 72 / ax.figure.dpi


def cut(ax: Axes, text: str, size: float, width: float, bold: bool = False) -> str:
    text = one_line(text)
    if text_width(ax, text, size, bold) <= width:
        return text
    kept = bisect.bisect_right(range(1, len(text)), width, key=lambda n: text_width(ax, text[:n] + "…", size, bold))
    return text[:kept].rstrip() + "…"


def wrap(ax: Axes, text: str, size: float, bold: bool, width: float, lines: int) -> list[str]:
    """At most `lines` lines, broken after a separator where there is one; the last is cut."""
    text = one_line(text)
    out: list[str] = []
    while text and len(out) < lines - 1 and text_width(ax, text, size, bold) > width:
        head = cut(ax, text, size, width, bold).removesuffix("…")
        ends = [i + 1 for i, char in enumerate(text[: len(head) + 1]) if char in " -_/,:=" and (i < len(head) or char == " ")]
        head, text = text[: max(ends, default=len(head))], text[max(ends, default=len(head)) :]
        out.append(head.rstrip())
    return [*out, cut(ax, text, size, width, bold)] if text else out
