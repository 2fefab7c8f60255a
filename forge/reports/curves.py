"""Numbers behind the plots: cleaning, smoothing, thinning, label places and number formats. Pure; linear in the history.

Letters: N points of a curve, L labels.
"""

import math
from collections.abc import Sequence

import numpy as np

from forge.spec import History, series

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


def ema_decay(points: int) -> float:
    """Averages over a thirtieth of the curve, 50 points at most: the average lags by as much, and the loss falls fast at first."""
    return 1 - 1 / min(50.0, max(1.0, points / 30))


def ema(values_N: np.ndarray, decay: float) -> np.ndarray:
    """Exponential moving average whose weights sum to 1 from the first value on (Adam's bias correction)."""
    out_N = np.empty(len(values_N))
    average, weight = 0.0, 0.0
    for i, value in enumerate(values_N):
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        out_N[i] = average / weight
    return out_N


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
    """1, 2, 5 in each power of ten, or fewer when those would be crowded."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 4)):
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


def generalisation_gap(history: History) -> float | None:
    """Validation minus smoothed training loss at the last evaluation; None before either of them exists."""
    eval_steps, valid = finite(history, "val/loss")
    steps, train = finite(history, "train/loss")
    if not len(eval_steps) or not len(steps) or steps[0] > eval_steps[-1]:
        return None
    smooth = ema(train, ema_decay(len(train)))
    return float(valid[-1] - smooth[np.searchsorted(steps, eval_steps[-1], side="right") - 1])
