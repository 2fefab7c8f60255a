"""The gradients of an objective on a batch, on the CPU from parts of its rows side by side (forge.training.streams).

Sums over targets, never means, so that parts and micro-batches add up whatever their sizes. On the same machine the same numbers each
time: the rows of a part do not depend on timing. Each part holds gradients of its own until they are added.
"""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

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
