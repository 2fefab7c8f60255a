"""Keeps packed documents apart inside one row, on any architecture whose attention asks its cache for the mask.

mlx-lm's models call cache.make_mask(...) for their mask and cache.update_and_fetch(k, v) for keys and values. An object
that answers with a block-diagonal mask and hands keys and values back isolates the documents without touching a model.
Rotary positions are relative, so a document reads the same wherever it starts in the row. Learned positions (GPT-2's `wpe`)
are absolute: they start again with each document. Models for which neither holds (state-space layers) are found out by keeps_apart().
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forge.training.attention import in_blocks
from forge.training.formulation import cpu_formulation


class _Segments:
    """Stands where a layer's cache would. mask_B1TT: True where a position may look."""

    offset = 0

    def __init__(self, segments_BT: mx.array):
        positions_T = mx.arange(segments_BT.shape[1])
        same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
        self._distance_TT = positions_T[:, None] - positions_T[None]
        self._mask_B1TT = (same_BTT & (self._distance_TT >= 0))[:, None]

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        return self._mask_B1TT if window_size is None else self._mask_B1TT & (self._distance_TT < window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values


def forward(model: nn.Module, tokens_BT: mx.array, segments_BT: mx.array | None) -> mx.array:
    """logits_BTV. segments_BT None: each row is one document, and the model's own causal mask does."""
    with formulated(segments_BT):
        if segments_BT is None:
            return model(tokens_BT)
        with _restarted(model, segments_BT):
            return model(tokens_BT, cache=[_Segments(segments_BT)] * len(model.layers))


@contextmanager
def formulated(segments_BT: mx.array | None) -> Iterator[None]:
    """Within, the CPU computes attention and activations its own way. A layer computed again for its gradient needs it round that too."""
    with cpu_formulation(), in_blocks(segments_BT):
        yield


@contextmanager
def _restarted(model: nn.Module, segments_BT: mx.array) -> Iterator[None]:
    """Within, a table of learned positions answers with the positions inside each document, whichever it is asked for."""
    owner = next((module for module in model.modules() if "wpe" in module), None)
    if owner is None:
        yield
        return
    table, within_BT = owner["wpe"], _within(segments_BT)
    with exchanged(owner, "wpe", lambda positions: table(within_BT)):
        yield


@contextmanager
def exchanged(owner: nn.Module, name: str, stand: Any) -> Iterator[None]:
    """Within, `stand` is in the place of the owner's module of that name."""
    module = owner[name]
    owner[name] = stand  # as an item: setting an attribute would move it to the end of the parameters
    try:
        yield
    finally:
        owner[name] = module


def _within(segments_BT: mx.array) -> mx.array:
    """0, 1, 2, … anew in each segment: segments 1 1 1 2 2 give 0 1 2 0 1."""
    positions_T = mx.arange(segments_BT.shape[1])
    begins_BT = mx.concatenate([mx.ones_like(segments_BT[:, :1]), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1)
    return positions_T - mx.cummax(positions_T * begins_BT, axis=1)


def keeps_apart(model: nn.Module) -> bool:
    """Whether a document's logits are the same packed behind another one as alone, against what they are when it sees that one.

    Comparing with a real leak leaves room for the rounding of bf16, which is some 2 % of it; learned positions make 90 %.
    Three forward passes over at most 16 tokens.
    """
    first, second = mx.arange(1, 8), mx.arange(3, 12)
    both = mx.concatenate([first, second])[None]
    segments = mx.array([[1] * first.size + [2] * second.size])
    was_training = model.training
    model.eval()
    alone = forward(model, second[None], None)[0].astype(mx.float32)
    leaking = forward(model, both, None)[0, first.size :].astype(mx.float32)
    try:
        apart = forward(model, both, segments)[0, first.size :].astype(mx.float32)
        return bool((mx.linalg.norm(apart - alone) < 0.1 * mx.linalg.norm(leaking - alone)).item())
    except (AttributeError, TypeError, ValueError):  # the model asks its cache for something else
        return False
    finally:
        model.train(was_training)
