"""The learning rate of a run before it starts, as a figure."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from forge.reports.dashboard import DPI, TRAIN
from forge.reports.panels import GREY, INK


def draw(rates: Sequence[float], title: str) -> Figure:
    """rates: of step 1, 2, …"""
    figure = Figure(figsize=(7.2, 3.0), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.plot(range(1, len(rates) + 1), rates, color=TRAIN, linewidth=1.6)
    ax.set_xlim(1, max(2, len(rates)))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("step", color=GREY)
    ax.set_title(f"Learning rate of {title}: peak {max(rates):.3g}, last {rates[-1]:.3g}", color=INK, fontsize=10, loc="left")
    ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    ax.tick_params(colors=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
