"""Attention as the CPU computes it fast: queries in blocks, each against the keys that it can see, with a gradient of its own.

What the mask hides is left out: nearly half of causal attention, most of packed documents. Scores are made a tile at a time, small enough
for the cache, and made anew for the gradient, as in FlashAttention (arXiv 2205.14135): what stays is linear in the length. mlx-lm's models
call mx.fast.scaled_dot_product_attention, so that is what is exchanged while a model runs. Metal and CUDA have kernels of their own and
keep them.

Letters: B rows, H heads of keys, G heads of queries to each of those, T positions, Q queries of a tile, K keys of a tile, D head size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any, cast

import mlx.core as mx
import numpy as np

from forge.training.formulation import differentiable, exp2, on_cpu
from forge.training.streams import crew, dealt

_BLOCK = 128  # queries; smaller blocks hide more, and cost more calls
_TILE = 2**20  # scores
_LOG2_E = math.log2(math.e)

Span = tuple[int, int, int]  # queries start:stop see keys first:stop
Tile = tuple[slice, slice]  # rows and heads of keys


@contextmanager
def in_blocks(segments_BT: mx.array | None) -> Iterator[None]:
    """Within, attention over a whole sequence goes block by block. No position may look at a later one, or into another segment."""
    if not on_cpu():
        yield
        return
    whole = mx.fast.scaled_dot_product_attention
    first_T = None if segments_BT is None else _first_seen(np.array(segments_BT))

    def blocks(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, sinks: Any = None, **rest: Any) -> mx.array:
        length = q.shape[2]
        usual = mask is None or sinks is not None or length == 1 or k.shape[2] != length or {q.dtype, k.dtype, v.dtype} != {mx.float32}
        mask_B1TT = None if usual or isinstance(mask, str) else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        if usual or (mask_B1TT is not None and mask_B1TT.shape[1] != 1) or q.shape[-1] != v.shape[-1]:
            return whole(q, k, v, scale=scale, mask=mask, sinks=sinks, **rest)
        return _attention(q, k, v, scale, _spans(length, first_T), mask_B1TT)

    mx.fast.scaled_dot_product_attention = blocks
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = whole


def _spans(length: int, first_T: np.ndarray | None) -> list[Span]:
    starts = range(0, length, _BLOCK)
    return [(start, min(start + _BLOCK, length), 0 if first_T is None else int(first_T[start])) for start in starts]


def _first_seen(segments_BT: np.ndarray) -> np.ndarray:
    """The first position that any row sees from each one: rows 1 1 2 2 and 1 2 2 2 give 0 0 1 1."""
    begins_BT = np.ones(segments_BT.shape, dtype=bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return np.maximum.accumulate(np.where(begins_BT, np.arange(segments_BT.shape[1]), 0), axis=1).min(axis=0)


def _attention(q: mx.array, k: mx.array, v: mx.array, scale: float, spans: list[Span], mask_B1TT: mx.array | None) -> mx.array:
    """softmax(q kᵀ scale + mask) v. mask_B1TT None: causal. Scores are to the base 2, and stand as k qᵀ: then no product transposes two
    large matrices, and the maximum runs over rows. A further column does what a pass would: ones beside v add up p, and -normal and -delta
    beside ones subtract. The spans are dealt out to the streams of the crew.
    """
    B, H, T, _ = k.shape
    G = q.shape[1] // H
    streams = crew()
    lane_of = dealt([(stop - start) * (stop - first) for start, stop, first in spans], len(streams))

    def fold(x: mx.array, tile: Tile, span: Span) -> mx.array:
        """The queries of a tile, those of all heads that look at the same keys below one another."""
        x = x.reshape(B, H, G, T, -1)[*tile, :, span[0] : span[1]]
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def seen(x: mx.array, tile: Tile, span: Span) -> mx.array:
        return x[*tile, span[2] : span[1]]

    def over_tiles(of_tile: Callable[[Tile, Span, list[mx.array]], list[mx.array]], queries: int) -> list[list[mx.array]]:
        """By span, what `of_tile` gives for all rows and heads, of which the first `queries` by query. One tile of a stream at a time: the
        third argument is what the one before gave."""
        last: list[list[mx.array]] = [[] for _ in streams]
        found = []
        for span, lane in zip(spans, lane_of, strict=True):
            tiles = []
            with mx.stream(streams[lane]):
                for tile in _tiles(B, H, G, span):
                    last[lane] = of_tile(tile, span, last[lane])
                    tiles.append(last[lane])
                heads = [H * G if number < queries else H for number in range(len(last[lane]))]
                found.append([_joined(parts, B, each) for parts, each in zip(zip(*tiles, strict=True), heads, strict=True)])
        return found

    @cache  # all heads of a row have one
    def bias(row: int, rows: int, span: Span) -> mx.array:
        return _bias(mask_B1TT, slice(row, rows), span, G)

    def scores(q_Q: mx.array, k_K: mx.array, tile: Tile, span: Span) -> mx.array:
        bias_KQ = bias(tile[0].start, tile[0].stop, span)
        score_KQ, some = k_K @ q_Q.swapaxes(-1, -2), bias_KQ.shape[-2]
        if some == score_KQ.shape[-2]:
            return score_KQ + bias_KQ
        score_KQ[..., -some:, :] = k_K[..., -some:, :] @ q_Q.swapaxes(-1, -2) + bias_KQ  # as reading them would have all copied
        return score_KQ

    def forward(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        q, k, v1 = q * (scale * _LOG2_E), mx.contiguous(k), _beside(v)

        def of_tile(tile: Tile, span: Span, before: list[mx.array]) -> list[mx.array]:
            score_KQ = scores(_after(fold(q, tile, span), before), seen(k, tile, span), tile, span)
            max_1Q = score_KQ.max(-2, keepdims=True)
            out1 = exp2(score_KQ - max_1Q).swapaxes(-1, -2) @ seen(v1, tile, span)
            return [out1[..., :-1] / out1[..., -1:], max_1Q.swapaxes(-1, -2) + mx.log2(out1[..., -1:])]

        out, normal = (mx.concatenate(list(of_spans), axis=2) for of_spans in zip(*over_tiles(of_tile, 2), strict=True))
        return out, normal

    def backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        d_out, (out, normal) = cotangents[0], outputs
        q, k = primals[0] * (scale * _LOG2_E), mx.contiguous(primals[1])
        q1, k1, v1 = _beside(q, -normal), _beside(k), _beside(primals[2])
        d_out1 = _beside(d_out, -(d_out * out).sum(-1, keepdims=True))
        bias.cache_clear()  # else it would be kept from the forward pass on, which is not linear in the length

        def of_tile(tile: Tile, span: Span, before: list[mx.array]) -> list[mx.array]:
            q1_Q, d_out1_Q = _after(fold(q1, tile, span), before), fold(d_out1, tile, span)
            p_KQ = exp2(scores(q1_Q, seen(k1, tile, span), tile, span))
            d_score_KQ = p_KQ * (seen(v1, tile, span) @ d_out1_Q.swapaxes(-1, -2))
            dq = d_score_KQ.swapaxes(-1, -2) @ seen(k, tile, span)
            return [dq, d_score_KQ @ fold(q, tile, span), p_KQ @ fold(d_out, tile, span)]

        dq, dk, dv = zip(*over_tiles(of_tile, 1), strict=True)
        return mx.concatenate(list(dq), axis=2) * scale, summed(dk) * (1 / _LOG2_E), summed(dv)

    def summed(parts: Sequence[mx.array]) -> mx.array:
        """The sum over spans, on each stream of its own."""
        sums = []
        for lane in sorted(set(lane_of)):
            own = [number for number, its in enumerate(lane_of) if its == lane]
            with mx.stream(streams[lane]):
                sums.append(_overlapped([parts[number] for number in own], [spans[number] for number in own], T))
        return reduce(mx.add, sums)

    return cast(mx.array, differentiable(forward, backward)(q, k, v)[0])


def _after(x: mx.array, before: list[mx.array]) -> mx.array:
    return mx.depends([x], before)[0] if before else x


def _beside(x: mx.array, column: mx.array | None = None) -> mx.array:
    """x with a further column, of ones unless it is given."""
    return mx.concatenate([x, mx.ones((*x.shape[:-1], 1)) if column is None else column], axis=-1)


def _joined(tiles: Sequence[mx.array], B: int, heads: int) -> mx.array:
    """Those of all rows and heads, which come one after another: (B, heads, positions, D)."""
    return mx.concatenate([tile.reshape(-1, *tile.shape[2:]) for tile in tiles]).reshape(B, heads, -1, tiles[0].shape[-1])


def _tiles(B: int, H: int, G: int, span: Span) -> Iterator[Tile]:
    """Rows and heads of keys: as many whole rows as make a tile, else of one row as many heads."""
    start, stop, first = span
    heads = max(1, _TILE // (G * (stop - start) * (stop - first)))
    rows, heads = max(1, heads // H), min(heads, H)
    return ((slice(row, row + rows), slice(head, head + heads)) for row in range(0, B, rows) for head in range(0, H, heads))


def _bias(mask_B1TT: mx.array | None, rows: slice, span: Span, G: int) -> mx.array:
    """What is added to a tile's scores of the last keys: nothing where a position may look, -1e9 where it may not. Without a mask, only the
    span's own positions have any that may not."""
    start, stop, first = span
    if mask_B1TT is None:
        own = mx.arange(stop - start)
        visible = (own[:, None] <= own)[None, None]
    else:
        visible = mask_B1TT[rows if mask_B1TT.shape[0] > 1 else slice(1), :, start:stop, first:stop].swapaxes(-1, -2)
    bias = (visible.astype(mx.float32) - 1) * 1e9 if visible.dtype == mx.bool_ else visible.astype(mx.float32) * _LOG2_E
    return mx.tile(bias, (1, 1, 1, G))


def _overlapped(parts: list[mx.array], spans: list[Span], T: int) -> mx.array:
    """(B, H, T, D): the sum over spans of what each gives the keys that it sees, from arrays of (B, H, K, D). Borders never go back."""
    B, H, _, D = parts[0].shape
    none = mx.zeros((B, H, 0, D))
    done, total, begin = [], none, 0
    for part, (_, _, first) in zip([*parts, none], [*spans, (T, T, T)], strict=True):
        past = min(first - begin, total.shape[2])
        done += [total[:, :, :past], mx.zeros((B, H, first - begin - past, D))]
        total, begin = total[:, :, past:], first
        total = mx.concatenate([total + part[:, :, : total.shape[2]], part[:, :, total.shape[2] :]], axis=2)
    return mx.concatenate(done, axis=2)
