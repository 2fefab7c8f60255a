import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
import pytest
from mlx.utils import tree_map

from forge.arrays import flat, load
from forge.errors import ConfigError, TrainingError
from forge.training.optim import adafactor, adam, adamw, lion, muon, sgd
from forge.training.update import Update

ADAM = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
FACTORIES: dict[str, Callable[[], optimizers.Optimizer]] = {
    "adam": lambda: adam(lr=0.05, **ADAM),
    "adamw": lambda: adamw(lr=0.05, **ADAM, weight_decay=0.1),
    "sgd": lambda: sgd(lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    "lion": lambda: lion(lr=0.01, beta1=0.9, beta2=0.99, weight_decay=0.1),
    "adafactor": lambda: adafactor(lr=0.05, beta1=0.9, decay_rate=0.8, clip_threshold=1.0, weight_decay=0.1, scale_parameter=False),
    "muon": lambda: muon(lr=0.05, momentum=0.95, weight_decay=0.1, newton_schulz_steps=5, adamw_factor=1.0, **ADAM),
    "mlx's": lambda: optimizers.AdamW(learning_rate=0.05),
}


def plain_sgd() -> optimizers.Optimizer:
    return optimizers.SGD(learning_rate=1.0)


class Model(nn.Module):
    """Predicts the next of seven tokens from this one: one weight or more of every role that is no adapter's."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        mx.random.seed(seed)
        self.table = nn.Embedding(7, 4)
        self.layers = [nn.Linear(4, 4), nn.Linear(4, 4, bias=False)]
        self.norm, self.head = nn.RMSNorm(4), nn.Linear(4, 7)

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.table(ids)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.norm(x))


ROLES = {
    "table.weight": "embedding",
    "layers.0.weight": "matrix",
    "layers.0.bias": "bias",
    "layers.1.weight": "matrix",
    "norm.weight": "norm",
    "head.weight": "head",
    "head.bias": "bias",
}


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies, bf16 in fp32."""
    return {name: np.array(weight.astype(mx.float32)) for name, weight in flat(model.trainable_parameters()).items()}


def constant_gradients(model: nn.Module, value: float) -> Any:
    return tree_map(lambda weight: mx.full(weight.shape, value, weight.dtype), model.trainable_parameters())


def train(model: nn.Module, update: Update, steps: int, lr: float | None = None) -> list[float]:
    """The losses of learning that each token is followed by the third from it."""

    def loss(model: nn.Module) -> mx.array:
        ids = mx.arange(7)
        return nn.losses.cross_entropy(model(ids).astype(mx.float32), (ids + 3) % 7).mean()

    losses = []
    for _ in range(steps):
        value, gradients = nn.value_and_grad(model, loss)(model)
        update.apply(model, gradients, update.peak if lr is None else lr)
        mx.eval(value, update.pending())
        losses.append(value.item())
    return losses


@pytest.mark.parametrize("name", FACTORIES)
def test_every_optimizer_learns(name: str) -> None:
    model = Model()
    losses = train(model, Update(model, FACTORIES[name], no_decay=["norm", "bias", "embedding"]), 60)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("no_decay", [["norm", "bias", "embedding"], ["head"], []])
def test_decay_leaves_the_roles_alone_that_are_named(no_decay: list[Any]) -> None:
    """AdamW without a gradient: every other weight is multiplied by 1 - lr · decay = 1 - 0.5 · 0.2."""
    model = Model()
    before = weights_of(model)
    update = Update(model, lambda: adamw(lr=0.5, **ADAM, weight_decay=0.2), no_decay=no_decay)
    update.apply(model, constant_gradients(model, 0.0), lr=0.5)
    for name, weight in weights_of(model).items():
        np.testing.assert_allclose(weight, before[name] * (1.0 if ROLES[name] in no_decay else 0.9), rtol=1e-6, err_msg=name)


def test_rates_are_multiplied_by_role_and_nought_is_frozen() -> None:
    """SGD with the gradient 1 moves a weight by lr · factor."""
    model = Model()
    before = weights_of(model)
    update = Update(model, plain_sgd, lr_factors={"embedding": 0.5, "matrix": 2.0, "norm": 0.0})
    update.apply(model, constant_gradients(model, 1.0), lr=0.1)
    moved = {"embedding": 0.05, "matrix": 0.2, "norm": 0.0, "bias": 0.1, "head": 0.1}
    for name, weight in weights_of(model).items():
        np.testing.assert_allclose(before[name] - weight, moved[ROLES[name]], atol=1e-6, err_msg=name)
    assert not any("norm.weight" in name for name in update.arrays)


def test_muon_moves_matrices_and_leaves_the_rest_to_adamw_at_its_own_factor() -> None:
    """AdamW's first step is lr · adamw_factor · sign(g), with the factor of the role on top; Muon's is in one direction."""
    model = Model()
    before = weights_of(model)
    factory = lambda: muon(lr=0.5, momentum=0.9, weight_decay=0.0, newton_schulz_steps=5, adamw_factor=0.2, **ADAM)  # noqa: E731
    update = Update(model, factory, lr_factors={"head": 3.0})
    update.apply(model, constant_gradients(model, 1.0), lr=0.1)
    for name, weight in weights_of(model).items():
        if ROLES[name] == "matrix":  # ones (4 x 4) are 4 u vᵀ; 0.1 · 0.2 · √4 · s / 4, where s, near 1, is the singular value that is left
            np.testing.assert_allclose(before[name] - weight, 0.01, rtol=0.35, err_msg=name)
            assert np.ptp(before[name] - weight) < 1e-6
        else:
            np.testing.assert_allclose(before[name] - weight, 0.06 if name == "head.weight" else 0.02, rtol=1e-4, err_msg=name)
    slots = {name.rpartition(".")[2] for name in update.arrays if "layers.1" in name}
    assert slots == {"v"}


def test_mlx_s_own_optimizer_takes_the_same_steps_as_without_us() -> None:
    ours, theirs, optimizer = Model(), Model(), optimizers.AdamW(learning_rate=0.05)
    update = Update(ours, lambda: optimizers.AdamW(learning_rate=0.05))
    for value in (0.3, -0.1, 0.2):
        update.apply(ours, constant_gradients(ours, value), lr=0.05)
        optimizer.update(theirs, constant_gradients(theirs, value))
    for name, weight in weights_of(ours).items():
        np.testing.assert_array_equal(weight, weights_of(theirs)[name], err_msg=name)


def one_weight(value: float, dtype: mx.Dtype) -> Model:
    """All of them set to one value."""
    model = Model()
    model.update(tree_map(lambda weight: mx.full(weight.shape, value, dtype), model.parameters()))
    return model


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("master_weights", "expected"), [(True, 0.99), (False, 1.0)])
def test_masters_keep_what_sixteen_bits_would_lose(dtype: mx.Dtype, master_weights: bool, expected: float) -> None:
    """100 steps of 1e-4. Below 1 the next number is 0.0039 away in bf16 and 0.0005 in fp16, so that each step alone is rounded off."""
    model = one_weight(1.0, dtype)
    update = Update(model, plain_sgd, master_weights=master_weights)
    for _ in range(100):
        update.apply(model, constant_gradients(model, 1.0), lr=1e-4)
    weight = flat(model.trainable_parameters())["head.weight"]
    assert weight.dtype == dtype
    assert weight[0, 0].item() == mx.array(expected, dtype).item()
    masters = [value for name, value in update.arrays.items() if name == "weights.head.weight"]
    assert [value[0, 0].item() for value in masters] == pytest.approx([0.99] * master_weights, abs=5e-6)


def test_sixteen_bit_weights_have_states_and_rates_in_fp32() -> None:
    """A rate of 1e-3 is 1.0004e-3 in bf16; an average with beta2 = 0.999 can't move there at all."""
    model = one_weight(0.0, mx.bfloat16)
    update = Update(model, lambda: optimizers.AdamW(learning_rate=1.0), master_weights=False)
    assert {value.dtype for name, value in update.arrays.items() if name.endswith((".m", ".v"))} == {mx.float32}
    model = one_weight(0.0, mx.float32)
    update = Update(model, plain_sgd)
    update.apply(model, tree_map(lambda g: g.astype(mx.bfloat16), constant_gradients(model, 1.0)), lr=1e-3)
    assert weights_of(model)["head.weight"][0, 0] == pytest.approx(-1e-3, rel=1e-6)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("ema", "expected"), [(0.9, -0.704545), (0.2, -0.763636)])
def test_the_average_by_hand(ema: float, expected: float, dtype: mx.Dtype) -> None:
    """w = 1, 0, -1. d_1 = 2/11: 2/11 · 1 + 9/11 · 0 = 2/11. d_2 = min(d, 3/12): 0.25 · 2/11 - 0.75 = -0.704545; 0.2 · 2/11 - 0.8."""
    model = one_weight(1.0, dtype)
    update = Update(model, plain_sgd, ema=ema)
    with update.evaluated(model):
        assert weights_of(model)["norm.weight"][0] == 1.0
    for _ in range(2):
        update.apply(model, constant_gradients(model, 1.0), lr=1.0)
    assert update.arrays["average.norm.weight"][0].item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ZeroDivisionError), update.evaluated(model):
        weight = flat(model.trainable_parameters())["norm.weight"]
        assert weight.dtype == dtype and weight[0].item() == pytest.approx(mx.array(expected, dtype).item(), abs=1e-6)
        raise ZeroDivisionError
    assert weights_of(model)["norm.weight"][0] == -1.0


def test_without_an_average_the_evaluated_weights_are_the_model_s() -> None:
    model = Model()
    update = Update(model, plain_sgd)
    before = flat(model.trainable_parameters())
    with update.evaluated(model):
        assert all(weight is before[name] for name, weight in flat(model.trainable_parameters()).items())


CASES = [*((name, mx.float32, True, None) for name in FACTORIES), ("adamw", mx.float32, True, 0.9)]
CASES += [("muon", mx.bfloat16, masters, ema) for masters in (True, False) for ema in (None, 0.9)]


@pytest.mark.parametrize(("name", "dtype", "master_weights", "ema"), CASES)
def test_a_saved_update_goes_on_bit_by_bit(name: str, dtype: mx.Dtype, master_weights: bool, ema: float | None, tmp_path: Path) -> None:
    def begin(seed: int) -> tuple[Model, Update]:
        model = Model(seed)
        model.set_dtype(dtype)
        options: dict[str, Any] = {"no_decay": ["norm", "bias"], "lr_factors": {"head": 0.5}}
        return model, Update(model, FACTORIES[name], master_weights=master_weights, ema=ema, **options)

    model, update = begin(seed=0)
    train(model, update, 3)
    with update.evaluated(model):
        mx.save_safetensors(str(tmp_path / "weights.safetensors"), flat(model.trainable_parameters()))
        mx.save_safetensors(str(tmp_path / "training.safetensors"), update.arrays)
    expected = train(model, update, 3)

    resumed, again = begin(seed=1)
    resumed.load_weights(list(load(tmp_path / "weights.safetensors").items()), strict=False)
    again.restore(resumed, load(tmp_path / "training.safetensors"))
    assert train(resumed, again, 3) == expected
    for mine, his in ((weights_of(model), weights_of(resumed)), (update.arrays, again.arrays)):
        assert mine.keys() == his.keys()
        for key in mine:
            assert mx.array_equal(mx.array(mine[key]), mx.array(his[key])), key


@pytest.mark.parametrize(
    ("factory", "changes", "message"),
    [
        ("lion", {}, r"has float32 \(7,\) for optimizer\.0\.head\.bias\.v, and this run nothing"),
        ("adamw", {"ema": 0.9}, r"has nothing for average\.head\.bias, and this run float32 \(7,\)"),
    ],
)
def test_a_state_of_something_else_is_refused(factory: str, changes: dict[str, Any], message: str) -> None:
    saved = Update(Model(), FACTORIES["adamw"], no_decay=["norm", "bias", "head", "embedding"]).arrays
    model = Model()
    other = Update(model, FACTORIES[factory], no_decay=["norm", "bias", "head", "embedding"], **changes)
    with pytest.raises(TrainingError, match=message):
        other.restore(model, saved)


def test_frozen_weights_have_no_state_and_stay() -> None:
    """Of a list of layers only the second is trained."""
    model = Model()
    model.freeze()
    model.layers[1].unfreeze()
    frozen = {name: np.array(weight) for name, weight in flat(model.parameters()).items()}
    update = Update(model, FACTORIES["adamw"], ema=0.9)
    train(model, update, 2)
    assert {name for name, value in update.arrays.items() if value.ndim} == {
        "optimizer.0.layers.1.weight.m",
        "optimizer.0.layers.1.weight.v",
        "weights.layers.1.weight",
        "average.layers.1.weight",
    }
    changed = {name for name, weight in flat(model.parameters()).items() if not np.array_equal(np.array(weight), frozen[name])}
    assert changed == {"layers.1.weight"}


def test_the_peak_is_the_factory_s_and_has_to_be_there() -> None:
    assert Update(Model(), FACTORIES["sgd"]).peak == pytest.approx(0.02)
    with pytest.raises(ConfigError, match=r"Adafactor has no learning rate to schedule: set optimizer\.learning_rate"):
        Update(Model(), optimizers.Adafactor)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Update does on a GPU, as far as a CPU can tell."""
    if shutil.which("g++") is None:
        pytest.skip("on a CPU mx.compile needs a compiler")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.mark.slow
@pytest.mark.usefixtures("gpu")
def test_a_compiled_step_is_the_same_and_goes_on_after_a_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """Muon's, which holds an AdamW too."""
    model = Model()
    update = Update(model, FACTORIES["muon"], no_decay=["norm"], ema=0.9)
    train(model, update, 2)
    arrays = {key: mx.array(value) for key, value in update.arrays.items()}
    compiled = train(model, update, 2)
    update.restore(model, arrays)
    assert train(model, update, 2) == compiled
    monkeypatch.undo()
    model = Model()
    assert train(model, Update(model, FACTORIES["muon"], no_decay=["norm"], ema=0.9), 4)[2:] == pytest.approx(compiled, rel=1e-4)


def test_a_factor_for_what_is_not_trained_is_refused(make_model: Any) -> None:
    with pytest.raises(ConfigError, match=r"nothing that is trained is a head \(there are: embedding, matrix, norm\)"):
        Update(make_model(), lambda: optimizers.SGD(0.1), lr_factors={"head": 2.0})


def test_factors_that_leave_nothing_to_train_are_refused(make_model: Any) -> None:
    with pytest.raises(ConfigError, match=r"all that is trained \(embedding, matrix, norm\) has factor 0"):
        Update(make_model(), lambda: optimizers.SGD(0.1), lr_factors={"embedding": 0.0, "matrix": 0.0, "norm": 0.0})
