"""Mixes sources by shares of tokens. A batch is a function of (seed, cursor): resuming is a seek.

Row shares follow from token shares and each source's mean targets a row. The rows are dealt in blocks of K, shuffled by
(seed, block). Of the n rows in the blocks before one, the first i sources hold round(n_{i+1} · P_i / P_{i+1}), where n_{i+1} is what
the first i+1 hold and P the cumulative row shares: never fewer than a block before, and off by a few rows at most for any
weights, however long the run. A source's rows come in a new order in each of its epochs.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from forge.data.pack import PackedRows, join
from forge.spec import Batch, Batches

_BLOCK = 1024


class Mixture(Batches):
    def __init__(self, sources: Mapping[str, PackedRows], weights: Mapping[str, float], batch_rows: int, seed: int):
        self._names = [name for name in sources if weights[name] > 0]
        self._rows = [sources[name] for name in self._names]
        means = np.array([rows.targets.mean() for rows in self._rows])
        shares = np.array([weights[name] for name in self._names]) / means
        cumulative = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
        self._ratios = cumulative[:-1] / cumulative[1:]
        self._batch_rows, self._seed = batch_rows, seed
        self.tokens_per_row = float((np.diff(cumulative) * means).sum())
        self.cursor = 0
        # Caches; a batch stays a function of (seed, cursor).
        self._block = lru_cache(maxsize=2)(self._deal)
        self._epoch = lru_cache(maxsize=2 * len(self._rows))(self._permute)

    def next(self) -> Batch:
        first = self.cursor * self._batch_rows
        batch = join([self._row(n) for n in range(first, first + self._batch_rows)])
        self.cursor += 1
        return batch

    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through up to the cursor."""
        position = self.cursor * self._batch_rows
        dealt = self._before(position // _BLOCK)
        within = np.bincount(self._block(position // _BLOCK)[: position % _BLOCK], minlength=len(self._rows))
        counts = dealt + within
        return {name: float(count / len(rows)) for name, count, rows in zip(self._names, counts, self._rows, strict=True)}

    def _row(self, position: int) -> Batch:
        block, offset = divmod(position, _BLOCK)
        order = self._block(block)
        source = order[offset]
        number = int(self._before(block)[source] + np.count_nonzero(order[:offset] == source))
        epoch, index = divmod(number, len(self._rows[source]))
        return self._rows[source].batch([self._epoch(int(source), epoch)[index]])

    def _before(self, block: int) -> np.ndarray:
        """How many rows of each source the blocks before this one hold."""
        ends = [block * _BLOCK]
        for ratio in self._ratios[::-1]:
            ends.append(int(ends[-1] * ratio + 0.5))
        return np.diff(ends[::-1])

    def _deal(self, block: int) -> np.ndarray:
        """The source of each row of a block."""
        counts = self._before(block + 1) - self._before(block)
        return np.random.default_rng((self._seed, 0, block)).permutation(np.repeat(np.arange(len(counts)), counts))

    def _permute(self, source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, 1, source, epoch)).permutation(len(self._rows[source]))
