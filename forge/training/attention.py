"""Attention as the CPU computes it fast: queries in blocks, each against the keys that it can see, in NumPy and with a gradient of its own.

What the mask hides is left out: nearly half of causal attention, most of packed documents. Scores are made a tile at a time, in place, and
anew for the gradient, as in FlashAttention (arXiv 2205.14135): what stays is linear in the length. NumPy's exp takes 0.3 ns an element on a
core, a sixth of a polynomial of MLX's operations. mlx-lm's models call mx.fast.scaled_dot_product_attention, so that is what is exchanged
while a model runs. Metal and CUDA have kernels of their own and keep them.

Letters: B rows, H heads of keys, G heads of queries to each of those, T positions, Q queries of a tile (of all G), K keys of a tile, D head
size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, cast

import mlx.core as mx
import numpy as np

from forge import blas
from forge.training import host
from forge.training.formulation import differentiable, on_cpu

_BLOCK = 128  # queries; smaller blocks hide more, and cost more calls
_HIDDEN = np.float32(-1e9)  # added to a score, it leaves nothing of its exponential

Span = tuple[int, int, int]  # queries start:stop see keys first:stop
Tile = tuple[int, int, Span]  # of a row and a head of keys


@contextmanager
def in_blocks(segments_BT: mx.array | None) -> Iterator[None]:
    """Within, attention over a whole sequence goes block by block. No position may look at a later one, or into another segment.

    Added masks go the usual way, since they may have a gradient, and so do those of each head or of fewer than all positions.
    """
    if not on_cpu():
        yield
        return
    whole = mx.fast.scaled_dot_product_attention
    first_T = None if segments_BT is None else _first_seen(np.array(segments_BT))

    def blocks(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, sinks: Any = None, **rest: Any) -> mx.array:
        length = q.shape[2]
        usual = mask is None or sinks is not None or k.shape[2] != length or {q.dtype, k.dtype, v.dtype} != {mx.float32}
        mask_B1TT = None if usual or isinstance(mask, str) else mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        if usual or (mask_B1TT is not None and (mask_B1TT.dtype != mx.bool_ or mask_B1TT.shape[1:] != (1, length, length))):
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
    """softmax(q kᵀ scale) v over what a query sees: mask_B1TT, or all that is not later."""
    masks = [] if mask_B1TT is None else [mask_B1TT]

    def forward(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, ...]:
        needs, shapes = [q * scale, k, v, *masks], [(*q.shape[:3], v.shape[3]), (*q.shape[:3], 1)]
        return tuple(host.call(partial(_forward, spans), needs, shapes))

    def backward(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        (q, k, v), (out, normal), d_out = primals, outputs, cotangents[0]
        needs = [q * scale, k, v, normal, d_out, (d_out * out).sum(axis=-1, keepdims=True), *masks]
        d_q, d_k, d_v = host.call(partial(_backward, spans), needs, [q.shape, k.shape, v.shape])
        return d_q * scale, d_k, d_v

    return cast(mx.array, differentiable(forward, backward)(q, k, v)[0])


def _forward(spans: list[Span], given: list[np.ndarray], empty: list[np.ndarray]) -> None:
    """Of scaled q, k, v and perhaps a mask: the output, and of each query the logarithm of the sum of its scores' exponentials."""
    q, k, v, *masks = given
    q, out, normal = (_by_key_heads(x, k) for x in (q, *empty))

    def of_lane(tiles: list[Tile]) -> None:
        room = _room(tiles, q)
        for tile in tiles:
            score_QK = _scores(tile, _queries(q, tile), k, masks, room)
            max_Q1 = score_QK.max(axis=1, keepdims=True)
            score_QK -= max_Q1
            np.exp(score_QK, out=score_QK)
            sum_Q1 = score_QK.sum(axis=1, keepdims=True)
            _fill(out, tile, (score_QK @ _seen(v, tile)) / sum_Q1)
            _fill(normal, tile, max_Q1 + np.log(sum_Q1))

    host.side_by_side(of_lane, _lanes(spans, k))


def _backward(spans: list[Span], given: list[np.ndarray], empty: list[np.ndarray]) -> None:
    """The gradients of scaled q, of k and of v. delta is the sum of d_out · out over D."""
    q, k, v, normal, d_out, delta, *masks = given
    q, normal, d_out, delta, d_q = (_by_key_heads(x, k) for x in (q, normal, d_out, delta, empty[0]))

    def of_lane(tiles: list[Tile]) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
        sums: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        room, more_room = _room(tiles, q), _room(tiles, q)
        for tile in tiles:
            row, head, (_, stop, first) = tile
            if (row, head) not in sums:
                sums[row, head] = np.zeros_like(k[row, head]), np.zeros_like(v[row, head])
            d_k_KD, d_v_KD = (of_head[first:stop] for of_head in sums[row, head])
            q_QD, d_out_QD = _queries(q, tile), _queries(d_out, tile)
            p_QK = _scores(tile, q_QD, k, masks, room)
            p_QK -= _queries(normal, tile)
            np.exp(p_QK, out=p_QK)
            d_v_KD += p_QK.T @ d_out_QD
            d_score_QK = np.matmul(d_out_QD, _seen(v, tile).T, out=_part(more_room, p_QK.shape))
            d_score_QK -= _queries(delta, tile)
            d_score_QK *= p_QK
            d_k_KD += d_score_QK.T @ q_QD
            _fill(d_q, tile, d_score_QK @ _seen(k, tile))
        return sums

    d_k, d_v = empty[1:]
    d_k[:], d_v[:] = 0, 0
    for sums in host.side_by_side(of_lane, _lanes(spans, k)):
        for of_head, (own_d_k, own_d_v) in sums.items():
            d_k[of_head] += own_d_k
            d_v[of_head] += own_d_v


def _scores(tile: Tile, q_QD: np.ndarray, k: np.ndarray, masks: Sequence[np.ndarray], room: np.ndarray) -> np.ndarray:
    """score_QK, in `room`."""
    row, _, (start, stop, first) = tile
    k_KD = _seen(k, tile)
    score_QK = np.matmul(q_QD, k_KD.T, out=_part(room, (len(q_QD), len(k_KD))))
    by_head = score_QK.reshape(-1, stop - start, stop - first)
    if not masks:
        by_head[:, :, start - first :] += _later_hidden(stop - start)  # those before are seen by all
        return score_QK
    visible = masks[0][row if len(masks[0]) > 1 else 0, 0, start:stop, first:stop]
    by_head += np.where(visible, np.float32(0), _HIDDEN)
    return score_QK


@cache
def _later_hidden(length: int) -> np.ndarray:
    return np.where(np.tri(length, dtype=bool), np.float32(0), _HIDDEN)


def _by_key_heads(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(B, H · G, T, …) as (B, H, G, T, …), in the same memory."""
    return x.reshape(*k.shape[:2], -1, *x.shape[2:])


def _queries(x: np.ndarray, tile: Tile) -> np.ndarray:
    """The queries of a tile, those of all heads that look at the same keys below one another."""
    row, head, (start, stop, _) = tile
    return x[row, head, :, start:stop].reshape(-1, x.shape[-1])


def _fill(x: np.ndarray, tile: Tile, values: np.ndarray) -> None:
    row, head, (start, stop, _) = tile
    x[row, head, :, start:stop] = values.reshape(-1, stop - start, x.shape[-1])


def _seen(x: np.ndarray, tile: Tile) -> np.ndarray:
    """The keys of a tile, in the memory of x."""
    row, head, (_, stop, first) = tile
    return x[row, head, first:stop]


def _room(tiles: Sequence[Tile], q: np.ndarray) -> np.ndarray:
    """For the scores of any of the tiles."""
    return np.empty(q.shape[2] * max((stop - start) * (stop - first) for _, _, (start, stop, first) in tiles), np.float32)


def _part(room: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return room[: shape[0] * shape[1]].reshape(shape)


def _lanes(spans: Sequence[Span], k: np.ndarray) -> list[list[Tile]]:
    """All tiles, dealt out to the cores: to each much the same area, of few heads. The same way each time, so that sums are."""
    tiles = [(row, head, span) for row in range(k.shape[0]) for head in range(k.shape[1]) for span in spans]
    areas = np.array([(stop - start) * (stop - first) for _, _, (start, stop, first) in tiles])
    lane_of = (areas.cumsum() - areas / 2) * blas.cores() // areas.sum()
    lanes = [[tile for tile, its in zip(tiles, lane_of, strict=True) if its == lane] for lane in range(blas.cores())]
    return [lane for lane in lanes if lane]
