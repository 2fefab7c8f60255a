"""The dashboard image of one training run. Under a second for 10,000 steps: no line has more than 2,000 points.

No pyplot and no rcParams: those are global, and this is called from a background thread.
"""

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from forge.reports import curves
from forge.reports.curves import compact, decimals, finite, scientific
from forge.reports.panels import (
    GREY,
    INK,
    LARGE,
    LINE,
    NORMAL,
    RULE,
    empty,
    font,
    frame,
    label_ends,
    plot,
    size_points,
    table,
    text_width,
    wrap,
)
from forge.spec import History, RunFacts

SIZE, DPI = (12.8, 7.2), 150  # inches
TRAIN, VALID = "#2f6db3", "#d1600f"
SOURCES = ("#12877f", "#7a4fb0", "#b33a6b", "#6b7f1e", "#8a5a33", "#3f4f9e", "#c08a00", "#4c8fa8")
STYLES = ("-", "--", ":")  # told apart by stroke where the colours repeat
MAX_SOURCES = 20  # as many labels as the panel is high

# left, bottom, width, height as shares of the figure; the room right of the upper two is for labels at line ends
PANELS = {
    "summary": (0.018, 0.03, 0.19, 0.94),
    "loss": (0.258, 0.42, 0.367, 0.485),
    "sources": (0.757, 0.42, 0.14, 0.485),
    "lr": (0.258, 0.075, 0.145, 0.215),
    "grad_norm": (0.451, 0.075, 0.145, 0.215),
    "throughput": (0.644, 0.075, 0.145, 0.215),
    "memory": (0.837, 0.075, 0.145, 0.215),
}


def draw(history: History, facts: RunFacts) -> Figure:
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    panels: dict[str, Callable[[Axes, History, RunFacts], None]] = {
        "summary": summary,
        "loss": loss,
        "sources": sources,
        "lr": learning_rate,
        "grad_norm": gradient_norm,
        "throughput": throughput,
        "memory": memory,
    }
    for name, panel in panels.items():
        panel(figure.add_axes(PANELS[name], label=name), history, facts)
    return figure


# ---- panels -----------------------------------------------------------------------------------------------------------


def loss(ax: Axes, history: History, facts: RunFacts) -> None:
    steps, train = finite(history, "train/loss")
    eval_steps, valid = finite(history, "val/loss")
    if not len(train) and not len(valid):
        return empty(ax, "Loss")
    decay = curves.ema_decay(len(train))
    smooth = curves.ema(train, decay)
    # The axis follows the smoothed curve: one spike of the raw loss must not flatten all that matters.
    usual = np.concatenate([smooth, valid, np.percentile(train, [1, 99]) if len(train) else []])
    low, high = curves.limits(usual)
    within = train[(train > low - (high - low) / 2) & (train < high + (high - low) / 2)]
    low, high = curves.limits(np.concatenate([usual, within]))
    baseline = facts.unigram_loss if facts.unigram_loss is not None and math.isfinite(facts.unigram_loss) else None
    far = baseline is not None and len(usual) > 4 and baseline - high > 2 * (high - low)  # would leave the curves a third of the panel
    if baseline is not None and not far:
        low, high = curves.limits([low, high, baseline])
    last = max([*steps[-1:], *eval_steps[-1:]])
    ends: list[tuple[float, str, str]] = []

    plot(ax, steps, train, TRAIN, alpha=0.3, linewidth=0.8, clip_on=True)
    plot(ax, steps, smooth, TRAIN, linewidth=1.8)
    plot(ax, eval_steps, valid, VALID, linewidth=1.6, marker="o", markersize=4.5 if len(valid) <= 40 else 2.0)
    if len(smooth):
        ends.append((float(smooth[-1]), "train", TRAIN))
    if len(valid):
        ends.append((float(valid[-1]), "validation", VALID))
    if baseline is not None:
        ax.axhline(baseline, color=GREY, linewidth=1.1, dashes=(5, 3), zorder=1)
        ends.append((baseline, "unigram" + (" ↑" if far else ""), GREY))
    best = curves.best_step(history, facts.best_step)
    value = curves.value_at(history, "val/loss", best)
    if best is not None and value is not None:
        low -= 0.14 * (high - low)  # an empty strip for the label, below all curves
        mark_best(ax, best, value, low, high, last, f"{best_word(facts)} {decimals(value, 2)} at step {best:,}")
    ax.set_ylim(low, high)
    outside = train[(train < low) | (train > high)]
    reach = f"; raw reaches {decimals(outside[np.abs(outside - low).argmax()], 1)}" if len(outside) else ""
    note = "faint: raw, strong: smoothed" if decay else "too few points to smooth"
    # The strip for the label may reach below zero, where a loss can't be.
    say = curves.tick if usual.min() < 0 else lambda v: curves.tick(v) if v >= 0 else ""
    frame(ax, "Loss", [(f"nats per token; {note}{reach}", GREY)], last, 8, say)
    label_ends(ax, ends, room=80)


def mark_best(ax: Axes, step: int, value: float, low: float, high: float, last: float, label: str) -> None:
    width, height = size_points(ax)
    foot = low + (high - low) * (NORMAL + 10) / height
    ax.plot([step, step], [foot, value], color=INK, linewidth=0.7, zorder=4, clip_on=False)
    ax.plot([step], [value], "o", markersize=8, mfc="white", mec=INK, mew=1.6, zorder=5, clip_on=False)
    # Under its step, but not past the sides.
    share = step / max(1.0, last)
    half = text_width(ax, label, NORMAL, True) / 2 / width
    ax.text(min(max(share, half + 0.01), 1 - half), 5 / height, label, transform=ax.transAxes, ha="center", va="bottom", color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, **font(NORMAL, True))  # fmt: skip


def sources(ax: Axes, history: History, facts: RunFacts) -> None:
    title, prefix = "Validation loss per source", "val/loss/"
    names = sorted({key.removeprefix(prefix) for _, metrics in history for key in metrics if key.startswith(prefix)})
    found = [(name, x, y) for name in names for x, y in [finite(history, prefix + name)] if len(y)]
    if not found:
        return empty(ax, title)
    shown = found[:MAX_SOURCES]
    ends = []
    for i, (name, x, y) in enumerate(shown):
        colour, style = SOURCES[i % len(SOURCES)], STYLES[i // len(SOURCES) % len(STYLES)]
        plot(ax, x, y, colour, linewidth=1.5, linestyle=style, marker="o", markersize=3.5 if len(y) <= 40 else 0)
        ends.append((float(y[-1]), name, colour))
    ax.set_ylim(*curves.limits(np.concatenate([y for _, _, y in shown])))
    more = f"; {len(shown)} of {len(found)} shown" if len(found) > len(shown) else ""
    frame(ax, title, [("nats per token" + more, GREY)], max(x[-1] for _, x, _ in shown), 4)
    label_ends(ax, ends, room=78)


def learning_rate(ax: Axes, history: History, facts: RunFacts) -> None:
    steps, rates = finite(history, "train/lr")
    planned = np.array(facts.planned_lr, dtype=float)
    known = np.isfinite(planned)
    if not len(rates) and not known.any():
        return empty(ax, "Learning rate")
    planned_steps, planned = np.arange(1, len(planned) + 1, dtype=float)[known], planned[known]
    plot(ax, planned_steps, planned, "#b9bfc7", linewidth=4, solid_capstyle="butt")
    plot(ax, steps, rates, TRAIN, linewidth=1.5)
    key = [("planned", GREY)] * bool(len(planned)) + ([(f"logged, now {scientific(rates[-1])}", TRAIN)] if len(rates) else [])
    ax.set_ylim(0, 1.08 * max([*rates, *planned, 1e-12]))
    frame(ax, "Learning rate", key, max([facts.total_steps, *steps[-1:], *planned_steps[-1:]]), 4, scientific)


def gradient_norm(ax: Axes, history: History, facts: RunFacts) -> None:
    steps, norms = finite(history, "train/grad_norm")
    if not len(norms):
        return empty(ax, "Gradient norm")
    plot(ax, steps, norms, TRAIN, linewidth=1.0 if len(norms) < 1000 else 0.6)
    log = norms.min() > 0 and norms.max() > 8 * np.median(norms)
    note = f"median {decimals(float(np.median(norms)), 2)}" + ("; log axis" if log else "")
    frame(ax, "Gradient norm", [(note, GREY)], steps[-1], 4)
    if log:
        ax.set_yscale("log")
        ax.set_ylim(norms.min() / 1.3, norms.max() * 1.3)
        ax.yaxis.set_major_locator(FixedLocator(curves.log_ticks(norms.min() / 1.3, norms.max() * 1.3)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: curves.tick(v)))
    else:
        ax.set_ylim(0, 1.08 * max(norms.max(), 1e-12))


def throughput(ax: Axes, history: History, facts: RunFacts) -> None:
    steps, rates = finite(history, "perf/tokens_per_s")
    if not len(rates):
        return empty(ax, "Throughput")
    median = float(np.median(rates))
    plot(ax, steps, rates, TRAIN, linewidth=1.0 if len(rates) < 1000 else 0.6)
    ax.axhline(median, color=INK, linewidth=1.0, dashes=(5, 3))
    ax.set_ylim(0, 1.08 * max(rates.max(), 1e-12))
    frame(ax, "Throughput", [("tokens/s;", GREY), (f"median {compact(median)}", INK)], steps[-1], 4)


def memory(ax: Axes, history: History, facts: RunFacts) -> None:
    key, top, last = [], 1e-12, 0.0
    for name, colour, style in (("peak", INK, "-"), ("active", TRAIN, "-")):
        steps, gib = finite(history, f"memory/{name}_gib")
        if len(gib):
            plot(ax, steps, gib, colour, linewidth=1.3, linestyle=style)
            key.append((f"{name} {compact(gib[-1])}", colour))
            top, last = max(top, gib.max()), max(last, steps[-1])
    if not key:
        return empty(ax, "Memory")
    ax.set_ylim(0, 1.08 * top)
    frame(ax, "Memory", [*key, ("GiB", GREY)], last, 4)


def summary(ax: Axes, history: History, facts: RunFacts) -> None:
    """Text only. One unit of the axes is a point; y runs downwards."""
    width, height = size_points(ax)
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    y = 12.0
    for text, size, bold, colour, lines in ((facts.title, LARGE, True, INK, 2), (facts.status, NORMAL, False, GREY, 2)):
        for line in wrap(ax, text, size, bold, width, lines):
            ax.text(0, y, line, color=colour, va="center", **font(size, bold))
            y += size * 1.4
    done = max((step for step, _ in history), default=0)
    share = min(1.0, done / facts.total_steps) if facts.total_steps > 0 else 0.0
    for end, colour in ((1.0, RULE), (share, TRAIN)):
        ax.plot([0, width * end], [y, y], color=colour, linewidth=3, solid_capstyle="butt", clip_on=False)
    y += LINE * 1.3
    for heading, rows in (("Progress", progress_rows(history, facts, done, share)), ("Validation", validation_rows(history, facts))):
        y = table(ax, y, heading, rows, width)
    room = int((height - y) / LINE)  # the heading's line and the last one are part of it
    config = list(facts.config.items())
    if len(config) > room - 1:
        config = [*config[: room - 2], (f"… {len(config) - room + 2} more", "")]
    if config:
        table(ax, y, "Configuration", config, width)


def progress_rows(history: History, facts: RunFacts, done: int, share: float) -> list[tuple[str, str]]:
    def last(key: str, say: Callable[[float], str]) -> str:
        values = finite(history, key)[1]
        return say(float(values[-1])) if len(values) else "–"

    step_s = finite(history, "perf/step_s")[1]
    rows = [
        ("step", f"{compact(done)} of {compact(facts.total_steps)} ({share:.0%})"),
        ("tokens", last("train/tokens", compact)),
        ("epochs", last("train/epoch", lambda value: f"{value:.2f}")),
        ("seconds a step (median)", f"{np.median(step_s):.3g}" if len(step_s) else "–"),
    ]
    skipped = curves.count_nonfinite(history)
    return rows + ([("NaN or infinite, not drawn", compact(skipped))] if skipped else [])


def validation_rows(history: History, facts: RunFacts) -> list[tuple[str, str]]:
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
        ("generalisation gap", "–" if gap is None else f"{'+' if gap >= 0 else ''}{decimals(gap, 3)} nats"),
    ]


def best_word(facts: RunFacts) -> str:
    """Without a checkpoint the lowest loss is no more than that."""
    return "lowest" if facts.best_step is None else "best"
