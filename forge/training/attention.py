"""Attention that does not compute what its mask hides, for the CPU: queries in blocks, each against the keys that it can see.

Of causal attention that is nearly half, of packed documents most. mlx-lm's models call mx.fast.scaled_dot_product_attention, so that is
what is exchanged while a model runs. Metal and CUDA have kernels of their own and keep them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np

_BLOCK = 128  # queries; smaller blocks hide more, and cost more calls


@contextmanager
def in_blocks(segments_BT: mx.array | None) -> Iterator[None]:
    """Within, attention over a whole sequence goes block by block. No position may look at a later one, or into another segment."""
    if mx.default_device() != mx.Device(mx.cpu):
        yield
        return
    whole = mx.fast.scaled_dot_product_attention
    first_T = None if segments_BT is None else _first_seen(np.array(segments_BT))

    def blocks(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **rest: Any) -> mx.array:
        length = q.shape[2]
        if mask is None or length <= _BLOCK or k.shape[2] != length:
            return whole(q, k, v, scale=scale, mask=mask, **rest)
        parts = []
        for start in range(0, length, _BLOCK):
            stop = min(start + _BLOCK, length)
            first = 0 if first_T is None else int(first_T[start])
            part = mask if isinstance(mask, str) else mask[..., start:stop, first:stop]
            seen = (k[:, :, first:stop], v[:, :, first:stop])
            parts.append(whole(q[:, :, start:stop], *seen, scale=scale, mask=part, **rest))
        return mx.concatenate(parts, axis=2)

    mx.fast.scaled_dot_product_attention = blocks
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = whole


def _first_seen(segments_BT: np.ndarray) -> np.ndarray:
    """The first position that any row sees from each one: rows 1 1 2 2 and 1 2 2 2 give 0 0 1 1."""
    begins_BT = np.ones(segments_BT.shape, dtype=bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return np.maximum.accumulate(np.where(begins_BT, np.arange(segments_BT.shape[1]), 0), axis=1).min(axis=0)
