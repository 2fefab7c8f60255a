"""Panels of how training goes: learning rate, gradient norm, throughput and memory."""

import math

import numpy as np
from matplotlib.axes import Axes

from forge.reports import curves
from forge.reports.curves import compact, decimals, finite, scientific
from forge.reports.palette import Palette
from forge.reports.panels import empty, frame, limit_line, log_axis, plot, shade
from forge.spec import History, RunFacts

NEAR = 0.9  # of the memory there is: above it a longer batch may not fit
_IN_SIGHT = 3  # a limit is drawn where it is no higher than so many times the curve


def learning_rate(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    """The rates that were used over the broad line of the formula's: what sticks out is wrong."""
    steps, rates = finite(history, "train/lr")
    planned = np.array(facts.planned_lr, dtype=float)
    known = np.isfinite(planned)
    if not len(rates) and not known.any():
        return empty(ax, "Learning rate", palette)
    planned_steps, planned = np.arange(1, len(planned) + 1, dtype=float)[known], planned[known]
    plot(ax, planned_steps, planned, palette.plan, linewidth=4, solid_capstyle="butt")
    plot(ax, steps, rates, palette.train, linewidth=1.5)
    key = [("formula", palette.grey)] * bool(len(planned))
    key += [(f"used, now {scientific(rates[-1])}", palette.train)] if len(rates) else []
    ax.set_ylim(0, 1.08 * max([*rates, *planned, 1e-12]))
    frame(ax, "Learning rate", key, max([facts.total_steps, *steps[-1:], *planned_steps[-1:]]), 4, scientific, palette)


def gradient_norm(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    steps, norms = finite(history, "train/grad_norm")
    if not len(norms):
        return empty(ax, "Gradient norm", palette)
    clip = positive(facts.settings.get("trainer.clip_norm"))
    highest, median = float(norms.max()), float(np.median(norms))
    log = norms.min() > 0 and highest > 5 * median
    plot(ax, steps, norms, palette.train, alpha=0.35, linewidth=0.8)
    plot(ax, steps, np.exp(curves.smooth(np.log(norms))) if log else curves.smooth(norms), palette.train, linewidth=1.5, clip_on=True)
    note = f"median {decimals(median, 2)}" + ("; log axis" if log else "")
    note += f"; {(norms > clip).mean():.0%} clipped" if clip else ""
    frame(ax, "Gradient norm", [(note, palette.grey)], steps[-1], 4, palette=palette)
    near = clip is not None and highest / 1000 < clip < _IN_SIGHT * highest
    if log:
        low = min(float(norms.min()), clip or math.inf) if near else float(norms.min())
        log_axis(ax, low / 1.3, 1.5 * max(highest, (clip or 0.0) * near))
    else:
        ax.set_ylim(0, max(1.08 * highest, 1.25 * (clip or 0.0) * near, 1e-12))
    if clip and near:
        limit_line(ax, clip, palette.grey)
        shade(ax, clip, math.inf, f"clipped to {compact(clip)}", palette.grey)


def throughput(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    steps, rates = finite(history, "perf/tokens_per_s")
    if not len(rates):
        return empty(ax, "Throughput", palette)
    median = float(np.median(rates))
    plot(ax, steps, rates, palette.train, alpha=0.35, linewidth=0.8)
    plot(ax, steps, curves.smooth(rates), palette.train, linewidth=1.5, clip_on=True)
    limit_line(ax, median, palette.ink)
    ax.set_ylim(0, 1.08 * max(rates.max(), 1e-12))
    frame(ax, "Throughput", [("tokens/s;", palette.grey), (f"median {compact(median)}", palette.ink)], steps[-1], 4, palette=palette)


def memory(ax: Axes, history: History, facts: RunFacts, palette: Palette) -> None:
    key, top, last = [], 1e-12, 0.0
    for name, colour in (("peak", palette.ink), ("active", palette.train)):
        steps, gib = finite(history, f"memory/{name}_gib")
        if len(gib):
            plot(ax, steps, gib, colour, linewidth=1.3)
            key.append((f"{name} {compact(gib[-1])}", colour))
            top, last = max(top, gib.max()), max(last, steps[-1])
    if not key:
        return empty(ax, "Memory", palette)
    room = positive(facts.memory_gib)
    near = room is not None and room < _IN_SIGHT * top
    ax.set_ylim(0, max(1.08 * top, 1.15 * (room or 0.0) * near))
    frame(ax, "Memory", [*key, (f"of {compact(room)} GiB" if room else "GiB", palette.grey)], last, 4, palette=palette)
    if room and near:
        limit_line(ax, room, palette.alarm)
        shade(ax, NEAR * room, math.inf, "nearly full", palette.alarm)


def positive(value: object) -> float | None:
    """A limit, if it is one: settings may hold anything."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else None
