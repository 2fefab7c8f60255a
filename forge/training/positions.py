"""A long row's linear layers, norms and activations on several of the CPU's streams at once: a part of the positions on each.

Rows are what the CPU computes side by side (forge.training.streams); where there are fewer than cores, this does. Attention and
cross-entropy deal out their own work. What is joined again is copied, which is little beside a linear layer. Short rows stay whole.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forge.training.formulation import activations, differentiable
from forge.training.streams import crew

_LEAST = 256  # positions a stream

_WITHIN = threading.local()


@contextmanager
def by_positions() -> Iterator[None]:
    """Within, modules of one's own crew (forge.training.streams.crew) compute so, wherever a model has them. Inside cpu_formulation()."""
    places: list[tuple[Any, str]] = [(nn.Linear, "__call__"), (nn.RMSNorm, "__call__"), (nn.LayerNorm, "__call__"), *activations()]
    before = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, before, strict=True):
        setattr(owner, name, _dealt_out(function))
    try:
        yield
    finally:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


def _dealt_out(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """function(a module perhaps, arrays of one shape), of which each position of the second axis has an answer of its own."""

    def whole_or_dealt(*given: Any, **named: Any) -> mx.array:
        own, arrays = [x for x in given if isinstance(x, nn.Module)], [x for x in given if not isinstance(x, nn.Module)]
        streams = [] if getattr(_WITHIN, "piece", False) else crew()
        if named or len(streams) < 2 or arrays[0].ndim < 3 or arrays[0].shape[1] < _LEAST * len(streams):
            return function(*given, **named)
        pieces = zip(*(_cut(x, len(streams)) for x in arrays), strict=True)
        _WITHIN.piece = True
        try:
            return mx.concatenate([_on(stream, function, *own, *piece) for stream, piece in zip(streams, pieces, strict=True)], axis=1)
        finally:
            _WITHIN.piece = False

    return whole_or_dealt


def _on(stream: mx.Stream, function: Callable[..., mx.array], *given: Any) -> mx.array:
    with mx.stream(stream):
        return function(*given)


def _cut(x: mx.array, count: int) -> list[mx.array]:
    """mx.split along the second axis, whose gradient is joined in one go: by itself MLX would pad each part's with zeros and add them."""
    borders = [x.shape[1] * part // count for part in range(1, count)]

    def joined(_: Any, cotangents: Any, __: Any) -> mx.array:
        return mx.concatenate(list(cotangents), axis=1)

    parts: list[mx.array] = differentiable(lambda x: tuple(mx.split(x, borders, axis=1)), joined)(x)
    return parts
