"""Continuous batching: rows that decode together, one token of each a step, and join and leave between steps.

The caches and their merging, growing and filtering are mlx-lm's. A row alone keeps the plain cache that its prompt was read with, which
is what mlx_lm.stream_generate computes with, operation by operation. Each step is put on the device before the last one's tokens are
read, so the device computes while Python looks at them; the price is one step for nothing of a row that ends by its end token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from forge.serving.sample import Drawn, Row, draw

_CLEAR_EVERY = 256  # steps; freed buffers of sizes that don't come again pile up


@dataclass(frozen=True)
class Score:
    """The log-probability of a token, and those of the likeliest (id, log-probability), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]

    def best(self, most: int) -> "Score":
        return Score(self.logprob, self.top[:most])


@dataclass(frozen=True)
class Next:
    """A row's next token. Where the logits weren't `finite`, it means nothing."""

    row: Row
    token: int
    finite: bool
    score: Score | None


class Batch:
    def __init__(self, model: Any):
        self.rows: list[Row] = []
        self._model = model
        self._cache: list[Any] = []
        self._inputs_B: Any = None  # an array where there are rows
        self._flight: tuple[list[Row], Drawn] | None = None
        self._steps = 0

    @property
    def busy(self) -> bool:
        return bool(self.rows or self._flight)

    def join(self, row: Row, token: int, cache: list[Any]) -> None:
        """`cache` has read the row's prompt but for its last `token`. From now on it belongs to the batch."""
        fed = mx.array([token], dtype=mx.uint32)
        if not self.rows:
            self._cache, self._inputs_B = cache, fed
        elif len(self.rows) == 1:
            self._cache = [old.merge([old, new]) for old, new in zip(self._cache, cache, strict=True)]
        else:
            for old, new in zip(self._cache, cache, strict=True):
                old.extend(new.merge([new]))
        if self.rows:
            self._inputs_B = mx.concatenate([self._inputs_B, fed])
        self.rows.append(row)

    def leave(self, gone: Iterable[Row]) -> None:
        """Where some of them are here no more, that is fine."""
        leaving = set(gone)
        keep = [i for i, row in enumerate(self.rows) if row not in leaving]
        if len(keep) == len(self.rows):
            return
        if not keep:
            self._cache, self._inputs_B = [], None
        else:
            if len(keep) == 1:
                self._cache = [each.extract(keep[0]) for each in self._cache]
            else:
                for each in self._cache:
                    each.filter(keep)
            self._inputs_B = self._inputs_B[mx.array(keep)]
        self.rows = [self.rows[i] for i in keep]

    def step(self) -> list[Next]:
        """Starts the rows' next step, and waits for the one before. The tokens of rows that have left meanwhile come too."""
        landing = self._flight
        self.leave([row for row in self.rows if row.left <= 0])
        self._flight = self._launch() if self.rows else None
        return _land(*landing) if landing else []

    def clear(self) -> None:
        self.rows, self._cache, self._inputs_B, self._flight = [], [], None, None

    def _launch(self) -> tuple[list[Row], Drawn]:
        logits_BV = self._model(self._inputs_B[:, None], cache=self._cache)[:, -1, :]
        drawn = draw(self.rows, self._inputs_B, logits_BV)
        mx.async_eval(drawn.arrays())
        self._inputs_B = drawn.tokens_B
        self._steps += 1
        if self._steps % _CLEAR_EVERY == 0:
            mx.clear_cache()
        return list(self.rows), drawn


def _land(rows: Sequence[Row], drawn: Drawn) -> list[Next]:
    mx.eval(drawn.arrays())
    tokens: Any = drawn.tokens_B.tolist()
    norms: Any = drawn.norms_B.tolist()
    found = iter(landed(drawn.chosen_A, drawn.likeliest_AK, drawn.scores_AK))
    scores = [None if (most := row.sampling.logprobs) is None else next(found).best(most) for row in rows]
    return [Next(row, token, abs(norm) < mx.inf, score) for row, token, norm, score in zip(rows, tokens, norms, scores, strict=True)]


def landed(chosen_A: mx.array | None, likeliest_AK: mx.array | None, scores_AK: mx.array | None) -> list[Score]:
    """What forge.serving.sample.scores gives, out of the device."""
    chosen: Any = [] if chosen_A is None else chosen_A.tolist()
    if likeliest_AK is None or scores_AK is None:
        return [Score(logprob, ()) for logprob in chosen]
    ids: Any = likeliest_AK.tolist()
    values: Any = scores_AK.tolist()
    return [Score(logprob, tuple(zip(*top, strict=True))) for logprob, *top in zip(chosen, ids, values, strict=True)]
