"""The learning rate of a run before it starts: as a figure, and in characters for the terminal."""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from forge.reports.dashboard import DPI
from forge.reports.panels import GREY, INK

_BLOCKS = " ▁▂▃▄▅▆▇█"


def draw(rates: Sequence[float], title: str) -> Figure:
    """rates: of step 1, 2, …"""
    figure = Figure(figsize=(7.2, 3.0), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.plot(range(1, len(rates) + 1), rates, color="#1f6fb4", linewidth=1.6)
    ax.set_xlim(1, max(2, len(rates)))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step", color=GREY)
    ax.set_title(f"Learning rate of {title}: peak {max(rates):.3g}, last {rates[-1]:.3g}", color=INK, fontsize=10, loc="left")
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    ax.tick_params(colors=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def spark(values: Sequence[float], width: int = 60) -> str:
    """One line of blocks from 0 to the largest value; each stands for the mean of its part of the run.

    spark([0, 4, 8, 4], width=4) is " ▄█▄".
    """
    width = min(width, len(values))
    bounds = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    top = max(means) or 1.0
    return "".join(_BLOCKS[round(mean / top * (len(_BLOCKS) - 1))] for mean in means)
