"""The loss of a model that knows only how frequent each token is: what a trained model must beat."""

from collections.abc import Sequence

import numpy as np


def add(counts: np.ndarray, documents: Sequence[np.ndarray]) -> np.ndarray:
    """`counts` (by token id) with the targets of `documents` added; every token but a document's first is a target."""
    targets = np.concatenate([d[1:] for d in documents]) if documents else np.zeros(0, dtype=np.int64)
    fresh = np.bincount(targets, minlength=len(counts))
    fresh[: len(counts)] += counts
    return fresh


def loss(counts: np.ndarray, documents: Sequence[np.ndarray]) -> float:
    """Nats a target of `documents` under the frequencies `counts`, one added to each (Laplace), so that none is infinite.

    counts [2, 1], target 0: p = (2+1) / (3+2), loss = -ln(3/5) = 0.5108.
    """
    targets = np.concatenate([d[1:] for d in documents])
    size = max(len(counts), int(targets.max()) + 1)
    smoothed = np.ones(size)
    smoothed[: len(counts)] += counts
    return float(-np.log(smoothed[targets] / smoothed.sum()).mean())
