"""Panels of what is learnt: loss, validation loss per source, perplexity, and the generalisation gap over time."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from forge.reports import curves
from forge.reports.curves import decimals, finite, signed
from forge.reports.palette import Palette
from forge.reports.panels import (
    LABEL,
    NORMAL,
    empty,
    end_width,
    font,
    frame,
    label_ends,
    limit_line,
    log_axis,
    plot,
    shade,
    size_points,
    text_width,
)
from forge.spec import History, RunFacts

STYLES = ("-", "--", ":")  # told apart by stroke where the colours repeat
MAX_SOURCES = 20
SPARSE = 40  # evaluations: more are a line without dots
NAMES, _WIDEST = 78.0, 140.0  # points beside the panel of sources for the labels at line ends, as a rule and at most
DRIFTING, MEMORISING = 0.2, 0.5  # nats of generalisation gap: unseen text is e^0.2 = 1.2, and e^0.5 = 1.6, times as perplexing
_MOST = 1e9  # perplexity: above it nothing is to be told apart


def loss(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    steps, train = finite(history, "train/loss")
    eval_steps, valid = finite(history, "val/loss")
    if not len(train) and not len(valid):
        return empty(ax, "Loss", palette)
    smooth = curves.smooth(train)
    start = _start([(steps, smooth), (eval_steps, valid)])
    settled = [train[steps > start], smooth[steps > start], valid[eval_steps > start]]
    usual, (low, high) = np.concatenate(settled[1:]), _limits(*settled)
    baseline = facts.unigram_loss if facts.unigram_loss is not None and math.isfinite(facts.unigram_loss) else None
    far = baseline is not None and len(usual) > 2 and baseline - high > 2 * (high - low)  # would leave the curves a third of the panel
    if baseline is not None and not far:
        low, high = curves.limits([low, high, baseline])
    last = max([*steps[-1:], *eval_steps[-1:]])
    ends: list[tuple[float, str, str]] = []

    plot(ax, steps, train, palette.train, alpha=0.3, linewidth=0.8, clip_on=True)
    plot(ax, steps, smooth, palette.train, linewidth=1.8, clip_on=start > 0)
    plot(ax, eval_steps, valid, palette.valid, linewidth=1.6, marker="o" if len(valid) <= SPARSE else "", markersize=4.5, clip_on=start > 0)
    if len(smooth):
        ends.append((float(smooth[-1]), "train", palette.train))
    if len(valid):
        ends.append((float(valid[-1]), "validation", palette.valid))
    if baseline is not None:
        limit_line(ax, baseline, palette.grey)
        ends.append((baseline, "unigram" + (" ↑" if far else ""), palette.grey))
    best = curves.best_step(history, facts.best_step)
    value = curves.value_at(history, "val/loss", best)
    if best is not None and value is not None and value <= high:
        low -= 0.14 * (high - low)  # an empty strip for the label, below all curves
        _mark_best(ax, best, value, (low, high), last, f"{best_word(facts)} {decimals(value, 2)} at step {best:,}", palette)
    ax.set_ylim(low, high)
    reach = _outside(train, low, high)
    note = "faint: raw, strong: smoothed" if len(train) >= 10 else "too few points to smooth"
    # The strip for the label may reach below zero, where a loss can't be.
    say = curves.tick if usual.min() < 0 else lambda v: curves.tick(v) if v >= 0 else ""
    frame(ax, "Loss", [(f"nats per token; {note}{reach}", palette.grey)], last, 6, say, palette)
    label_ends(ax, ends, room=80)


def sources(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    title, found = "Validation loss per source", _by_source(history)
    if not found:
        return empty(ax, title, palette)
    shown = found[: min(MAX_SOURCES, int(size_points(ax)[1] / LABEL) + 1)]
    start, highest = _start([(x, y) for _, x, y in shown]), max(float(y.max()) for _, _, y in shown)
    ends = []
    for i, (name, x, y) in enumerate(shown):
        colour, style = palette.sources[i % len(palette.sources)], STYLES[i // len(palette.sources) % len(STYLES)]
        plot(ax, x, y, colour, linewidth=1.5, linestyle=style, marker="o" if len(y) <= SPARSE else "", markersize=3.5, clip_on=start > 0)
        ends.append((float(y[-1]), name, colour))
    ax.set_ylim(*curves.limits(np.concatenate([y[x > start] for _, x, y in shown])))
    best = curves.best_step(history, facts.best_step)
    if best is not None:
        ax.axvline(best, color=palette.ink, linewidth=0.7, dashes=(2, 2), zorder=1.5)
    more = f"; {len(shown)} of {len(found)} shown" if len(found) > len(shown) else f"; starts at {decimals(highest, 1)}" * (start > 0)
    frame(ax, title, [("nats per token" + more, palette.grey)], max(x[-1] for _, x, _ in shown), 3, palette=palette)
    label_ends(ax, ends, room=NAMES + wide_names(ax, history))


def wide_names(ax: Axes, history: History) -> float:
    """Points that the names of the sources need right of their panel beyond NAMES, so that those of some 20 characters are whole."""
    widths = [end_width(ax, float(y[-1]), name) for name, _, y in _by_source(history)]
    return max(0.0, min(max(widths, default=0.0), _WIDEST) - NAMES)


def _by_source(history: History) -> list[tuple[str, np.ndarray, np.ndarray]]:
    prefix = "val/loss/"
    names = sorted({key.removeprefix(prefix) for _, metrics in history for key in metrics if key.startswith(prefix)})
    return [(name, x, y) for name in names for x, y in [finite(history, prefix + name)] if len(y)]


def gap(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    """Always as high as the threshold of memorising, so that its distance is seen."""
    title = "Generalisation gap"
    steps, values = curves.gaps(history)
    if not len(steps):
        return empty(ax, title, palette)
    ax.set_ylim(min(-0.1, 1.1 * values.min()), max(1.4 * MEMORISING, 1.08 * values.max()))
    shade(ax, DRIFTING, MEMORISING, "drifting apart", palette.alarm, 0.07)
    shade(ax, MEMORISING, math.inf, "memorising", palette.alarm, 0.16)
    ax.axhline(0, color=palette.grey, linewidth=0.8, zorder=1)
    plot(ax, steps, values, palette.valid, linewidth=1.6, marker="o" if len(values) <= SPARSE else "", markersize=3.5)
    _ring_best(ax, history, facts, steps, values, palette)
    said = f"validation minus train, now {signed(float(values[-1]), 2)}"
    frame(ax, title, [(said, palette.grey)], steps[-1], 4, palette=palette)


def perplexity(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    title = "Perplexity"
    steps, values = finite(history, "val/perplexity")
    if not len(steps):
        return empty(ax, title, palette)
    now, values = float(values[-1]), np.clip(values, None, _MOST)
    low, high = float(values.min()), float(values.max())
    log = low > 0 and high > 3 * low
    plot(ax, steps, values, palette.valid, linewidth=1.6, marker="o" if len(values) <= SPARSE else "", markersize=3.5)
    _ring_best(ax, history, facts, steps, values, palette)
    note = f"validation, now {decimals(now, 1)}" + ("; log axis" if log else "")
    frame(ax, title, [(note, palette.grey)], steps[-1], 4, palette=palette)
    if log:
        log_axis(ax, low / (high / low) ** 0.06, high * (high / low) ** 0.06)
    else:
        ax.set_ylim(*curves.limits(values))


def best_word(facts: RunFacts) -> str:
    """Without a checkpoint the lowest loss is no more than that."""
    return "lowest" if facts.best_step is None else "best"


def gap_word(value: float) -> str:
    """What a generalisation gap (nats) means."""
    return "memorising" if value >= MEMORISING else "drifting apart" if value >= DRIFTING else "small"


def _mark_best(ax: Axes, step: int, value: float, limits: tuple[float, float], last: float, label: str, palette: Palette) -> None:
    width, height = size_points(ax)
    low, high = limits
    foot = low + (high - low) * (NORMAL + 10) / height
    ax.plot([step, step], [foot, value], color=palette.ink, linewidth=0.7, zorder=4, clip_on=False)
    _ring(ax, step, value, palette)
    # Under its step, but not past the sides.
    share = step / max(1.0, last)
    half = text_width(ax, label, NORMAL, True) / 2 / width
    ax.text(min(max(share, half + 0.01), 1 - half), 5 / height, label, transform=ax.transAxes, ha="center", va="bottom", color=palette.ink,
            bbox={"facecolor": palette.paper, "edgecolor": "none", "pad": 1.5}, **font(NORMAL, True))  # fmt: skip


def _ring_best(ax: Axes, history: History, facts: RunFacts, steps: np.ndarray, values: np.ndarray, palette: Palette) -> None:
    """The mark of the best checkpoint, as in the loss panel."""
    best = curves.best_step(history, facts.best_step)
    for value in values[steps == best]:
        _ring(ax, float(best or 0), float(value), palette)


def _ring(ax: Axes, step: float, value: float, palette: Palette) -> None:
    ax.plot([step], [value], "o", markersize=8, mfc=palette.paper, mec=palette.ink, mew=1.6, zorder=5, clip_on=False)


def _limits(train: np.ndarray, smooth: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """The axis follows the smoothed curve: one spike of the raw loss must not flatten all that matters."""
    usual = np.concatenate([smooth, valid, np.percentile(train, [1, 99]) if len(train) else []])
    low, high = curves.limits(usual)
    within = train[(train > low - (high - low) / 2) & (train < high + (high - low) / 2)]
    return curves.limits(np.concatenate([usual, within]))


def _start(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Up to which step the axis leaves the lines out: where the first twentieth of a run falls so far that the rest would look flat."""
    steps, values = (np.concatenate(parts) for parts in zip(*lines, strict=True))
    start = steps.max() / 20
    settled = values[steps > start]
    many = max(len(x) for x, _ in lines) >= SPARSE and len(settled)
    return float(start) if many and np.ptp(values) > 3 * np.ptp(settled) and values.max() > settled.max() else -1.0


def _outside(train: np.ndarray, low: float, high: float) -> str:
    """How far the raw loss goes where the axis doesn't."""
    outside = train[(train < low) | (train > high)]
    return f"; raw reaches {decimals(outside[np.abs(outside - low).argmax()], 1)}" if len(outside) else ""
