"""The update rule: gradients to new weights, by groups of weights, with fp32 masters and an average of the weights where asked for.

Everything is computed in fp32. Memory besides the model: the optimizer's state, in fp32; 4 bytes a weight for masters of 16-bit weights;
4 for the average; nothing for frozen weights. On two CPU cores AdamW takes 31 ms for 10M weights, and the average 8 more. On a GPU the
update is compiled, to fuse its passes over memory; a CPU would need a compiler at run time for that.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_unflatten

from forge.arrays import flat, scalar
from forge.errors import ConfigError, TrainingError
from forge.models.roles import roles
from forge.training.formulation import on_cpu
from forge.training.optim import Muon, peak_of
from forge.training.streams import lanes, on
from forge.values import Role

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class _Group:
    """Weights, by name, that one optimizer moves at `factor` times the learning rate."""

    optimizer: optimizers.Optimizer
    factor: float
    names: list[str]


class Update:
    """What one optimizer step does to `model`, whose weights are those that training starts from.

    `factory` gives a new mlx optimizer. Weights whose role is in `no_decay` get one with weight_decay 0; the learning rate of a role in
    `lr_factors` is multiplied, and at factor 0 its weights stay as they are. `master_weights`: 16-bit weights are the rounded copy of
    fp32 ones; without, each step is rounded, and small ones are lost. `ema`: the decay d of an average that follows each step t = 1, 2, …
    by average = d_t · average + (1 - d_t) · weights, with d_t = min(d, (1 + t) / (10 + t)), so that the first weights are soon forgotten
    (Polyak & Juditsky 1992; the warm-up is TensorFlow's).
    Raises ConfigError where the optimizer has no learning rate of its own, or the factors leave nothing to train or name what is not.
    """

    def __init__(
        self,
        model: nn.Module,
        factory: Callable[[], optimizers.Optimizer],
        *,
        no_decay: Collection[Role] = (),
        lr_factors: Mapping[Role, float] | None = None,
        master_weights: bool = True,
        ema: float | None = None,
    ):
        self.peak = peak_of(factory())
        weights = flat(model.trainable_parameters())
        role_of = roles(model)
        _require_trained(role_of.values(), lr_factors or {})
        self._groups = _groups(weights, role_of, factory, no_decay, lr_factors or {})
        moved = {name: weights[name] for group in self._groups for name in group.names}
        self._types = {name: weight.dtype for name, weight in moved.items()}
        wide = {name: weight.astype(mx.float32) for name, weight in moved.items()}
        for group in self._groups:
            group.optimizer.init({name: wide[name] for name in group.names})
        self._masters, self._decay, self._steps = master_weights, ema, 0
        self._average = wide if ema is not None else {}
        # What can't be had back from the model: masters, and all weights while it may hold their average.
        exact = wide if master_weights else moved
        self._kept = {name: weight for name, weight in exact.items() if ema is not None or weight.dtype != self._types[name]}
        self._latest: Arrays = {}
        self._states = [group.optimizer.state for group in self._groups]
        self._advance: Callable[..., tuple[Arrays, Arrays]] = self._formula
        if not on_cpu():
            self._advance = mx.compile(self._formula, inputs=self._states, outputs=self._states)

    def apply(self, model: nn.Module, gradients: Any, lr: float) -> None:
        """One step at the learning rate `lr`. Lazy: evaluate pending() afterwards."""
        given, held = flat(gradients), flat(model.trainable_parameters())
        gradients = {name: given[name] for name in self._types}
        weights = {name: self._kept.get(name, held[name]) for name in self._types}
        for group in self._groups:
            group.optimizer.learning_rate = lr * group.factor
        self._steps += 1
        decay = min(self._decay or 0.0, (1 + self._steps) / (10 + self._steps))
        new, self._average = self._advance(gradients, weights, self._average, mx.array(1 - decay))
        self._kept = {name: new[name] for name in self._kept}
        self._latest = self._put(model, new)

    def pending(self) -> Any:
        """All that apply() left to be computed, for mx.eval: the model's weights too."""
        return self._states, self._kept, self._average, self._latest

    @property
    def arrays(self) -> Arrays:
        """What has to be saved to go on exactly, besides the weights that the model holds within evaluated(). By dotted name."""
        states = {f"optimizer.{name}": value for name, value in flat(self._states).items()}
        kept = {f"weights.{name}": weight for name, weight in self._kept.items()}
        average = {f"average.{name}": weight for name, weight in self._average.items()}
        return {"steps": mx.array(self._steps), **states, **kept, **average}

    def restore(self, model: nn.Module, arrays: Mapping[str, mx.array]) -> None:
        """Go on from `arrays`, and from the weights that were saved with them, which `model` holds. Raises TrainingError."""
        _require_same(self.arrays, arrays)
        self._steps = int(scalar(arrays["steps"]))
        for number, state in enumerate(self._states):
            _fill(state, arrays, f"optimizer.{number}")
        self._kept = {name: arrays[f"weights.{name}"] for name in self._kept}
        self._average = {name: arrays[f"average.{name}"] for name in self._average}
        self._latest = self._put(model, self._kept)

    @contextmanager
    def evaluated(self, model: nn.Module) -> Iterator[None]:
        """Within, the model holds the weights that are evaluated and saved: the average's, where there is one. Not for apply()."""
        self._put(model, self._average)
        try:
            yield
        finally:
            if self._average:
                self._put(model, self._kept)

    def _formula(self, gradients: Arrays, weights: Arrays, average: Arrays, share: mx.array) -> tuple[Arrays, Arrays]:
        """The new weights (rounded, where there are no masters), and the average moved towards them by `share`."""
        new: Arrays = {}
        steps = [group.optimizer.step for group in self._groups]
        for stream, lane in lanes(weights):
            with on(stream):
                for group, step in zip(self._groups, steps, strict=True):
                    names = sorted(set(group.names) & set(lane))
                    wide = ({name: tree[name].astype(mx.float32) for name in names} for tree in (gradients, weights))
                    group.optimizer.state["step"] = step  # it is the same step on each lane
                    new |= group.optimizer.apply_gradients(*wide)
        if not self._masters:
            new = {name: weight.astype(self._types[name]) for name, weight in new.items()}
        return new, {name: mean + share * (new[name] - mean) for name, mean in average.items()}

    def _put(self, model: nn.Module, weights: Arrays) -> Arrays:
        rounded = {name: weight.astype(self._types[name]) for name, weight in weights.items()}
        if rounded:
            model.update(tree_unflatten(list(rounded.items())))
        return rounded


def _require_trained(found: Collection[Role], lr_factors: Mapping[Role, float]) -> None:
    trained = sorted(set(found))
    if unknown := sorted(set(lr_factors) - set(trained)):
        raise ConfigError(f"trainer.lr_factors: nothing that is trained is a {' or '.join(unknown)} (there are: {', '.join(trained)})")
    if all(lr_factors.get(role, 1.0) == 0 for role in trained):
        raise ConfigError(f"trainer.lr_factors: all that is trained ({', '.join(trained)}) has factor 0; leave one above")


def _groups(
    weights: Mapping[str, mx.array],
    role_of: Mapping[str, Role],
    factory: Callable[[], optimizers.Optimizer],
    no_decay: Collection[Role],
    lr_factors: Mapping[Role, float],
) -> list[_Group]:
    """One for each of decays or not, factor, and matrix or not where that matters. Sorted, so that a saved state finds its own."""
    sample = factory()
    members: dict[tuple[bool, float, bool], list[str]] = {}
    for name, weight in sorted(weights.items()):
        role = role_of[name]
        own = not isinstance(sample, Muon) or sample.takes(role, weight)
        members.setdefault((role not in no_decay, lr_factors.get(role, 1.0), own), []).append(name)
    return [_group(factory(), *key, names) for key, names in sorted(members.items()) if key[1] > 0]


def _group(optimizer: optimizers.Optimizer, decays: bool, factor: float, own: bool, names: list[str]) -> _Group:
    if isinstance(optimizer, Muon) and not own:
        factor, optimizer = factor * optimizer.rest_factor, optimizer.rest
    if not decays and hasattr(optimizer, "weight_decay"):
        optimizer.weight_decay = 0.0
    return _Group(optimizer, factor, names)


def _fill(state: dict[str, Any], arrays: Mapping[str, mx.array], prefix: str) -> None:
    """In place: a compiled step knows these very dicts."""
    for key, value in state.items():
        if isinstance(value, dict):
            _fill(value, arrays, f"{prefix}.{key}")
        else:
            state[key] = arrays[f"{prefix}.{key}"]


def _require_same(expected: Mapping[str, mx.array], found: Mapping[str, mx.array]) -> None:
    """Raises TrainingError, which names the first of what doesn't fit."""
    kinds, saved = ({name: (value.shape, value.dtype) for name, value in arrays.items()} for arrays in (expected, found))
    for name in sorted(kinds.keys() | saved.keys()):
        if kinds.get(name) != saved.get(name):
            raise TrainingError(
                f"the saved state of training has {_described(saved.get(name))} for {name}, and this run {_described(kinds.get(name))}: "
                "model, adapter, optimizer or the trainer's settings of weights have changed; start afresh with resume=null"
            )


def _described(kind: tuple[tuple[int, ...], mx.Dtype] | None) -> str:
    return f"{str(kind[1]).rpartition('.')[2]} {kind[0]}" if kind else "nothing"
