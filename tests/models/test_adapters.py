"""LoRA, DoRA and full: what is trained, where it sits, and that it starts as the base model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge import models
from forge.arrays import flat
from forge.errors import ModelError
from forge.models import adapters

TOKENS = mx.array([[1, 5, 3, 8, 2, 9]])
QKVO = {f"self_attn.{name}_proj" for name in "qkvo"}
GATED = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
NAMES = {
    "qwen3": (QKVO, GATED),
    "llama": (QKVO, GATED),
    "gemma3_text": (QKVO, GATED),
    "phi3": ({"self_attn.qkv_proj", "self_attn.o_proj"}, {"mlp.gate_up_proj", "mlp.down_proj"}),
    "gpt2": ({"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
    "mixtral": (QKVO, {"block_sparse_moe.gate", *(f"block_sparse_moe.switch_mlp.{name}_proj" for name in ("gate", "up", "down"))}),
}
KNOBS: dict[str, Any] = {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": "linear", "layers": None}
BOTH = pytest.mark.parametrize("adapter", [adapters.lora, adapters.dora])


def trained(model: nn.Module) -> set[str]:
    return set(flat(model.trainable_parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_the_linear_layers_of_each_role(make_shape: Callable[..., Any], name: str) -> None:
    attention, mlp = NAMES[name]
    block = make_shape(name).layers[0]
    found = {role: adapters.linear_names(block, role) for role in ("attention", "mlp", "linear")}
    assert found == {"attention": attention, "mlp": mlp, "linear": attention | mlp}


@BOTH
@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3_text", "phi3", "gpt2"])
def test_an_adapted_model_starts_as_the_base(make_shape: Callable[..., Any], adapter: Callable[..., None], name: str) -> None:
    model = make_shape(name)
    base = np.array(model(TOKENS))
    adapter(model, **KNOBS)
    np.testing.assert_allclose(np.array(model(TOKENS)), base, atol=1e-5)


@pytest.mark.parametrize(("adapter", "own"), [(adapters.lora, ("lora_a", "lora_b")), (adapters.dora, ("lora_a", "lora_b", "m"))])
@pytest.mark.parametrize("role", ["attention", "mlp", "linear"])
def test_only_the_adapter_is_trained(make_shape: Callable[..., Any], adapter: Callable[..., None], own: tuple[str, ...], role: str) -> None:
    model = make_shape("phi3")
    adapter(model, **{**KNOBS, "targets": role})
    layers = {"attention": NAMES["phi3"][0], "mlp": NAMES["phi3"][1], "linear": NAMES["phi3"][0] | NAMES["phi3"][1]}[role]
    assert trained(model) == {f"model.layers.{block}.{layer}.{part}" for block in range(3) for layer in layers for part in own}


def test_the_number_of_trained_weights_by_hand(make_shape: Callable[..., Any]) -> None:
    """Qwen3 with attention of 32 -> 32 (q), 16 (k), 16 (v), 32 -> 32 (o): rank · (in + out) = 2 · (64 + 48 + 48 + 64), in 3 blocks."""
    model = make_shape("qwen3")
    adapters.lora(model, **{**KNOBS, "targets": "attention"})
    assert models.trainable_parameters(model) == 3 * 2 * (64 + 48 + 48 + 64)


def test_the_update_is_scaled_by_alpha_over_rank(make_shape: Callable[..., Any]) -> None:
    """alpha 6, rank 2: y = x (W + 3 (A B)^T)^T."""
    model = make_shape("qwen3")
    weight = np.array(model.layers[1].mlp.up_proj.weight)
    adapters.lora(model, **KNOBS)
    layer = model.layers[1].mlp.up_proj
    draw = np.random.default_rng(0)
    a, b, x = (draw.normal(size=shape).astype(np.float32) for shape in ((32, 2), (2, 48), (4, 32)))
    layer.lora_a, layer.lora_b = mx.array(a), mx.array(b)
    np.testing.assert_allclose(np.array(layer(mx.array(x))), x @ (weight + 3 * (a @ b).T).T, atol=1e-4)


def test_dora_by_hand(make_shape: Callable[..., Any]) -> None:
    """V = W + 3 (A B)^T, each output's row scaled to the length m."""
    model = make_shape("qwen3")
    weight = np.array(model.layers[1].mlp.up_proj.weight)
    adapters.dora(model, **KNOBS)
    layer = model.layers[1].mlp.up_proj
    np.testing.assert_allclose(np.array(layer.m), np.linalg.norm(weight, axis=1), rtol=1e-5)
    draw = np.random.default_rng(0)
    a, b, x, m = (draw.normal(size=shape).astype(np.float32) for shape in ((32, 2), (2, 48), (4, 32), 48))
    layer.lora_a, layer.lora_b, layer.m = mx.array(a), mx.array(b), mx.array(m)
    direction = weight + 3 * (a @ b).T
    expected = x @ (direction * (m / np.linalg.norm(direction, axis=1))[:, None]).T
    np.testing.assert_allclose(np.array(layer(mx.array(x))), expected, atol=1e-4)


@BOTH
@pytest.mark.parametrize(("layers", "blocks"), [(1, {2}), (2, {1, 2}), (3, {0, 1, 2}), (None, {0, 1, 2})])
def test_the_last_blocks_are_adapted(
    make_shape: Callable[..., Any], adapter: Callable[..., None], layers: int | None, blocks: set[int]
) -> None:
    model = make_shape("llama")
    adapter(model, **{**KNOBS, "layers": layers})
    assert {int(name.split(".")[2]) for name in trained(model)} == blocks


def test_more_layers_than_blocks_is_an_error(make_shape: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"adapter\.layers=4: the model has 3 blocks"):
        adapters.lora(make_shape("qwen3"), **{**KNOBS, "layers": 4})


def test_targets_that_a_model_lacks_are_an_error(make_shape: Callable[..., Any]) -> None:
    """Mamba's blocks have linear layers, but no attention."""
    with pytest.raises(ModelError, match=r"adapter\.targets=attention: the model has no such linear layer"):
        adapters.lora(make_shape("mamba"), **{**KNOBS, "targets": "attention"})


def test_lora_reaches_the_experts_of_a_mixture(make_shape: Callable[..., Any]) -> None:
    model = make_shape("mixtral")
    adapters.lora(model, **KNOBS)
    assert "model.layers.0.block_sparse_moe.switch_mlp.up_proj.lora_a" in trained(model)


def test_dora_on_a_mixture_of_experts_is_an_error(make_shape: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"(?i)dora"):
        adapters.dora(make_shape("mixtral"), **KNOBS)


def test_full_trains_every_weight_in_fp32(make_shape: Callable[..., Any]) -> None:
    model = make_shape("qwen3")
    model.set_dtype(mx.bfloat16)
    model.freeze()
    adapters.full(model)
    assert trained(model) == set(flat(model.parameters()))
    assert {value.dtype for value in flat(model.parameters()).values()} == {mx.float32}


def test_a_quantised_model_is_not_trained_in_full(make_shape: Callable[..., Any]) -> None:
    model = make_shape("qwen3")
    nn.quantize(model, group_size=32, bits=4, class_predicate=lambda _, module: isinstance(module, nn.Embedding))
    with pytest.raises(ModelError, match="a quantised model can't be trained in full; use adapter=lora"):
        adapters.full(model)


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


def test_a_cpu_computes_in_fp32(make_tiny_model: Callable[..., models.Loaded]) -> None:
    base = make_tiny_model()
    base.model.set_dtype(mx.bfloat16)
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("a GPU keeps bf16")
    loaded = models.load(lambda *_: base, partial(adapters.lora, **KNOBS), lambda: iter(()), 0, lambda uri: (None, ""))
    assert {value.dtype for value in flat(loaded.model.parameters()).values()} == {mx.float32}
