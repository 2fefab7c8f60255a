"""A sweep's children as plain data, and what can be said of them: which is best, which keys vary, which of those matter."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forge.reports.sweep_scale import Scale

Status = Literal["finished", "failed", "stopped", "pruned"]


@dataclass(frozen=True)
class Child:
    """One job of a sweep. `swept`: the values by which it differs, as typed. Losses: validation, nats per token.

    `curve`: (step, loss) of each evaluation. A child that ended early may have a loss, that of its best step so far. `won`: whether it was
    judged the best; None: nobody judged.
    """

    name: str
    swept: Mapping[str, str]
    best_loss: float | None
    best_step: int | None
    status: Status
    curve: Sequence[tuple[int, float]] = ()
    seconds: float | None = None
    won: bool | None = None

    @property
    def loss(self) -> float | None:
        """The best loss where it is a number, and the child did not fail: what a failed one reached is no result."""
        known = self.best_loss is not None and math.isfinite(self.best_loss) and self.status != "failed"
        return self.best_loss if known else None


def measured(children: Sequence[Child]) -> list[tuple[Child, float]]:
    """Those that have a loss, with it; lowest first."""
    found = [(child, child.loss) for child in children if child.loss is not None]
    return sorted(found, key=lambda pair: pair[1])


def best(children: Sequence[Child]) -> Child | None:
    """The one that won, if any; where nobody judged, the lowest loss of those that came to their end, else of all that have one."""
    if any(child.won is not None for child in children):
        return next((child for child in children if child.won), None)
    ranked = [child for child, _ in measured(children)]
    return next((child for child in ranked if child.status == "finished"), ranked[0] if ranked else None)


def varying(children: Sequence[Child]) -> list[str]:
    """The swept keys that have more than one value, in the order in which they were given."""
    keys = dict.fromkeys(key for child in children for key in child.swept)
    return [key for key in keys if len({child.swept.get(key) for child in children}) > 1]


def short(keys: Sequence[str]) -> dict[str, str]:
    """A key's last part, with as many of the parts before it as tell it from the others: optimizer.lr -> lr."""
    out = {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        out[key] = next((tail for tail in tails if sum(other == tail or other.endswith("." + tail) for other in keys) == 1), key)
    return out


def by_influence(children: Sequence[Child], keys: Sequence[str], importances: Mapping[str, float] | None) -> list[str]:
    """The keys, the most influential first: by `importances` where there are any, else by the variance that each explains."""
    shares = importances or {key: explained(children, key) for key in keys}
    return sorted(keys, key=lambda key: -shares.get(key, 0.0))


def explained(children: Sequence[Child], key: str) -> float:
    """How much of the order of the losses the key's values alone explain: adjusted R² of their ranks, at least 0.

    1 - (1 - R²)(n - 1)/(n - k) for n children and k values (R² itself favours the key with the most values); many numbers
    count as five ranges. Ranks: one loss that diverged would be all of the variance.
    """
    known = [child for child, _ in measured(children)]
    values = [child.swept.get(key) for child in known]
    groups = np.array(Scale.of(values, key).groups(values, 5)[1])
    ranks, n, k = np.arange(len(known), dtype=float), len(known), len(set(groups))
    if k < 2 or n <= k:
        return 0.0
    within = sum(((ranks[groups == group] - ranks[groups == group].mean()) ** 2).sum() for group in set(groups))
    return max(0.0, float(1 - within / ((ranks - ranks.mean()) ** 2).sum() * (n - 1) / (n - k)))


def reach(losses: Sequence[float]) -> tuple[float, float]:
    """The lowest loss, and the highest that axes and colours go to: a child that diverged must not flatten the others."""
    low, high = min(losses), max(losses)
    usual = float(np.quantile(losses, 0.75))
    limit = low + 3 * (usual - low)
    if len(losses) > 4 and usual > low and high > limit:
        high = max(loss for loss in losses if loss <= limit)
    return low, high


def places(low: float, high: float) -> int:
    """Decimals that tell losses in this range apart."""
    return 2 if high - low >= 1 else 3 if high - low >= 0.01 or high == low else 4
