"""Objectives: objective(model, batch, *, knobs) -> (loss_sum, (count, sums)). Pure functions; they decide nothing about masks.

loss_sum is what gets differentiated: a sum over `count` target tokens. The engine divides once, by the count of the whole
optimizer step, so that micro-batches of any size weigh their tokens equally. `sums` holds further sums to be logged as
train/<name> after the same division.

Letters: B rows, T positions, V vocabulary.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from forge.spec import Batch
from forge.training.isolation import forward

Sums = tuple[mx.array, tuple[mx.array, Mapping[str, mx.array]]]


def causal_lm(model: nn.Module, batch: Batch) -> Sums:
    """Cross-entropy of each target given what stands before it in its document, in nats.

    A batch with targets a, b of probability 1/2 and 1/4: loss_sum = ln 2 + ln 4 = 2.0794, count 2.
    """
    losses_BT, mask_BT = token_losses(model, batch)
    return losses_BT.sum(), (mask_BT.sum(), {})


def token_losses(model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
    """losses_BT (nats, fp32, 0 where there is no target) and mask_BT: what evaluation adds up by row."""
    inputs_BT, targets_BT, mask_BT, segments_BT = shift(batch)
    logits_BTV = forward(model, inputs_BT, segments_BT).astype(mx.float32)
    return nn.losses.cross_entropy(logits_BTV, targets_BT) * mask_BT, mask_BT


def shift(batch: Batch) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """inputs, targets, the targets' mask, the inputs' segments (None when no row holds two documents). The only shift in forge."""
    tokens, segments = batch.tokens_BT, batch.segments_BT
    packed = segments.max(initial=0) > 1
    return mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:]), mx.array(batch.mask_BT[:, 1:]), mx.array(segments[:, :-1]) if packed else None
