"""Objectives: objective(model, batch, *, knobs) -> (loss_sum, (count, sums)). Pure functions; they decide nothing about masks.

loss_sum is what gets differentiated: a sum over `count` target tokens. The engine divides once, by the count of the whole
optimizer step, so that micro-batches of any size weigh their tokens equally. `sums` holds further sums to be logged as
train/<name> after the same division. A row's loss may not depend on the other rows of its batch: the CPU computes them apart
(forge.training.gradients). Nor may an objective look at numbers (item, tolist, mx.eval): there attention's come once the graph is whole
(forge.training.host).

Letters: B rows, T positions, N targets, D hidden size.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge.spec import Batch
from forge.training import cross_entropy, host
from forge.training.cross_entropy import Terms
from forge.training.ends import Head, Noise, hidden_states
from forge.training.streams import parts
from forge.values import Count, NotNegative, Part

Sums = tuple[mx.array, tuple[mx.array, Mapping[str, mx.array]]]
CHUNK = 256


def causal_lm(
    model: nn.Module,
    batch: Batch,
    *,
    chunk: Count = CHUNK,
    label_smoothing: Part = 0.0,
    z_loss: NotNegative = 0.0,
    neftune_alpha: NotNegative = 0.0,
) -> Sums:
    """Cross-entropy of each target given what stands before it in its document, in nats; plain, or with the terms of cross_entropy.Terms.

    A batch with targets a, b of probability 1/2 and 1/4: loss_sum = ln 2 + ln 4 = 2.0794, count 2. Where a further term is on, loss_sum
    includes it, and `sums` has the plain "cross_entropy" (and "z_loss") beside it.

    `neftune_alpha`: while the model trains, its input embeddings get noise, uniform in ±alpha / sqrt(T D), with T the row's tokens
    (NEFTune, arXiv 2310.05914).
    """
    noise = _neftune(batch, neftune_alpha) if neftune_alpha and model.training else None
    head, hidden_ND, targets_N, _ = _at_targets(model, batch, noise)
    loss, plain, z = cross_entropy.summed(head, hidden_ND, targets_N, chunk, Terms(label_smoothing, z_loss))
    sums = {"cross_entropy": plain} if label_smoothing or z_loss else {}
    return loss, (mx.array(targets_N.size), sums | ({"z_loss": z} if z_loss else {}))


def token_losses(model: nn.Module, batch: Batch, *, chunk: int = CHUNK) -> mx.array:
    """losses_BT (nats, fp32, 0 where there is no target), which evaluation adds up by row. Without gradients."""
    height, width = batch.tokens_BT.shape
    losses, where = [mx.zeros((1,))], np.zeros(height * (width - 1), dtype=np.int32)
    notes: list[list[host.Note]] = []
    for part, rows, stream in parts(batch):
        with mx.stream(stream), host.noted() as own:
            head, hidden_ND, targets_N, where_N = _at_targets(model, part, None)
            losses.append(cross_entropy.each(head, mx.stop_gradient(hidden_ND), targets_N, chunk))
        notes.append(own)
        row_N, position_N = np.divmod(where_N, part.tokens_BT.shape[1] - 1)
        where[rows[row_N] * (width - 1) + position_N] = sum(each.size for each in losses[:-1]) + np.arange(len(where_N))
    host.settle(notes)
    return mx.concatenate(losses)[mx.array(where)].reshape(height, width - 1)


def shift(batch: Batch) -> tuple[mx.array, mx.array, mx.array, mx.array | None]:
    """inputs, targets, the targets' mask, the inputs' segments (None when no row holds two documents). The only shift in forge."""
    tokens, segments = batch.tokens_BT, batch.segments_BT
    packed = segments.max(initial=0) > 1
    return mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:]), mx.array(batch.mask_BT[:, 1:]), mx.array(segments[:, :-1]) if packed else None


def _at_targets(model: nn.Module, batch: Batch, noise: Noise | None) -> tuple[Head, mx.array, mx.array, np.ndarray]:
    """The head, the hidden states that go into it where there is a target, the targets, and where in the row-major BT they are."""
    inputs_BT, targets_BT, _, segments_BT = shift(batch)
    hidden_BTD, head = hidden_states(model, inputs_BT, segments_BT, noise)
    where_N = np.flatnonzero(batch.mask_BT[:, 1:])
    hidden_ND, targets_N = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), targets_BT.reshape(-1)
    if where_N.size < targets_N.size:
        hidden_ND, targets_N = hidden_ND[mx.array(where_N)], targets_N[mx.array(where_N)]
    return head, hidden_ND, targets_N, where_N


def _neftune(batch: Batch, alpha: float) -> Noise:
    tokens_B = np.maximum(np.count_nonzero(batch.segments_BT[:, :-1], axis=1), 1)

    def noise(embeddings_BTD: mx.array) -> mx.array:
        scale_B11 = mx.array(alpha / np.sqrt(tokens_B * embeddings_BTD.shape[-1]), dtype=mx.float32)[:, None, None]
        return (mx.random.uniform(-1, 1, embeddings_BTD.shape) * scale_B11).astype(embeddings_BTD.dtype)

    return noise
