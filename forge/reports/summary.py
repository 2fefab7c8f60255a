"""A run in words and numbers: progress, the best checkpoint, all that are kept, and settings. Rows for a picture and for a page."""

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from forge.reports import curves
from forge.reports.curves import compact, decimals, duration, finite, signed
from forge.reports.losses import best_word
from forge.reports.palette import Palette
from forge.reports.panels import LARGE, LINE, NORMAL, SMALL, font, size_points, table, wrap
from forge.spec import History, RunFacts

Rows = list[tuple[str, str]]
_CHECKPOINTS = 6  # shown in the picture: the last ones, and the best


def summary(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    """Text only. One unit of the axes is a point; y runs downwards."""
    width, height = size_points(ax)
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    y = 10.0
    for text, size, bold, colour, lines in ((facts.title, LARGE, True, palette.ink, 2), (facts.status, NORMAL, False, palette.grey, 2)):
        y = _lines(ax, y, wrap(ax, text, size, bold, width, lines), size, bold, colour)
    for end, colour in ((1.0, palette.rule), (share_done(history, facts), palette.train)):
        ax.plot([0, width * end], [y, y], color=colour, linewidth=3, solid_capstyle="butt", clip_on=False)
    y += LINE * 1.4
    y = table(ax, y, "Progress", progress_rows(history, facts), width, palette)
    y = table(ax, y, "Validation", validation_rows(history, facts), width, palette)
    if facts.saved:
        y = table(ax, y, "Checkpoints", checkpoint_rows(facts, _CHECKPOINTS), width, palette)
        y = _lines(ax, y - LINE * 0.6, wrap(ax, facts.best_why, SMALL, False, width, 3), SMALL, False, palette.grey) + LINE * 0.6
    room = int((height - y) / LINE)  # the heading's line and the last one are part of it
    config = list(facts.config.items())
    if len(config) > room - 1:
        config = [*config[: max(0, room - 2)], (f"… {len(config) - max(0, room - 2)} more", "")]
    if config:
        table(ax, y, "Configuration", config, width, palette)


def share_done(history: History, facts: RunFacts) -> float:
    return min(1.0, last_step(history) / facts.total_steps) if facts.total_steps > 0 else 0.0


def last_step(history: History) -> int:
    return max((step for step, _ in history), default=0)


def progress_rows(history: History, facts: RunFacts) -> Rows:
    def last(key: str, say: Callable[[float], str]) -> str:
        values = finite(history, key)[1]
        return say(float(values[-1])) if len(values) else "–"

    step_s = finite(history, "perf/step_s")[1]
    rows = [
        ("step", f"{compact(last_step(history))} of {compact(facts.total_steps)} ({share_done(history, facts):.0%})"),
        ("time left", last("perf/eta_s", lambda value: duration(value) if value > 0 else "–")),
        ("tokens", last("train/tokens", compact)),
        ("epochs", last("train/epoch", lambda value: f"{value:.2f}")),
        ("seconds a step (median)", f"{np.median(step_s):.3g}" if len(step_s) else "–"),
    ]
    skipped = curves.count_nonfinite(history)
    return rows + ([("NaN or infinite, not drawn", compact(skipped))] if skipped else [])


def validation_rows(history: History, facts: RunFacts) -> Rows:
    """The checkpoint's own numbers; the gap is that of the last evaluation, to the smoothed training loss."""
    best = curves.best_step(history, facts.best_step)
    value, perplexity, bits = (curves.value_at(history, f"val/{name}", best) for name in ("loss", "perplexity", "bits_per_byte"))
    margin = math.nan if value is None or facts.unigram_loss is None else facts.unigram_loss - value
    gap = curves.generalisation_gap(history)
    return [
        (f"{best_word(facts)} loss", "–" if value is None else f"{decimals(value, 3)} at step {best:,}"),
        ("perplexity", "–" if perplexity is None else decimals(perplexity, 2)),
        ("bits per byte", "–" if bits is None else decimals(bits, 3)),
        ("above unigram" if margin < 0 else "below unigram", f"{decimals(abs(margin), 3)} nats" if math.isfinite(margin) else "–"),
        ("generalisation gap", "–" if gap is None else f"{signed(gap, 3)} nats"),
    ]


def checkpoint_rows(facts: RunFacts, limit: int | None = None) -> Rows:
    """Step and validation loss of those that are kept; of more than `limit` the last ones and the best."""
    saved = sorted(facts.saved)
    if limit is not None and len(saved) > limit:
        best = [one for one in saved if one[0] == facts.best_step]
        rest = [one for one in saved if one[0] != facts.best_step]
        saved = sorted([*best, *rest[len(best) - limit :]])
    rows = [(f"step {step:,}" + (", best" if step == facts.best_step else ""), f"{decimals(loss, 4)} nats") for step, loss in saved]
    left = len(facts.saved) - len(saved)
    return rows + ([(f"… {left} more", "")] if left else [])


def _lines(ax: Axes, y: float, lines: list[str], size: float, bold: bool, colour: str) -> float:
    for line in lines:
        ax.text(0, y, line, color=colour, va="center", **font(size, bold))
        y += size * 1.4
    return y
