"""Logits -> the next token of each row of a batch, each row by its own settings.

All rows go through the same few operations at once: on a small model, one chain of operations a row costs as much as the model.
What a row draws depends on its logits, its seed and its position alone, so its neighbours and what ran before don't matter.

Shapes: B rows, V tokens of the vocabulary, H rows that draw by chance, K likeliest tokens.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from forge.serving.contract import Sampling

# Below this, logits / temperature may overflow; the largest logit wins anyway.
_GREEDY_BELOW = 1e-5

_WINDOW = 20  # tokens that the repetition penalty looks back


class Row:
    """A request in a batch, as far as the device is concerned. `most`: how many tokens to draw."""

    def __init__(self, ids: Sequence[int], sampling: Sampling, most: int):
        self.sampling = sampling
        self.left = most
        self.greedy = sampling.temperature < _GREEDY_BELOW
        self.penalised = sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._position = 0
        self._window = mx.array(list(ids[:-1][-_WINDOW:]), dtype=mx.uint32)
        self._counts: mx.array | None = None

    def key(self) -> tuple[int, int]:
        """Of the random numbers at this position."""
        text = b"%d %d" % (self._seed, self._position)
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        return number >> 32, number & 0xFFFFFFFF

    def penalise(self, token: mx.array, logits_1V: mx.array) -> mx.array:
        """`token` (1,): the model's last input, the end of the prompt at first and then what was drawn."""
        wanted = self.sampling
        if self._counts is None:
            self._counts = mx.zeros(logits_1V.shape)
        else:
            self._counts = self._counts.at[:, token].add(1.0)
        if wanted.repetition_penalty != 1:
            # Keskar et al. 2019, arXiv 1909.05858, with the sign taken into account. Only what is used is computed, and a window that
            # isn't would hold on to every token so far.
            self._window = mx.concatenate([self._window, token])[-_WINDOW:]
            seen = logits_1V[:, self._window]
            seen = mx.where(seen < 0, seen * wanted.repetition_penalty, seen / wanted.repetition_penalty)
            logits_1V = mx.put_along_axis(logits_1V, self._window[None], seen, axis=-1)
        return logits_1V - wanted.presence_penalty * (self._counts > 0) - wanted.frequency_penalty * self._counts

    def advance(self) -> None:
        self._position += 1
        self.left -= 1


@dataclass(frozen=True)
class Drawn:
    """Not computed yet. `norms_B`: log-sum-exp of the logits, finite where they are. The rest: of the rows that asked for it, in order."""

    tokens_B: mx.array
    norms_B: mx.array
    chosen_A: mx.array | None = None
    likeliest_AK: mx.array | None = None
    scores_AK: mx.array | None = None

    def arrays(self) -> list[mx.array]:
        every = (self.tokens_B, self.norms_B, self.chosen_A, self.likeliest_AK, self.scores_AK)
        return [array for array in every if array is not None]


def draw(rows: Sequence[Row], inputs_B: mx.array, logits_BV: mx.array) -> Drawn:
    """The next token of each row, and log-probabilities of the model itself, before penalties, temperature and filters."""
    logits_BV = logits_BV.astype(mx.float32)
    norms_B = mx.logsumexp(logits_BV, axis=-1)
    judged_BV = logits_BV
    if any(row.penalised for row in rows):
        each = [logits_BV[i : i + 1] for i in range(len(rows))]
        judged_BV = mx.concatenate([row.penalise(inputs_B[i : i + 1], each[i]) if row.penalised else each[i] for i, row in enumerate(rows)])
    tokens_B = _choose(rows, judged_BV)
    for row in rows:
        row.advance()
    asking = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
    if not asking:
        return Drawn(tokens_B, norms_B)
    at = mx.array(asking)
    most = max(rows[i].sampling.logprobs or 0 for i in asking)
    return Drawn(tokens_B, norms_B, *scores(logits_BV[at] - norms_B[at, None], tokens_B[at], most))


def scores(logprobs_AV: mx.array, tokens_A: mx.array, most: int) -> tuple[mx.array, mx.array | None, mx.array | None]:
    """The log-probability of each token, and the `most` likeliest with theirs, best first."""
    chosen_A = mx.take_along_axis(logprobs_AV, tokens_A[:, None], axis=-1)[:, 0]
    most = min(most, logprobs_AV.shape[-1])
    if most == 0:
        return chosen_A, None, None
    some = mx.argpartition(-logprobs_AV, kth=most - 1, axis=-1)[:, :most]
    values = mx.take_along_axis(logprobs_AV, some, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return chosen_A, mx.take_along_axis(some, order, axis=-1), mx.take_along_axis(values, order, axis=-1)


def _choose(rows: Sequence[Row], logits_BV: mx.array) -> mx.array:
    likeliest_B = mx.argmax(logits_BV, axis=-1)
    hot = [i for i, row in enumerate(rows) if not row.greedy]
    if not hot:
        return likeliest_B
    chosen = [rows[i] for i in hot]
    at = mx.array(hot)
    logits_HV = logits_BV if len(hot) == len(rows) else logits_BV[at]
    floor_H1 = _floor([row.sampling for row in chosen], logits_HV)
    if floor_H1 is not None:
        logits_HV = mx.where(logits_HV < floor_H1, -mx.inf, logits_HV)
    temperature_H1 = mx.array([[row.sampling.temperature] for row in chosen])
    keys_H2 = mx.array([row.key() for row in chosen], dtype=mx.uint32)
    size = (logits_BV.shape[-1],)
    noise_HV = mx.vmap(lambda key: mx.random.gumbel(size, key=key))(keys_H2)
    # The largest of logit + Gumbel noise is a draw from the softmax (Gumbel 1954).
    drawn_H = mx.argmax(logits_HV / temperature_H1 + noise_HV, axis=-1)
    if len(hot) == len(rows):
        return drawn_H
    likeliest_B[at] = drawn_H
    return likeliest_B


def _floor(wanted: Sequence[Sampling], logits_HV: mx.array) -> mx.array | None:
    """(H, 1): what a logit needs in order to be drawn at all; None where no row restricts anything."""
    floors = []
    if any(each.min_p > 0 for each in wanted):
        floors.append(mx.max(logits_HV, axis=-1, keepdims=True) + mx.log(_column([each.min_p for each in wanted])))
    if any(each.top_p < 1 for each in wanted):
        floors.append(_top_p_floor([each.top_p for each in wanted], logits_HV))
    vocabulary = logits_HV.shape[-1]
    ks = [each.top_k if 0 < each.top_k < vocabulary else 0 for each in wanted]
    if most := max(ks):
        best_HK = mx.sort(mx.topk(logits_HV, most, axis=-1), axis=-1)
        places = mx.array([[most - k if k else 0] for k in ks])
        unlimited = mx.array([[k == 0] for k in ks])
        floors.append(mx.where(unlimited, -mx.inf, mx.take_along_axis(best_HK, places, axis=-1)))
    if not floors:
        return None
    return mx.max(mx.concatenate(floors, axis=-1), axis=-1, keepdims=True)


def _top_p_floor(top_ps: list[float], logits_HV: mx.array) -> mx.array:
    """The least logit of the fewest tokens that hold top_p of the probability (Holtzman et al. 2020, arXiv 1904.09751)."""
    ordered_HV = mx.sort(logits_HV, axis=-1)
    mass_above_HV = mx.cumsum(mx.softmax(ordered_HV, axis=-1), axis=-1, reverse=True, inclusive=False)
    dropped_H1 = mx.sum(mass_above_HV >= _column(top_ps), axis=-1, keepdims=True)
    floor_H1 = mx.take_along_axis(ordered_HV, mx.minimum(dropped_H1, logits_HV.shape[-1] - 1), axis=-1)
    return mx.where(_column(top_ps) < 1, floor_H1, -mx.inf)


def _column(values: list[float]) -> mx.array:
    return mx.array([[value] for value in values])
