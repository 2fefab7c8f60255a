"""load(): the base in the type asked for, with its adapter in place."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.optimizers import Adam

from forge import models
from forge.arrays import flat
from forge.errors import ModelError
from forge.models import adapters

TOKENS = mx.array([[1, 5, 3, 8, 2, 9]])
KNOBS: dict[str, Any] = {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": "linear", "layers": None}


def test_loading_with_nothing_to_train_is_an_error(make_tiny_model: Callable[..., models.Loaded]) -> None:
    with pytest.raises(ModelError, match="0 trainable parameters"):
        models.load(lambda *_: make_tiny_model(), lambda model: model.freeze() and None, lambda: iter(()), 0, lambda uri: (None, ""))


def test_loading_gives_one_adapter_a_seed(make_tiny_model: Callable[..., models.Loaded]) -> None:
    """Whatever was drawn before. The base models are made beforehand: making one from scratch sets a seed itself."""
    bases = [make_tiny_model() for _ in range(3)]

    def weights(base: models.Loaded, seed: int, before: int) -> dict[str, np.ndarray]:
        mx.random.seed(before)
        models.load(lambda *_: base, partial(adapters.lora, **KNOBS), lambda: iter(()), seed, lambda uri: (None, ""))
        return {name: np.array(value) for name, value in flat(base.model.trainable_parameters()).items()}

    one, same, other = weights(bases[0], 0, before=5), weights(bases[1], 0, before=6), weights(bases[2], 1, before=5)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("asked", "base"), [("auto", mx.float32), ("float32", mx.float32), ("bfloat16", mx.bfloat16), ("float16", mx.float16)]
)
@pytest.mark.parametrize("adapter", [adapters.lora, adapters.dora])
def test_the_base_has_the_type_asked_for_and_the_adapter_fp32(
    make_tiny_model: Callable[..., models.Loaded], adapter: Callable[..., None], asked: Any, base: mx.Dtype
) -> None:
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("auto is the base's own type on a GPU")
    made = make_tiny_model()
    made.model.set_dtype(mx.bfloat16)
    wanted = partial(adapter, **{**KNOBS, "targets": ["linear", "embeddings"]})
    model = models.load(lambda *_: made, wanted, lambda: iter(()), 0, lambda uri: (None, ""), dtype=asked).model
    own = set(flat(model.trainable_parameters()))
    assert {value.dtype for name, value in flat(model.parameters()).items() if name not in own} == {base}
    assert {value.dtype for name, value in flat(model.parameters()).items() if name in own} == {mx.float32}
    assert model(TOKENS).dtype == base
    losses = train(model, 5)
    assert losses[-1] < losses[0]


def test_weights_that_an_architecture_keeps_are_not_cast_to_16_bits() -> None:
    """Such as the correction of a router's scores. fp32 takes all."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.cast = mx.ones(2), mx.ones(2)

        @property
        def cast_predicate(self) -> Callable[[str], bool]:
            return lambda name: name != "kept"

    model = Model()
    models.cast(model, mx.float16)
    assert (model.kept.dtype, model.cast.dtype) == (mx.float32, mx.float16)


def train(model: nn.Module, steps: int) -> list[float]:
    """The losses of that many steps of Adam on TOKENS."""
    optimizer, losses = Adam(learning_rate=1e-2), []

    def loss() -> mx.array:
        return nn.losses.cross_entropy(model(TOKENS[:, :-1]).astype(mx.float32), TOKENS[:, 1:]).mean()

    for _ in range(steps):
        value, gradients = nn.value_and_grad(model, loss)()
        optimizer.update(model, gradients)
        losses.append(value.item())
    return losses
