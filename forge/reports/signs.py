"""What can be read off a run's curves, with how far chance alone would take it: noise, falls, rises, spikes. Pure; linear in the history.

Letters: N reports of training, M evaluations.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forge.reports.curves import finite
from forge.spec import History, RunFacts

_BLOCKS = 20  # of a run, each a mean that noise hardly moves
_LEAST = 3e-4  # nats: a smoother curve than that is luck
_SPIKE_AFTER = 20  # reports that a spike is held against


def jitter(values_N: np.ndarray) -> float:
    """The standard deviation of the noise on a smooth curve: that of the second differences, less by √6.

    Of differences y[i-1] - 2 y[i] + y[i+1] a straight line leaves none, and independent noise of σ leaves 6σ². A bend adds to it.
    """
    return float(np.sqrt(np.mean(np.diff(values_N, 2) ** 2) / 6)) if len(values_N) >= 3 else 0.0


def robust_jitter(values_N: np.ndarray) -> float:
    """jitter() by the median of the differences' sizes, which single spikes don't move."""
    return float(1.4826 * np.median(np.abs(np.diff(values_N, 2))) / 6**0.5) if len(values_N) >= 3 else 0.0


@dataclass(frozen=True)
class Rise:
    """The mean loss rose by `nats` from the part of the run that begins at one step to that which ends at another; `healed`: later it fell
    below where it had been."""

    nats: float
    start: int
    end: int
    healed: bool


class Signs:
    """A run's curves. Steps before the first are no training: step 0 counts as an evaluation only."""

    def __init__(self, history: History, facts: RunFacts):
        self.history, self.facts = history, facts
        self.steps_N, self.train_N = finite(history, "train/loss")
        self.eval_steps_M, self.valid_M = finite(history, "val/loss")
        self.last = int(max([0, *self.steps_N[-1:], *self.eval_steps_M[-1:]]))
        self.complete = self.last >= facts.total_steps > 0

    @cached_property
    def noise(self) -> float:
        """σ of train/loss from report to report (nats), in the run's last two thirds."""
        return jitter(self.train_N[len(self.train_N) // 3 :])

    @cached_property
    def valid_noise(self) -> float:
        """σ of val/loss from evaluation to evaluation (nats), in the last two thirds; its tokens are the same, so it is the weights'."""
        return max(jitter(self.valid_M[len(self.valid_M) // 3 :]), _LEAST)

    @cached_property
    def rates_N(self) -> np.ndarray:
        """The learning rate at each report: as logged, else as planned; empty where neither is known."""
        steps, rates = finite(self.history, "train/lr")
        if len(steps) == len(self.steps_N) and (steps == self.steps_N).all():
            return rates
        planned = np.asarray(self.facts.planned_lr, dtype=float)
        inside = len(planned) and len(self.steps_N) and self.steps_N[0] >= 1 and self.steps_N[-1] <= len(planned)
        return planned[self.steps_N.astype(int) - 1] if inside else np.array([])

    @cached_property
    def warmup(self) -> int:
        """The steps until the learning rate is at its peak; 0 where that isn't known."""
        rates = self.rates_N
        return int(self.steps_N[int(np.argmax(rates >= 0.99 * rates.max()))]) if len(rates) and rates.max() > 0 else 0

    @cached_property
    def blocks(self) -> list[tuple[int, int, float]]:
        """The run's training in `_BLOCKS` parts or fewer, of five reports or more: first step, last step, mean loss."""
        parts = np.array_split(np.arange(len(self.train_N)), max(1, min(_BLOCKS, len(self.train_N) // 5)))
        return [(int(self.steps_N[p[0]]), int(self.steps_N[p[-1]]), float(self.train_N[p].mean())) for p in parts if len(p)]

    @cached_property
    def rise(self) -> Rise | None:
        """The largest rise of a block above the lowest before it, where it is above 0.1 nats and five standard errors of the difference."""
        means = [mean for _, _, mean in self.blocks]
        floor = max(0.1, 5 * self.noise * (2 * len(means) / max(1, len(self.train_N))) ** 0.5)
        lowest, found = 0, None
        for i, mean in enumerate(means):
            if mean - means[lowest] > max(floor, found.nats if found else 0.0):
                healed = min(means[i:]) < means[lowest] - floor / 2
                found = Rise(mean - means[lowest], self.blocks[lowest][0], self.blocks[i][1], healed)
            if mean < means[lowest]:
                lowest = i
        return found

    @cached_property
    def spikes(self) -> list[int]:
        """The steps at which train/loss is 8 σ and 0.5 nats above the median of the 20 reports before and, where that is logged, the
        gradient's norm 3 times its own. An odd row rarely moves both so far."""
        if len(self.train_N) <= _SPIKE_AFTER:
            return []
        norms = dict(zip(*finite(self.history, "train/grad_norm"), strict=True))
        usual = np.median(np.lib.stride_tricks.sliding_window_view(self.train_N[:-1], _SPIKE_AFTER), axis=1)
        limit = max(8 * robust_jitter(self.train_N[len(self.train_N) // 3 :]), 0.5)
        found = []
        for i in np.flatnonzero(self.train_N[_SPIKE_AFTER:] - usual > limit) + _SPIKE_AFTER:
            before = [norms[step] for step in self.steps_N[i - _SPIKE_AFTER : i] if step in norms]
            if not before or norms.get(self.steps_N[i], 0.0) > 3 * np.median(before):
                found.append(int(self.steps_N[i]))
        return found

    def norms(self) -> np.ndarray:
        """train/grad_norm after the warm-up and a tenth of the run."""
        steps, norms = finite(self.history, "train/grad_norm")
        return norms[steps > self.warmup + 0.1 * self.last]

    def peak(self, key: str) -> float | None:
        """The largest value that was logged under `key`."""
        values = finite(self.history, key)[1]
        return float(values.max()) if len(values) else None
