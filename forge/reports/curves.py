"""Numbers behind the plots: cleaning, smoothing, thinning, label places and number formats. Pure; linear in the history.

Letters: N points of a curve, L labels.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from forge.spec import History, Metrics, series

MAX_POINTS = 2000  # more than a panel has pixels across
_UNITS = ("", "k", "M", "G", "T")


def finite(history: History, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps_N and values_N of `key`, by step. Non-finite values are left out; of two values at one step the later stands."""
    steps, values = series(history, key)
    kept = {step: value for step, value in zip(steps, values, strict=True) if math.isfinite(value)}
    order = sorted(kept)
    return np.array(order, dtype=float), np.array([kept[step] for step in order], dtype=float)


def count_nonfinite(history: History) -> int:
    return sum(not math.isfinite(value) for _, metrics in history for value in metrics.values())


def smooth(values_N: np.ndarray) -> np.ndarray:
    """Local straight lines (Cleveland 1979, LOWESS, with equal weights): no lag, and right at both ends. Linear in N.

    The line at point i goes through the points at most `h` away, h = min(50, N / 10, i / 5): a loss changes fastest at first.
    """
    n = len(values_N)
    i_N = np.arange(n)
    low_N, high_N = windows(n)
    middle = values_N.mean() if n else 0.0  # sums of small numbers lose fewer digits
    x_N, y_N = i_N - n / 2, values_N - middle

    def window(terms_N: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0.0], np.cumsum(terms_N)])
        return (sums[high_N] - sums[low_N]) / (high_N - low_N)

    mean_x_N, mean_y_N = window(x_N), window(y_N)
    spread_N, together_N = window(x_N * x_N) - mean_x_N**2, window(x_N * y_N) - mean_x_N * mean_y_N
    slope_N = np.divide(together_N, spread_N, out=np.zeros(n), where=high_N - low_N > 1)
    return middle + mean_y_N + slope_N * (x_N - mean_x_N)


def windows(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of n points, the first and behind the last of those that smooth() looks at."""
    i_N = np.arange(n)
    h_N = np.minimum(min(50, n // 10), i_N // 5)
    return i_N - h_N, np.minimum(i_N + h_N + 1, n)


def decimate(x_N: np.ndarray, y_N: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` (>= 4) of the points themselves: the lowest and highest of each bucket, and both ends. Spikes survive."""
    if len(x_N) <= limit:
        return x_N, y_N
    kept = {0, len(x_N) - 1}
    for bucket in np.array_split(np.arange(len(x_N)), limit // 2 - 1):
        kept |= {int(bucket[y_N[bucket].argmin()]), int(bucket[y_N[bucket].argmax()])}
    index = np.array(sorted(kept))
    return x_N[index], y_N[index]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The nearest places (least squares) at least `gap` apart, in the same order, inside [low, high] when they fit there.

    Isotonic regression of place - rank * gap (pool adjacent violators), for labels that must not overlap.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    pools: list[tuple[float, int]] = []  # mean, members
    for rank, i in enumerate(order):
        mean, size = places[i] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            before, members = pools.pop()
            mean, size = (mean * size + before * members) / (size + members), size + members
        pools.append((mean, size))
    free = [mean for mean, size in pools for _ in range(size)]
    last = max(low, high - (len(places) - 1) * gap)
    out = [0.0] * len(places)
    for rank, i in enumerate(order):
        out[i] = min(max(free[rank], low), last) + rank * gap
    return out


def limits(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Axis limits around `values`, never narrower than 1% of their size, so that a flat line's last digits don't look like news."""
    low, high = float(np.min(values)), float(np.max(values))
    least = max(0.01 * max(abs(low), abs(high)), 1e-12)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def compact(value: float, digits: int = 3) -> str:
    """Significant digits with a unit: 950, 1.2k, 12.5k, 3M. The unit is chosen after rounding (999,999 is 1M)."""
    rounded = float(f"{value:.{digits}g}")
    unit = 0 if abs(rounded) < 1000 else min(int(math.log10(abs(rounded)) / 3 + 1e-9), len(_UNITS) - 1)
    return f"{rounded / 1000**unit:.10g}{_UNITS[unit]}" if abs(rounded) < 1e15 else f"{value:.1e}"


def tick(value: float) -> str:
    return compact(value, 4)


def scientific(value: float) -> str:
    """A learning rate: 3e-4, 2.5e-4, 0."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def decimals(value: float, places: int) -> str:
    """Fixed decimals below 1,000; compact from there on."""
    return f"{value:.{places}f}" if abs(value) < 1000 else compact(value)


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 in each power of ten, or fewer when those would be crowded, or more where there would be one at most."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    finer: list[tuple[Sequence[float], int]] = [((1, 1.5, 2, 3, 5, 7), 1), ((1, 2, 5), 1), ((1, 3), 1)]
    for mantissas, every in (*finer, *(((1,), 2**power) for power in range(10))):
        ticks = [m * 10.0**e for e in exponents[::every] for m in mantissas if low <= m * 10.0**e <= high]
        if len(ticks) <= 5:
            break
    return ticks


def best_step(history: History, chosen: int | None) -> int | None:
    """The checkpoint's step where there is one, else that of the lowest validation loss so far."""
    steps, losses = finite(history, "val/loss")
    return chosen if chosen is not None else int(steps[losses.argmin()]) if len(steps) else None


def value_at(history: History, key: str, step: int | None) -> float | None:
    """What `key` was at exactly that step."""
    found = [value for at, value in zip(*finite(history, key), strict=True) if at == step]
    return float(found[0]) if found else None


def gaps(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the evaluations, and validation minus smoothed training loss there; from the first training loss on.

    Each source's validation loss counts by its share of the targets behind the smoothed training loss, whatever its share of the validation
    targets, by which val/loss is made. Trained 4 : 1 on sources with validation losses of 2 and 4 nats, 0.8 · 2 + 0.2 · 4 = 2.4 stands
    against the training loss. val/loss itself does where the history doesn't tell. The training loss is train/cross_entropy where there
    is one: val/loss holds none of the objective's further terms.
    """
    eval_steps, valid = finite(history, "val/loss")
    steps, train = finite(history, "train/cross_entropy")
    if not len(steps):
        steps, train = finite(history, "train/loss")
    if not len(steps):
        return np.empty(0), np.empty(0)
    known = eval_steps >= steps[0]
    at = np.searchsorted(steps, eval_steps[known], side="right") - 1
    emitted: dict[float, dict[str, float]] = {}
    for step, metrics in history:
        emitted.setdefault(step, {}).update(metrics)
    counts = [_targets(emitted[step]) for step in steps]
    low_N, high_N = windows(len(steps))
    mixed = [
        _mixed(emitted[step], counts[low_N[i] - 1] if low_N[i] else {}, counts[high_N[i] - 1])
        for step, i in zip(eval_steps[known], at, strict=True)
    ]
    beside = [plain if each is None else each for plain, each in zip(valid[known], mixed, strict=True)]
    return eval_steps[known], np.array(beside) - smooth(train)[at]


def _targets(metrics: Metrics) -> dict[str, float]:
    """By source, those that were trained on so far."""
    prefix, total = "train/share/", metrics.get("train/tokens", 0.0)
    return {key.removeprefix(prefix): share * total for key, share in metrics.items() if key.startswith(prefix)}


def _mixed(metrics: Metrics, before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """The sources' validation losses, weighed by the targets trained on between two counts; None where one of them is not known."""
    within = {source: count - before.get(source, 0.0) for source, count in after.items()}
    losses = [(metrics.get(f"val/loss/{source}", math.nan), count) for source, count in within.items() if count > 0]
    total = sum(count for _, count in losses)
    mean = sum(loss * count for loss, count in losses) / total if total else math.nan
    return mean if math.isfinite(mean) else None


def generalisation_gap(history: History) -> float | None:
    """gaps() at the last evaluation; None before either of the two losses exists."""
    _, values = gaps(history)
    return float(values[-1]) if len(values) else None


def signed(value: float, places: int) -> str:
    return f"{'+' if value >= 0 else '-'}{decimals(abs(value), places)}"


def duration(seconds: float) -> str:
    """Two units at most: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
