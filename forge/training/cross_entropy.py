"""Cross-entropy and the output projection in one, a chunk of positions at a time, so that the logits of all positions never exist.

For training, each chunk's gradient is computed with its loss (as in Liger, arXiv 2410.10989): logits are made once, and what stays is the
gradient of hidden states and head. Without gradients nothing stays but the losses. Memory: two to four times chunk x vocabulary in fp32.

Letters: N positions, C of them in a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_map

from forge.arrays import flat
from forge.training.ends import Head
from forge.training.formulation import differentiable, exp
from forge.training.streams import crew


@dataclass(frozen=True)
class Terms:
    """What is added up for each target, in nats.

    (1 - label_smoothing) · cross-entropy + label_smoothing · mean over V of -log p + z_loss · (log of the sum of exp(logits))²;
    smoothing as in arXiv 1512.00567, z-loss as in PaLM (arXiv 2204.02311).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0


def summed(head: Head, hidden_ND: mx.array, targets_N: mx.array, chunk: int, terms: Terms) -> tuple[mx.array, mx.array, mx.array]:
    """The sums of all terms, of the plain cross-entropy, and of z-loss. The first alone has a gradient."""
    if targets_N.size == 0:
        return mx.array(0.0), mx.array(0.0), mx.array(0.0)

    streams = crew()

    def loss(weights: Any, hidden_ND: mx.array) -> Any:
        """One chunk's logits at a time on each stream."""
        parts: list[mx.array] = []
        totals: list[Any] = []  # of each stream: the sums, and the gradient of the weights
        for number, (x_CD, t_C) in enumerate(_chunks(hidden_ND, targets_N, chunk)):
            lane = number % len(streams)
            with mx.stream(streams[lane]):
                if lane < len(totals):
                    x_CD = mx.depends([x_CD], [parts[-len(streams)], *flat(totals[lane][1]).values()])[0]
                sums, (gradient, part) = _with_gradients(head, weights, x_CD, t_C, terms)
                own = sums, tree_map(lambda g: g.astype(mx.float32), gradient)  # as the sum over all positions at once would be
                totals[lane:] = [tree_map(mx.add, totals[lane], own) if lane < len(totals) else own, *totals[lane + 1 :]]
            parts.append(part)
        sums, gradient = reduce(lambda a, b: tree_map(mx.add, a, b), totals)
        return sums, tree_map(lambda g, w: g.astype(w.dtype), gradient, weights), mx.concatenate(parts) if len(parts) > 1 else parts[0]

    def loss_vjp(_: Any, cotangents: Any, outputs: Any) -> Any:
        scale = cotangents[0][0]
        return tree_map(lambda g: g * scale.astype(g.dtype), outputs[1:])

    found: Any = differentiable(loss, loss_vjp)(head.module.trainable_parameters(), hidden_ND)
    return cast(tuple[mx.array, mx.array, mx.array], found[0])


def each(head: Head, hidden_ND: mx.array, targets_N: mx.array, chunk: int) -> mx.array:
    """losses_N: the plain cross-entropy of each target, in nats."""
    losses: list[mx.array] = []
    for x_CD, t_C in _chunks(hidden_ND, targets_N, chunk):
        if losses:
            x_CD = mx.depends([x_CD], [losses[-1]])[0]
        logits_CV = head(x_CD).astype(mx.float32)
        losses.append(_softmax(logits_CV)[0] - _at(logits_CV, t_C))
    return mx.concatenate(losses) if losses else mx.zeros((0,))


def _chunks(hidden_ND: mx.array, targets_N: mx.array, chunk: int) -> Iterator[tuple[mx.array, mx.array]]:
    for start in range(0, targets_N.size, chunk):
        yield hidden_ND[start : start + chunk], targets_N[start : start + chunk]


def _with_gradients(head: Head, weights: Any, x_CD: mx.array, t_C: mx.array, terms: Terms) -> Any:
    """(the sums of the chunk, (gradient of the head's weights, of x_CD))."""

    @mx.custom_function
    def of_logits(logits_CV: mx.array) -> Any:
        return _terms(logits_CV, t_C, terms)

    @of_logits.vjp
    def of_logits_vjp(_: Any, __: Any, outputs: Any) -> mx.array:
        gradient: mx.array = outputs[3]  # its cotangent is 1: the loss is what is differentiated here
        return gradient

    def chunk(x_CD: mx.array, weights: Any) -> Any:
        found: Any = of_logits(head.applied(weights, x_CD))
        return found[:3]

    if not weights:
        sums, gradient = mx.value_and_grad(chunk)(x_CD, weights)
        return sums, (weights, gradient)
    sums, (gradient, weights_gradient) = mx.value_and_grad(chunk, argnums=(0, 1))(x_CD, weights)
    return sums, (weights_gradient, gradient)


def _terms(logits_CV: mx.array, t_C: mx.array, terms: Terms) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The three sums of a chunk, and the gradient of the first by the logits: p (1 + 2 z lse) - smoothed targets."""
    dtype, vocabulary = logits_CV.dtype, logits_CV.shape[-1]
    logits_CV = logits_CV.astype(mx.float32)
    smoothing = terms.label_smoothing
    lse_C, p_CV, inverse_C = _softmax(logits_CV)
    target_C = _at(logits_CV, t_C)
    cross_entropy, z_loss = (lse_C - target_C).sum(), terms.z_loss * mx.square(lse_C).sum()
    weight_C = 1 + 2 * terms.z_loss * lse_C
    loss, gradient_CV = cross_entropy + z_loss, p_CV * (weight_C * inverse_C)[:, None]
    if smoothing:
        loss = loss + smoothing * (target_C - logits_CV.mean(-1)).sum()
        gradient_CV = gradient_CV - smoothing / vocabulary
    # Computed anew: reading it out of gradient_CV would keep that from being written in place.
    at_target_C = exp(target_C - lse_C) * weight_C - smoothing / vocabulary - (1 - smoothing)
    gradient_CV = mx.put_along_axis(gradient_CV, t_C[:, None], at_target_C[:, None], axis=-1)
    return loss, cross_entropy, z_loss, gradient_CV.astype(dtype)


def _softmax(logits_CV: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """(log-sum-exp, p, 1/s) where p / s are the probabilities."""
    max_C = logits_CV.max(-1)
    p_CV = exp(logits_CV - max_C[:, None])
    sum_C = p_CV.sum(-1)
    return mx.log(sum_C) + max_C, p_CV, 1 / sum_C


def _at(logits_CV: mx.array, t_C: mx.array) -> mx.array:
    return mx.take_along_axis(logits_CV, t_C[:, None], axis=-1)[:, 0]
