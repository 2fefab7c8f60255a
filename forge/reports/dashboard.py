"""The dashboard image of one training run. Under a second for 10,000 steps: no line has more than 2,000 points.

No pyplot and no rcParams: those are global, and this is called from a background thread.
"""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from forge.reports import losses, pace
from forge.reports.losses import wide_names
from forge.reports.palette import LIGHT, THEMES, Palette
from forge.reports.panels import LINE, NORMAL, SMALL, cut, font, size_points, text_width
from forge.reports.remedy import Advice
from forge.reports.summary import summary
from forge.spec import History, RunFacts

DPI = 150
TRAIN, VALID, SOURCES = LIGHT.train, LIGHT.valid, LIGHT.sources

Panel = Callable[[Axes, History, RunFacts, Palette], None]
PANELS: dict[str, Panel] = {
    "loss": losses.loss,
    "sources": losses.sources,
    "gap": losses.gap,
    "perplexity": losses.perplexity,
    "lr": pace.learning_rate,
    "grad_norm": pace.gradient_norm,
    "throughput": pace.throughput,
    "memory": pace.memory,
}

# Points: left, top, width, height. MLflow shows the picture about 1,000 pixels wide, 1.26 a point: text of 8.5 points is 11 pixels high.
WIDTH, HEIGHT = 792.0, 676.0
_SUMMARY = (16.0, 12.0, 158.0, HEIGHT - 24)
_PLACES = {
    "loss": (216.0, 46.0, 266.0, 226.0),  # the room right of the upper two is for labels at line ends
    "sources": (598.0, 46.0, 104.0, 226.0),
    "gap": (216.0, 346.0, 156.0, 110.0),
    "perplexity": (416.0, 346.0, 156.0, 110.0),
    "lr": (616.0, 346.0, 156.0, 110.0),
    "grad_norm": (216.0, 530.0, 156.0, 110.0),
    "throughput": (416.0, 530.0, 156.0, 110.0),
    "memory": (616.0, 530.0, 156.0, 110.0),
}
_ADVICE = 3  # recommendations shown


def draw(history: History, facts: RunFacts, theme: str = "light", advice: Sequence[Advice] = ()) -> Figure:
    """theme: light or dark. The first three recommendations stand in a strip below the panels, which is there only with them."""
    palette = THEMES[theme]
    shown = advice[:_ADVICE]
    strip = LINE * (len(shown) + 1.5) * bool(shown)
    height = HEIGHT + strip
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=DPI, facecolor=palette.paper)
    FigureCanvasAgg(figure)

    def add(name: str, left: float, top: float, width: float, tall: float) -> Axes:
        place = (left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height)
        return figure.add_axes(place, label=name, facecolor=palette.paper)

    summary(add("summary", *_SUMMARY), history, facts, palette)
    places = _PLACES | _upper(wide_names(figure.axes[0], history))
    for name, panel in PANELS.items():
        panel(add(name, *places[name]), history, facts, palette)
    if shown:
        left = _PLACES["loss"][0]
        _recommend(add("advice", left, HEIGHT, WIDTH - left - 20, strip - 8), shown, palette)
    return figure


def _upper(more: float) -> dict[str, tuple[float, float, float, float]]:
    """The upper two panels where the names of the sources take so many points more, which the loss gives."""
    (left, top, width, tall), (right, *rest) = _PLACES["loss"], _PLACES["sources"]
    return {"loss": (left, top, width - more, tall), "sources": (right - more, rest[0], rest[1], rest[2])}


def _recommend(ax: Axes, advice: Sequence[Advice], palette: Palette) -> None:
    """A line each: what is seen, and the override to try at the right."""
    width, height = size_points(ax)
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    ax.text(0, 4, "Recommendations", color=palette.ink, va="center", **font(NORMAL + 1, True))
    for i, one in enumerate(advice, start=1):
        override = cut(ax, one.override or "", SMALL, width / 3)
        headline = cut(ax, one.headline, SMALL, width - text_width(ax, override, SMALL) - 12)
        y = 4 + LINE * (i + 0.2)
        ax.text(0, y, headline, color=palette.ink, va="center", **font(SMALL))
        ax.text(width, y, override, color=palette.grey, va="center", ha="right", **font(SMALL))
