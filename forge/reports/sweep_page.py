"""What the pictures of a sweep share: the page, its heading, and one colour map for losses.

A page is WIDTH points wide, made to be read at 1,000 pixels. Its axes have one unit a point, and y runs downwards.
"""

import bisect
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from forge.reports.palette import LIGHT
from forge.reports.panels import GREY, INK, LINE, NORMAL, SMALL, font, one_line, text_width, wrap
from forge.reports.sweep_children import Child

WIDTH, SIDE, HEAD = 720.0, 22.0, 22.0  # points
DPI = 150
FAILED = LIGHT.alarm
# Dark is low. Even steps in lightness (viridis), without the yellow end that white paper swallows.
LOSSES = ListedColormap(colormaps["viridis"](np.linspace(0.02, 0.9, 256)))
UNIT = "best validation loss, nats per token; lower is better"


def page(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1), label="page")
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis("off")
    return figure, ax


def heading(ax: Axes, title: str, note: str) -> float:
    """Title, and up to two lines of what the picture shows. Returns the place below them."""
    ax.text(SIDE, HEAD, title, color=INK, va="baseline", **font(NORMAL + 2, True))
    y = HEAD + 3
    for line in wrap(ax, note, SMALL, False, WIDTH - 2 * SIDE, 2):
        y += LINE + 1
        ax.text(SIDE, y, line, color=GREY, va="baseline", **font(SMALL))
    return y + 6


def elide(ax: Axes, text: str, width: float) -> str:
    """Small text cut in its middle: long values tend to differ at their ends."""
    text = one_line(text)
    if text_width(ax, text, SMALL) <= width:
        return text

    def shorter(kept: int) -> str:
        return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"

    kept = bisect.bisect_right(range(1, len(text)), width, key=lambda n: text_width(ax, shorter(n), SMALL))
    return shorter(max(1, kept))


def counts(children: Sequence[Child]) -> str:
    """ "12 runs, 2 failed"."""
    ends = [(status, sum(child.status == status for child in children)) for status in ("failed", "pruned", "stopped")]
    word = "run" if len(children) == 1 else "runs"
    return ", ".join([f"{len(children)} {word}", *(f"{many} {status}" for status, many in ends if many)])


def colour(loss: float, low: float, high: float) -> tuple[float, float, float, float]:
    return LOSSES(min(1.0, max(0.0, (loss - low) / (high - low))) if high > low else 0.0)


def ink_on(background: Sequence[float]) -> str:
    """White or INK, whichever has more contrast (WCAG 2.1: the ratio of the relative luminances, each plus 0.05)."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background[:3])
    luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b
    ink = 0.02  # of INK
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / (ink + 0.05) else INK
