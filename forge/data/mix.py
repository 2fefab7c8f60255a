"""Mixes sources by shares of tokens. A batch is a function of (seed, cursor): resuming is a seek.

Row shares follow from token shares and each source's mean targets a row. The rows are dealt in blocks of about a thousand, shuffled
by (seed, block). Of the first n rows, the first i sources hold round(n_{i+1} · P_i / P_{i+1}), where n_{i+1} is what the first i+1
hold and P the cumulative row shares: never fewer than a block before, and off by a few rows at most for any weights, however
long the run. A source's rows come in a new order in each of its epochs.

A source with a cap on its epochs leaves when it has reached it, and the others go on with their shares of the rest: a phase ends.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from forge.data.pack import PackedRows, join
from forge.errors import DataError
from forge.spec import Batch, Batches

_BLOCK = 1024
_WIDTH = 32  # a batch of rows of like length is as wide as a multiple of this, and one


@dataclass(frozen=True)
class _Phase:
    """Rows start … stop - 1 of the mixture (stop None: endless). dealt: rows of each source before it. ratios: of the shares in it."""

    start: int
    stop: int | None
    dealt: np.ndarray
    ratios: np.ndarray

    def before(self, rows: int) -> np.ndarray:
        """How many rows of each source the first `rows` of the phase hold."""
        ends = [rows]
        for ratio in self.ratios[::-1]:
            ends.append(int(ends[-1] * ratio + 0.5))
        return np.diff(ends[::-1])


class Mixture(Batches):
    """`caps`: epochs after which a source leaves. `bucketed`: the rows of a block are sorted into batches of like length, which are
    then shuffled, and a batch is only as wide as its longest row needs."""

    def __init__(
        self,
        sources: Mapping[str, PackedRows],
        weights: Mapping[str, float],
        batch_rows: int,
        seed: int,
        caps: Mapping[str, float | None] | None = None,
        bucketed: bool = False,
    ):
        self._names = [name for name in sources if weights[name] > 0]
        self._rows = [sources[name] for name in self._names]
        self._batch_rows, self._seed, self._bucketed = batch_rows, seed, bucketed
        means = np.array([rows.targets.mean() for rows in self._rows])
        shares = np.array([weights[name] for name in self._names]) / means
        self._block_rows = batch_rows * max(1, _BLOCK // batch_rows)
        if bucketed:  # its rows come in any order: a block that reached into the next epoch would leave some out of this one
            epoch = max(len(rows) / share for rows, share in zip(self._rows, shares / shares.sum(), strict=True))
            self._block_rows = batch_rows * math.ceil(epoch / math.ceil(epoch / _BLOCK) / batch_rows)
        self.tokens_per_row = float((shares * means).sum() / shares.sum())
        self._phases = _phases(shares, [_most(rows, (caps or {}).get(rows.name)) for rows in self._rows], batch_rows)
        if not self._phases:
            raise DataError(f"sources {', '.join(self._names)}: max_epochs leaves no row; raise it")
        self._starts = [phase.start for phase in self._phases]
        self.cursor = 0
        # Caches; a batch stays a function of (seed, cursor).
        self._block = lru_cache(maxsize=2)(self._deal)
        self._epoch = lru_cache(maxsize=2 * len(self._rows))(self._permute)

    @property
    def max_batches(self) -> int | None:
        """How many there are when every source has a cap; else None."""
        stop = self._phases[-1].stop
        return None if stop is None else math.ceil(stop / self._batch_rows)

    def next(self) -> Batch:
        if self.max_batches is not None and self.cursor >= self.max_batches:
            raise DataError(f"the data ends after {self.max_batches} batches: raise max_epochs of a source, or shorten trainer.budget")
        rows = self._at(self.cursor)
        width = self._width([self._rows[source].filled[number] for source, number in rows])
        batch = join([self._rows[source].batch([number], width) for source, number in rows])
        self.cursor += 1
        return batch

    def epochs(self, cursor: int) -> dict[str, float]:
        counts = self._counts(cursor)
        return {name: float(count / len(rows)) for name, count, rows in zip(self._names, counts, self._rows, strict=True)}

    def _counts(self, cursor: int) -> np.ndarray:
        """Rows of each source before a batch."""
        last = self._phases[-1]
        if last.stop is not None and cursor * self._batch_rows >= last.stop:
            return last.dealt + last.before(last.stop - last.start)
        phase, block, offset = self._locate(cursor)
        _, sources = self._block(phase, block)
        return self._dealt(phase, block) + np.bincount(sources[:offset], minlength=len(self._rows))

    def padding_shares(self) -> dict[str, float]:
        """The share of positions that hold no token, by source: of all rows, or where widths differ of the first block's."""
        if not self._bucketed:
            return {rows.name: rows.padding_share for rows in self._rows}
        numbers, _ = self._block(0, 0)
        filled, held = np.zeros(len(self._rows)), np.zeros(len(self._rows))
        for cursor in range(len(numbers) // self._batch_rows):
            lengths = [(source, int(self._rows[source].filled[number])) for source, number in self._at(cursor)]
            width = self._width([length for _, length in lengths])
            for source, length in lengths:
                filled[source] += length
                held[source] += width
        return {name: float(1 - f / h) for name, f, h in zip(self._names, filled, held, strict=True) if h}

    def _at(self, cursor: int) -> list[tuple[int, int]]:
        """(source, row) of each row of a batch."""
        phase, block, offset = self._locate(cursor)
        numbers, sources = self._block(phase, block)
        here = slice(offset, offset + self._batch_rows)
        return [(int(source), self._row(int(source), int(number))) for source, number in zip(sources[here], numbers[here], strict=True)]

    def _locate(self, cursor: int) -> tuple[int, int, int]:
        """The phase, the block in it and the place in the block where a batch begins."""
        position = cursor * self._batch_rows
        phase = bisect.bisect_right(self._starts, position) - 1
        return phase, *divmod(position - self._phases[phase].start, self._block_rows)

    def _dealt(self, phase: int, block: int) -> np.ndarray:
        return self._phases[phase].dealt + self._phases[phase].before(block * self._block_rows)

    def _deal(self, phase: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each row of a block, in order: its number among all rows dealt of its source, and the source."""
        here = self._phases[phase]
        first = block * self._block_rows
        last = first + self._block_rows if here.stop is None else min(first + self._block_rows, here.stop - here.start)
        counts = here.before(last) - here.before(first)
        rng = np.random.default_rng((self._seed, 0, phase, block))
        sources = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        numbers = np.empty(len(sources), dtype=np.int64)
        for source, begun in enumerate(self._dealt(phase, block)):
            of_it = sources == source
            numbers[of_it] = begun + np.arange(of_it.sum())
        if not self._bucketed:
            return numbers, sources
        lengths = np.array([self._rows[s].filled[self._row(int(s), int(n))] for s, n in zip(sources, numbers, strict=True)])
        # By the width they need, not by length: rows of one width come in another order in each block, and so into other batches.
        by_width = np.argsort((lengths - 2) // _WIDTH, kind="stable")
        whole = len(by_width) - len(by_width) % self._batch_rows  # only the very last batch may be short
        order = np.concatenate([rng.permutation(by_width[:whole].reshape(-1, self._batch_rows)).reshape(-1), by_width[whole:]])
        return numbers[order], sources[order]

    def _row(self, source: int, number: int) -> int:
        epoch, index = divmod(number, len(self._rows[source]))
        return int(self._epoch(source, epoch)[index])

    def _permute(self, source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, 1, source, epoch)).permutation(len(self._rows[source]))

    def _width(self, lengths: Sequence[int]) -> int:
        full = self._rows[0].row
        return min(full, -(-(max(lengths) - 1) // _WIDTH) * _WIDTH + 1) if self._bucketed else full


def _most(rows: PackedRows, cap: float | None) -> int | None:
    return None if cap is None else int(round(cap * len(rows), 6))  # 0.29 of 100 rows are 29


def _phases(shares: np.ndarray, most: Sequence[int | None], batch_rows: int) -> list[_Phase]:
    """Each phase lasts until a source has no row left for another batch; where all have a cap, the last one holds what then remains."""
    phases: list[_Phase] = []
    start, dealt, active = 0, np.zeros(len(shares), dtype=np.int64), np.ones(len(shares), dtype=bool)
    left = np.array([np.iinfo(np.int64).max if m is None else m for m in most], dtype=np.int64)
    while True:
        ratios = _ratios(np.where(active, shares, 0.0))
        capped = active & np.array([m is not None for m in most])
        if not capped.any():
            if active.any():
                return [*phases, _Phase(start, None, dealt, ratios)]
            return [*phases, _Phase(start, start + int(left.sum()), dealt, _ratios(left))] if left.any() else phases
        open_ended = _Phase(start, None, dealt, ratios)
        # Counts of rows are off by less than one for each source: past this many, one has more than are left.
        most_rows = shares[active].sum() * min((left[capped] + len(shares) + 1) / shares[capped])
        past = range(1, int(most_rows) // batch_rows + 3)
        batches = bisect.bisect_left(past, True, key=lambda n: bool((open_ended.before(n * batch_rows) > left)[capped].any()))
        over = open_ended.before((batches + 1) * batch_rows) > left
        if batches:
            phases.append(_Phase(start, start + batches * batch_rows, dealt, ratios))
            used = open_ended.before(batches * batch_rows)
            start, dealt = start + batches * batch_rows, dealt + used
            left = np.where([m is None for m in most], left, left - used)
        active = active & ~(over & capped)


def _ratios(shares: np.ndarray) -> np.ndarray:
    """P_i / P_{i+1} of the cumulative shares P; 0 where both are 0."""
    cumulative = np.concatenate([[0.0], np.cumsum(shares)])
    return np.divide(cumulative[:-1], cumulative[1:], out=np.zeros(len(shares)), where=cumulative[1:] > 0)
