"""The picture of a comparison: verdicts, curves over each other, and paired differences by source. A group has one colour throughout."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from forge.reports import comparison, curves
from forge.reports.comparison import Groups, Verdict
from forge.reports.curves import finite
from forge.reports.palette import LIGHT, Palette
from forge.reports.panels import NORMAL, SMALL, cut, empty, font, frame, label_ends, plot, size_points, wrap
from forge.reports.verdict import Difference

WIDTH, DPI = 12.8, 150  # inches
_PLOT, _LINE = 5.0, 0.19  # inches
_MOST = 16  # rows of the right panel
_SPARSE = 40  # evaluations: more are a line without dots


def draw(groups: Groups, found: Sequence[Verdict], alarms: Sequence[str] | None = None, palette: Palette = LIGHT) -> Figure:
    """Loss curves at the left; at the right, where runs were paired, how far each group's losses lie from the first's.

    Above them `alarms` and verdicts in words; not so where `alarms` is None.
    """
    lines: list[tuple[str, str]] = []
    if alarms is not None:
        lines = [(text, palette.alarm) for text in alarms] + [(each.sentence, palette.ink) for each in found]
        lines += [(text, palette.grey) for text in [comparison.caveat(found)] if text]
    figure = Figure(figsize=(WIDTH, _PLOT), dpi=DPI, facecolor=palette.paper)
    FigureCanvasAgg(figure)
    page = figure.add_axes((0, 0, 1, 1), label="page")
    page.axis("off")
    wrapped = [(line, colour) for text, colour in lines for line in wrap(page, text, NORMAL + 1, False, (WIDTH - 0.6) * 72, 3)]
    height = _PLOT + (0.35 + _LINE * len(wrapped) if wrapped else 0)
    figure.set_size_inches(WIDTH, height)
    for number, (line, colour) in enumerate(wrapped):
        page.text(0.3 / WIDTH, 1 - (0.3 + _LINE * number) / height, line, color=colour, va="center", **font(NORMAL + 1))

    def axes(left: float, width: float, label: str) -> Axes:
        made = figure.add_axes((left, 0.5 / height, width, (_PLOT - 1.1) / height), label=label)
        made.set_facecolor(palette.paper)
        return made

    _curves(axes(0.045, 0.45, "curves"), groups, palette)
    _differences(axes(0.70, 0.225, "differences"), groups, found, palette)
    return figure


def colours(labels: Sequence[str], palette: Palette) -> dict[str, str]:
    return {label: palette.sources[number % len(palette.sources)] for number, label in enumerate(labels)}


def _curves(ax: Axes, groups: Groups, palette: Palette) -> None:
    drawn = [
        (label, *finite(run.history, "train/loss"), *finite(run.history, "val/loss")) for label, group in groups.items() for run in group
    ]
    drawn = [each for each in drawn if len(each[1]) or len(each[3])]
    if not drawn:
        return empty(ax, "Loss", palette)
    colour = colours(list(groups), palette)
    last = max(max([*steps[-1:], *eval_steps[-1:]]) for _, steps, _, eval_steps, _ in drawn)
    seen: list[float] = []
    ends: dict[str, list[tuple[float, float]]] = {}
    for label, steps, train, eval_steps, valid in drawn:
        smooth = curves.smooth(train)
        plot(ax, steps, smooth, colour[label], alpha=0.35, linewidth=1.1, clip_on=True)
        dots = "o" if len(valid) <= _SPARSE else ""
        plot(ax, eval_steps, valid, colour[label], linewidth=1.8, marker=dots, markersize=4, clip_on=True)
        # The axis follows the later two thirds: runs differ by little, and the start would flatten that.
        for x, y in ((steps, smooth), (eval_steps, valid)):
            seen += [*y[x >= last / 3], *y[-1:]]
        x, y = (eval_steps, valid) if len(valid) else (steps, smooth)
        ends.setdefault(label, []).append((float(x[-1]), float(y[-1])))
    low, high = min(seen), max(seen)
    # Where it flattens little, as in tuning, the whole of validation is shown: its start is the base.
    seen += [most for *_, valid in drawn if (most := max([*valid, high])) - low <= 2 * (high - low)]
    ax.set_ylim(*curves.limits(seen))
    frame(ax, "Loss", [("nats per token; strong: validation, faint: training, smoothed", palette.grey)], last, 8, palette=palette)
    means = {
        label: float(np.mean([y for x, y in points if x == max(points)[0]])) for label, points in ends.items()
    }  # of those that came last
    label_ends(ax, [(mean, label, colour[label]) for label, mean in means.items()], room=115)


def _differences(ax: Axes, groups: Groups, found: Sequence[Verdict], palette: Palette) -> None:
    first, title = next(iter(groups)), "Paired difference by source"
    paired = [each for each in found if each.shared]
    if not paired:
        empty(ax, title, palette)
        ax.texts[-1].set_text("nothing was paired")
        return
    names = list(dict.fromkeys(name for each in paired for name in each.by_source))
    rows = ["all", *(names if len(names) > 1 else [])]
    shown, colour = rows[:_MOST], colours(list(groups), palette)
    reach = [0.0]
    for number, each in enumerate(paired):
        for row, name in enumerate(shown):
            difference = each.overall if name == "all" and row == 0 else each.by_source.get(name, Difference(math.nan))
            y = row + (number - (len(paired) - 1) / 2) * min(0.25, 0.7 / len(paired))
            reach += _point(ax, difference, y, colour[each.label], strong=row == 0)
    low, high = min(reach), max(reach)
    unit = paired[0].shared.unit if paired[0].shared else ""
    more = f"; {len(shown)} of {len(rows)} shown" if len(rows) > len(shown) else ""
    frame(ax, title, [(f"{unit} less {cut(ax, first, SMALL, 90)}; left of 0 is better{more}", palette.grey)], 1, 5, palette=palette)
    ax.set_xlim(low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1))
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.axvline(0, color=palette.ink, linewidth=0.9, zorder=1)
    if len(shown) > 1:
        ax.axhline(0.5, color=palette.rule, linewidth=0.8)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color=palette.rule, linewidth=0.6)
    ax.set_xlabel("")
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+.3g}" if v else "0"))
    ax.set_yticks(range(len(shown)), [cut(ax, name, SMALL, 95) for name in shown])
    _values(ax, paired, shown, colour)


def _point(ax: Axes, difference: Difference, y: float, colour: str, strong: bool) -> list[float]:
    """A dot on its interval. Returns what the axis has to reach."""
    if not math.isfinite(difference.value):
        return []
    limits = [limit for limit in (difference.low, difference.high) if math.isfinite(limit)]
    if limits:
        ax.plot(limits, [y, y], color=colour, linewidth=2.6 if strong else 1.6, solid_capstyle="butt")
    fill = colour if limits else "none"  # hollow: nothing is known of its noise
    ax.plot([difference.value], [y], "o", markersize=7 if strong else 5, mec=colour, mfc=fill)
    return [difference.value, *limits]


def _values(ax: Axes, paired: Sequence[Verdict], shown: Sequence[str], colour: dict[str, str]) -> None:
    """The differences in figures, beside their rows, while there is room."""
    height = size_points(ax)[1] / len(shown)
    if height < 11 * len(paired):
        return
    for number, each in enumerate(paired):
        for row, name in enumerate(shown):
            difference = each.overall if row == 0 else each.by_source.get(name)
            if difference and math.isfinite(difference.value):
                offset = (number - (len(paired) - 1) / 2) * 11
                ax.annotate(curves.signed(difference.value, 4), (1, row), xycoords=("axes fraction", "data"), xytext=(8, -offset),
                            textcoords="offset points", va="center", color=colour[each.label], **font(SMALL))  # fmt: skip
