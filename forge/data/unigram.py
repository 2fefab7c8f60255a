"""The loss of a model that knows only how frequent each token is: what a trained model must beat."""

from collections.abc import Iterable

import numpy as np

from forge.data.tokens import Tokenised
from forge.spec import Batch

_CHUNK = 4096


def count(tokenised: Tokenised, numbers: np.ndarray) -> np.ndarray:
    """How often each id is a target in the documents `numbers`, before any is cut.

    Counts of the whole source are known: where most of it is asked for, only the rest is read.
    """
    everything = np.arange(len(tokenised.sequences.lengths))
    rest = np.setdiff1d(everything, numbers)
    if len(rest) < len(numbers):
        return tokenised.target_counts - _counted(tokenised, rest)
    return _counted(tokenised, numbers)


def _counted(tokenised: Tokenised, numbers: np.ndarray) -> np.ndarray:
    counts = np.zeros(len(tokenised.target_counts), dtype=np.int64)
    rows, lengths = tokenised.sequences, tokenised.sequences.lengths
    for start in range(0, len(numbers), _CHUNK):
        chunk = [int(n) for n in numbers[start : start + _CHUNK] if lengths[n]]
        if chunk:
            targets = [rows.row(n)[rows.mask(n, 0, int(lengths[n]))] for n in chunk]
            counts += np.bincount(np.concatenate(targets), minlength=len(counts))
    return counts


def loss(counts: np.ndarray, batches: Iterable[Batch]) -> float:
    """Nats a target of `batches` under the frequencies `counts`, one added to each (Laplace), so that none is infinite.

    counts [2, 1], target 0: p = (2+1) / (3+2), loss = -ln(3/5) = 0.5108.
    """
    targets = np.concatenate([batch.tokens_BT[batch.mask_BT] for batch in batches])
    size = max(len(counts), int(targets.max()) + 1)
    smoothed = np.ones(size)
    smoothed[: len(counts)] += counts
    return float(-np.log(smoothed[targets] / smoothed.sum()).mean())
