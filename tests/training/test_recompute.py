"""Computing blocks again changes memory and time, and nothing else: not the gradients, not the random numbers, not the classes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import forge  # noqa: F401
from forge.arrays import flat
from forge.models import adapters
from forge.spec import Batch
from forge.training.gradients import Gradients
from forge.training.objectives import causal_lm
from forge.training.recompute import recomputed

VOCAB = 23
KNOBS: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.5, "targets": ["linear", "embeddings"], "layers": None}
ADAPTERS = {
    "full": adapters.full,
    "lora": partial(adapters.lora, **KNOBS),
    "dora": partial(adapters.dora, **KNOBS, norms=True),
    "last": partial(adapters.last_layers, layers=1),
}


def batch(length: int, packed: bool) -> Batch:
    """Four rows of three documents, or of one."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (4, length)).astype(np.int32)
    segments = np.sort(np.arange(length) % 3 + 1) if packed else np.ones(length)
    return Batch(tokens, np.ones_like(tokens, dtype=bool), np.tile(segments.astype(np.int32), (4, 1)), ("row",) * 4)


def gradients(model: nn.Module, rows: Batch, recompute: bool) -> tuple[dict[str, np.ndarray], float]:
    """The loss and gradients of a step as the engine takes it, and the next random number."""
    model.train()
    mx.random.seed(1)
    with recomputed(model) if recompute else nullcontext():
        loss, _, _, found = Gradients(model, causal_lm)(rows)
    mx.eval(loss, found)
    return {name: np.array(value) for name, value in {"loss": loss, **flat(found)}.items()}, mx.random.uniform().item()


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(value).max()), err_msg=name)


@pytest.mark.parametrize("length", [16, 200])  # 200: several blocks of queries
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_gradients_are_those_of_the_plain_pass(make_model: Callable[..., Any], adapter: str, packed: bool, length: int) -> None:
    """With dropout of one half in LoRA and DoRA: other masks the second time would give other gradients. On a CPU, the rows go on two
    streams."""
    model, rows = make_model(ADAPTERS[adapter]), batch(length, packed)
    (plain, following), (again, afterwards) = gradients(model, rows, False), gradients(model, rows, True)
    assert_equal(again, plain)
    assert afterwards == following
    assert max(np.abs(value).max() for name, value in plain.items() if name != "loss") > 0.01


class Noisy(nn.Module):
    """A block that draws in several ways, and gives more than one array."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.ones(5)

    def __call__(self, x: mx.array, *, scale: mx.array) -> tuple[mx.array, mx.array]:
        draws = mx.random.uniform(shape=(5,)) + mx.random.normal((5,)) * mx.random.bernoulli(0.5, (5,))
        return x * self.weight * draws * scale, mx.random.randint(0, 9, (5,)) + mx.random.gumbel((5,))


class Other(Noisy):
    """Has the call of its parent."""


class Mixed(nn.Module):
    """Two classes of blocks, and a trained weight around them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.scale = [Noisy(), Other(), Noisy()], mx.array(2.0)

    def __call__(self, x: mx.array) -> mx.array:
        for block in self.layers:
            x, noise = block(x, scale=self.scale)
            x = x + noise
        return x.sum()


def test_every_class_of_block_draws_the_same_numbers_again() -> None:
    def run(recompute: bool) -> dict[str, np.ndarray]:
        model = Mixed()
        model.layers[1].freeze()
        mx.random.seed(0)
        with recomputed(model) if recompute else nullcontext():
            value, found = nn.value_and_grad(model, lambda: model(mx.ones(5)))()
        return {name: np.array(array) for name, array in {"value": value, **flat(found)}.items()}

    plain = run(False)
    assert set(plain) == {"value", "scale", "layers.0.weight", "layers.2.weight"}
    assert_equal(run(True), plain)


def test_each_block_is_computed_twice_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    usual = Noisy.__call__

    def counted(block: Noisy, x: mx.array, **rest: Any) -> Any:
        calls.append(type(block).__name__)
        return usual(block, x, **rest)

    monkeypatch.setattr(Noisy, "__call__", counted)
    model = Mixed()
    with recomputed(model):
        mx.eval(model(mx.ones(5)))
        assert calls == ["Noisy", "Other", "Noisy"]
        nn.value_and_grad(model, lambda: model(mx.ones(5)))()
    assert calls == ["Noisy", "Other", "Noisy"] * 2 + ["Noisy", "Other", "Noisy"]


def test_the_classes_are_as_before_also_after_an_error() -> None:
    usual = Noisy.__call__
    with pytest.raises(ZeroDivisionError), recomputed(Mixed()):
        assert Noisy.__call__ is not usual and "__call__" in vars(Other)
        raise ZeroDivisionError
    assert Noisy.__call__ is usual and "__call__" not in vars(Other)


def test_an_error_inside_a_block_leaves_the_weights_and_the_random_functions() -> None:
    model, sampler = Mixed(), mx.random.uniform
    weights = flat(model.parameters())
    with recomputed(model), pytest.raises(ValueError, match="broadcast"):
        nn.value_and_grad(model, lambda: model(mx.ones(4)))()
    assert mx.random.uniform is sampler
    assert all(np.array_equal(np.array(value), np.array(weights[name])) for name, value in flat(model.parameters()).items())


def test_attention_is_computed_again_by_what_stood_there_the_first_time(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """forge.training.attention's stand-in knows the batch's segments: one of another batch would hide the wrong keys."""
    seen: list[str] = []
    usual = mx.fast.scaled_dot_product_attention

    @contextmanager
    def named(name: str) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(mx.fast, "scaled_dot_product_attention", lambda *a, **k: seen.append(name) or usual(*a, **k))
            yield

    model = make_model()

    def loss() -> mx.array:
        with named("inner"):
            return model(mx.array([[1, 2, 3]])).sum()

    with recomputed(model), named("outer"):
        nn.value_and_grad(model, loss)()
    assert seen == ["inner"] * 4  # two blocks, twice


def test_the_model_does_not_hold_on_to_the_backward_pass(make_model: Callable[..., Any]) -> None:
    """Its weights are there: evaluating them computes nothing, whatever became of the gradients."""
    model, rows = make_model(), batch(200, packed=True)
    before = flat(model.parameters())
    with recomputed(model):
        taken = Gradients(model, causal_lm)(rows)
    del taken
    mx.reset_peak_memory()
    active = mx.get_active_memory()
    mx.eval(model.parameters())
    assert mx.get_peak_memory() - active < 4 * 200 * 16 * 4  # not even one array of hidden states
    assert all(np.array_equal(np.array(value), np.array(before[name])) for name, value in flat(model.parameters()).items())


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_peak_memory_falls(adapter: str) -> None:
    """Sixteen blocks of which each keeps some twenty arrays of the size of its input, and with recomputation that one."""
    from mlx_lm.models import llama

    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": VOCAB}
    model, rows = llama.Model(llama.ModelArgs(model_type="llama", num_hidden_layers=16, **sizes)), batch(128, packed=True)
    ADAPTERS[adapter](model)
    mx.eval(model.parameters())

    def peak(recompute: bool) -> int:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        gradients(model, rows, recompute)
        return mx.get_peak_memory() - before

    assert peak(True) < 0.6 * peak(False)
