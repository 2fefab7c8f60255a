"""The gradients of an objective on a batch, on the CPU from parts of its rows side by side (forge.training.streams).

Sums over targets, never means, so that parts and micro-batches add up whatever their sizes. On the same machine the same numbers each
time: the rows of a part do not depend on timing. Each part holds gradients of its own until they are added.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from forge.arrays import flat
from forge.spec import Batch
from forge.training import host
from forge.training.isolation import formulated
from forge.training.objectives import shift
from forge.training.positions import by_positions
from forge.training.streams import over_lanes, parts

Parts = tuple[mx.array, mx.array, Mapping[str, mx.array], Any]


class Gradients:
    """Called with a batch: (loss_sum, count, sums, gradients), all yet to be evaluated; gradients as the model's tree of trainable weights.

    An objective that compares rows says in an attribute `rows_together` how many that stand one after another belong together; `together`
    tells that to whoever deals rows out.
    """

    def __init__(self, model: nn.Module, objective: Callable[..., Any]):
        self._model = model
        self._value_and_grad = nn.value_and_grad(model, objective)
        self.together: int = getattr(getattr(objective, "func", objective), "rows_together", 1)

    def __call__(self, batch: Batch) -> Parts:
        notes: list[list[host.Note]] = []
        (loss_sum, count, sums, gradients), *others = [
            self._of(part, stream, notes) for part, _, stream in parts(batch, self.together, spread=True)
        ]
        host.settle(notes)
        for loss, number, more, gradient in others:
            loss_sum, count, sums = loss_sum + loss, count + number, tree_map(mx.add, sums, more)
            gradients = over_lanes(mx.add, gradients, gradient)
        return loss_sum, count, sums, gradients

    def _of(self, batch: Batch, stream: mx.Stream, notes: list[list[host.Note]]) -> Parts:
        with mx.stream(stream), formulated(shift(batch)[3]), by_positions(), host.noted() as own:
            (loss_sum, (count, sums)), gradients = self._value_and_grad(self._model, batch)
        notes.append(own)
        return loss_sum, count, dict(sums), gradients


def accumulate(gradients_of: Callable[[Batch], Parts], batches: Sequence[Batch]) -> Parts:
    """The sums over micro-batches of losses, target counts, further sums, and gradients of the summed loss. Never means.

    Several micro-batches' gradients are added in fp32: a 16-bit sum would stand still once it is some hundred times what is added.
    """
    loss_sum, count, sums, gradients = gradients_of(batches[0])
    if len(batches) > 1:
        gradients = tree_map(lambda g: g.astype(mx.float32), gradients)
    for batch in batches[1:]:
        mx.eval(loss_sum, count, sums, gradients)  # frees one graph before the next is built
        loss, number, more, gradient = gradients_of(batch)
        loss_sum, count = loss_sum + loss, count + number
        sums = tree_map(mx.add, sums, more)
        gradients = over_lanes(mx.add, gradients, gradient)
    return loss_sum, count, sums, gradients


def normalise(gradients: Any, count: mx.array, clip_norm: float) -> tuple[Any, mx.array]:
    """Gradients of the mean loss over `count` targets, scaled down to a global norm of at most `clip_norm`; and their norm before.

    In fp32: fp16 holds no mean gradient below 6e-8.
    """
    count = mx.maximum(count, 1)  # a step without targets must not put 0/0 into the weights
    squares = over_lanes(lambda gradient: mx.square(gradient.astype(mx.float32)).sum(), gradients)
    norm = mx.sqrt(mx.stack(list(flat(squares).values())).sum()) / count
    # Scaling by a norm that is NaN would make every gradient NaN; by 0 those alone that are not finite, and they can be named.
    scale = mx.where(mx.isfinite(norm), mx.minimum(1.0, clip_norm / (norm + 1e-6)) / count, 0.0)
    return over_lanes(lambda gradient: gradient.astype(mx.float32) * scale, gradients), norm
