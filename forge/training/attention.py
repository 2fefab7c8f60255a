"""Attention as the CPU computes it fast: queries in blocks, each against the keys that it can see, with a gradient of its own.

What the mask hides is left out: nearly half of causal attention, most of packed documents. Scores are made a tile at a time, small enough
for the cache, and made anew for the gradient, as in FlashAttention (arXiv 2205.14135): what stays is linear in the length. mlx-lm's models
call mx.fast.scaled_dot_product_attention, so that is what is exchanged while a model runs. Metal and CUDA have kernels of their own and
keep them.

Letters: B rows, H heads of keys, G heads of queries to each of those, T positions, Q queries of a tile, K keys of a tile, D head size.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import mlx.core as mx
import numpy as np

from forge.training.formulation import exp2, on_cpu

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
    """softmax(q kᵀ scale + mask) v. mask_B1TT None: causal. Scores are to the base 2."""
    B, H, T, _ = k.shape
    G = q.shape[1] // H

    def fold(x: mx.array, tile: Tile, span: Span) -> mx.array:
        """The queries of a tile, those of all heads that look at the same keys below one another."""
        x = x.reshape(B, H, G, T, -1)[*tile, :, span[0] : span[1]]
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def seen(x: mx.array, tile: Tile, span: Span) -> mx.array:
        return x[*tile, span[2] : span[1]]

    def joined(tiles: list[mx.array], length: int) -> mx.array:
        return mx.concatenate([tile.reshape(-1, *tile.shape[2:]) for tile in tiles]).reshape(B, -1, length, tiles[0].shape[-1])

    @cache  # all heads of a row have one
    def bias(row: int, rows: int, span: Span) -> mx.array:
        return _bias(mask_B1TT, slice(row, rows), span, G)

    def scores(q: mx.array, k: mx.array, tile: Tile, span: Span, after: list[mx.array]) -> tuple[mx.array, mx.array, mx.array]:
        """The tile's queries and keys, and their scores. One tile at a time: `after` what the one before gives."""
        q_Q, k_K = fold(q, tile, span), seen(k, tile, span)
        if after:
            q_Q = mx.depends([q_Q], after)[0]
        return q_Q, k_K, q_Q @ k_K.swapaxes(-1, -2) + bias(tile[0].start, tile[0].stop, span)

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        q, k, v = q * (scale * _LOG2_E), mx.contiguous(k), mx.contiguous(v)
        outs, normals = [], []
        last: list[mx.array] = []
        for span in spans:
            out, normal = [], []
            for tile in _tiles(B, H, G, span):
                _, _, score = scores(q, k, tile, span, last)
                max_Q1 = score.max(-1, keepdims=True)
                p = exp2(score - max_Q1)
                sum_Q1 = p @ mx.ones((p.shape[-1], 1))
                last = [(p @ seen(v, tile, span)) / sum_Q1, max_Q1 + mx.log2(sum_Q1)]
                out.append(last[0])
                normal.append(last[1])
            outs.append(joined(out, span[1] - span[0]))
            normals.append(joined(normal, span[1] - span[0]))
        return mx.concatenate(outs, axis=2), mx.concatenate(normals, axis=2)

    @attend.vjp
    def attend_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        q, k, v = primals[0] * (scale * _LOG2_E), mx.contiguous(primals[1]), mx.contiguous(primals[2])
        d_out, (out, normal) = cotangents[0], outputs
        delta = (d_out * out).sum(-1, keepdims=True)
        bias.cache_clear()  # else it would be kept from the forward pass on, which is not linear in the length
        dqs, dks, dvs = [], [], []
        last: list[mx.array] = []
        for span in spans:
            dq: list[mx.array] = []
            dk: list[mx.array] = []
            dv: list[mx.array] = []
            for tile in _tiles(B, H, G, span):
                q_Q, k_K, score = scores(q, k, tile, span, last)
                p, d_out_Q = exp2(score - fold(normal, tile, span)), fold(d_out, tile, span)
                d_score = p * (d_out_Q @ seen(v, tile, span).swapaxes(-1, -2) - fold(delta, tile, span))
                last = [d_score @ k_K, d_score.swapaxes(-1, -2) @ q_Q, p.swapaxes(-1, -2) @ d_out_Q]
                for total, part in zip((dq, dk, dv), last, strict=True):
                    total.append(part)
            dqs.append(joined(dq, span[1] - span[0]))
            dks.append(joined(dk, span[1] - span[2]))
            dvs.append(joined(dv, span[1] - span[2]))
        return mx.concatenate(dqs, axis=2) * scale, _overlapped(dks, spans) * (1 / _LOG2_E), _overlapped(dvs, spans)

    out_and_normal: Any = attend(q, k, v)
    return cast(mx.array, out_and_normal[0])


def _tiles(B: int, H: int, G: int, span: Span) -> Iterator[Tile]:
    """Rows and heads of keys: as many whole rows as make a tile, else of one row as many heads."""
    start, stop, first = span
    heads = max(1, _TILE // (G * (stop - start) * (stop - first)))
    rows, heads = max(1, heads // H), min(heads, H)
    return ((slice(row, row + rows), slice(head, head + heads)) for row in range(0, B, rows) for head in range(0, H, heads))


def _bias(mask_B1TT: mx.array | None, rows: slice, span: Span, G: int) -> mx.array:
    """What is added to a tile's scores: nothing where a position may look, -1e9 where it may not."""
    start, stop, first = span
    if mask_B1TT is None:
        visible = (mx.arange(first, stop) <= mx.arange(start, stop)[:, None])[None, None]
    else:
        visible = mask_B1TT[rows if mask_B1TT.shape[0] > 1 else slice(1), :, start:stop, first:stop]
    bias = (visible.astype(mx.float32) - 1) * 1e9 if visible.dtype == mx.bool_ else visible.astype(mx.float32) * _LOG2_E
    return mx.tile(bias, (1, 1, G, 1))


def _overlapped(parts: list[mx.array], spans: list[Span]) -> mx.array:
    """The sum over spans of what each gives the keys that it sees, from arrays of (B, H, K, D). Borders never go back."""
    done, total, begin = [], parts[0], spans[0][2]
    for part, (_, _, first) in zip(parts[1:], spans[1:], strict=True):
        done.append(total[:, :, : first - begin])
        total = total[:, :, first - begin :]
        total, begin = mx.concatenate([total + part[:, :, : total.shape[2]], part[:, :, total.shape[2] :]], axis=2), first
    return mx.concatenate([*done, total], axis=2)
