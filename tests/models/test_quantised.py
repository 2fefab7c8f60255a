"""Adapters on a base of few bits: the base stays as it is to the bit, the adapter learns, and nothing in between is rounded."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.optimizers import Adam

from forge import models
from forge.arrays import flat
from forge.errors import ModelError
from forge.models import Loaded, adapters, fuse, loaders, quantise, scratch

TOKENS = mx.array([[1, 5, 3, 8, 2, 9, 40, 7]])
KNOBS: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["linear", "embeddings"], "layers": None}
ALL_BITS = pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of width 64, in bf16 as most are."""
    sizes = {"vocab_size": 300, "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp_size": 64}
    loaded = scratch.build(lambda: iter(["the cat sat on the mat"]), 0, lambda uri: (Path(), ""), **sizes, max_positions=64)
    loaded.model.set_dtype(mx.bfloat16)
    path = tmp_path_factory.mktemp("base") / "model"
    fuse.save(loaded, path)
    return path


def load(folder: Path, adapter: Callable[[Any], None], bits: int | None, **knobs: Any) -> Loaded:
    loader = partial(loaders.local, path=str(folder), quantize=bits and {"bits": bits, "group_size": 32})
    return models.load(loader, adapter, lambda: iter(()), 0, lambda uri: (Path(), ""), **knobs)


def frozen(model: nn.Module) -> dict[str, str]:
    """The digest of each array that is not trained."""
    trained = flat(model.trainable_parameters())
    rest = {name: value for name, value in flat(model.parameters()).items() if name not in trained}
    return {name: sha256(np.array(value.view(mx.uint8)).tobytes()).hexdigest() for name, value in rest.items()}


def train(model: nn.Module, steps: int) -> list[float]:
    optimizer, losses = Adam(learning_rate=1e-2), []

    def loss() -> mx.array:
        return nn.losses.cross_entropy(model(TOKENS[:, :-1]).astype(mx.float32), TOKENS[:, 1:]).mean()

    for _ in range(steps):
        value, gradients = nn.value_and_grad(model, loss)()
        optimizer.update(model, gradients)
        losses.append(value.item())
    mx.eval(model.parameters())
    return losses


@ALL_BITS
@pytest.mark.parametrize("adapter", [adapters.lora, adapters.dora])
def test_the_adapter_learns_and_the_base_stays_to_the_bit(folder: Path, adapter: Callable[..., None], bits: int) -> None:
    loaded = load(folder, partial(adapter, **KNOBS), bits)
    before = frozen(loaded.model)
    packed = [name for name in before if name.endswith("scales")]
    assert len(packed) == 2 * 7 + 1  # each linear layer, and the table
    assert np.array_equal(np.array(loaded.model(TOKENS)), np.array(load(folder, only_the_norms, bits).model(TOKENS)))
    losses = train(loaded.model, 8)
    assert losses[-1] < losses[0] - 0.2
    assert frozen(loaded.model) == before

    loaded.model.eval()
    after = np.array(loaded.model(TOKENS))
    fused = fuse.fuse(loaded)
    np.testing.assert_allclose(np.array(fused.model(TOKENS)), after, atol=2e-4)
    assert "quantization" not in fused.config and not any("scales" in name for name in flat(fused.model.parameters()))


def only_the_norms(model: nn.Module) -> None:
    model.freeze()
    model.model.norm.unfreeze()


def test_a_folder_that_is_packed_is_the_same_base(folder: Path, tmp_path: Path) -> None:
    here = load(folder, only_the_norms, 4)
    fuse.save(
        loaders.local(lambda: iter(()), 0, lambda uri: (Path(), ""), path=str(folder), quantize={"bits": 4, "group_size": 32}), tmp_path
    )
    there = load(tmp_path, only_the_norms, None)
    assert frozen(there.model) == frozen(here.model)
    assert there.config["quantization"] == here.config["quantization"]
    with pytest.raises(ModelError, match=r"^model\.quantize: the base is quantised already, .*; set model\.quantize to null"):
        load(tmp_path, only_the_norms, 4)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_fp32_keeps_the_values_of_scales_and_biases(dtype: mx.Dtype) -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    model.set_dtype(dtype)
    nn.quantize(model, group_size=32, bits=4)
    before = {name: np.array(value.astype(mx.float32)) for name, value in flat(model.parameters()).items() if "weight" not in name}
    packed = np.array(model.layers[0].weight)
    models.cast(model, mx.float32)
    after = flat(model.parameters())
    assert {name: value.dtype for name, value in after.items() if name in before} == dict.fromkeys(before, mx.float32)
    assert all(np.array_equal(np.array(after[name]), value) for name, value in before.items())
    np.testing.assert_array_equal(np.array(model.layers[0].weight), packed)


@pytest.mark.parametrize(("asked", "found"), [("auto", mx.float32), ("bfloat16", mx.bfloat16)])
def test_a_packed_base_in_each_type(folder: Path, asked: Any, found: mx.Dtype) -> None:
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("auto is the base's own type on a GPU")
    loaded = load(folder, partial(adapters.dora, **KNOBS), 4, dtype=asked)
    layer = loaded.model.layers[0].mlp.up_proj
    assert (layer.linear.weight.dtype, layer.linear.scales.dtype, layer.m.dtype) == (mx.uint32, found, mx.float32)
    assert loaded.model(TOKENS).dtype == found
    before = frozen(loaded.model)
    losses = train(loaded.model, 8)
    assert losses[-1] < losses[0] - 0.2 and frozen(loaded.model) == before
    fused = fuse.fuse(loaded).model
    assert {value.dtype for value in flat(fused.parameters()).values()} == {found}


def unpack(layer: Any) -> np.ndarray:
    """w = scale · q + bias, with the q of `bits` bits one after the other in little-endian words, by numpy alone."""
    words = np.array(layer.weight)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").reshape(len(words), -1, layer.bits)
    q = (bits * (1 << np.arange(layer.bits))).sum(axis=2)
    scales, biases = (np.repeat(np.array(values), layer.group_size, axis=1) for values in (layer.scales, layer.biases))
    return (scales * q + biases).astype(np.float32)


@ALL_BITS
def test_products_with_unpacked_weights_are_the_same_products(bits: int) -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Embedding(40, 64))
    nn.quantize(model, group_size=32, bits=bits)
    linear, table = model.layers
    linear.bias = mx.arange(48.0)
    x = mx.random.normal((5, 64))
    expected = np.array(x) @ unpack(linear).T + np.arange(48)
    np.testing.assert_allclose(np.array(quantise.dense(linear)), unpack(linear), atol=1e-6)
    np.testing.assert_allclose(np.array(linear(x)), expected, atol=1e-4)
    before = {name: np.array(value) for name, value in flat(model.parameters()).items()}
    quantise.multiply_unpacked(model)
    np.testing.assert_allclose(np.array(linear(x)), expected, atol=1e-4)
    np.testing.assert_allclose(np.array(table.as_linear(x)), np.array(x) @ unpack(table).T, atol=1e-4)
    np.testing.assert_allclose(np.array(mx.grad(lambda x: linear(x).sum())(x)), np.tile(unpack(linear).sum(axis=0), (5, 1)), atol=1e-4)
    assert all(np.array_equal(np.array(value), before[name]) for name, value in flat(model.parameters()).items())


@ALL_BITS
def test_packed_weights_are_counted_one_by_one(bits: int) -> None:
    """64 · 48 and a bias of 48; 40 · 64. An adapter's own weights are counted beside."""
    model = nn.Sequential(nn.Linear(64, 48), nn.Embedding(40, 64), nn.RMSNorm(7))
    nn.quantize(model, group_size=32, bits=bits)
    model.layers[2].lora_a = mx.zeros((7, 2))
    assert models.parameters(model) == 64 * 48 + 48 + 40 * 64 + 7 + 14


def test_a_backward_pass_keeps_no_unpacked_weights() -> None:
    """16 layers of 256 x 256: 4 MiB in fp32 if all were kept, a few of 0.25 MiB if not."""
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(16)])
    nn.quantize(model, group_size=32, bits=4)
    quantise.multiply_unpacked(model)
    x = mx.ones((4, 256))
    mx.eval(model.parameters(), x)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(mx.grad(lambda x: model(x).sum())(x))
    assert mx.get_peak_memory() - before < 2 * 2**20
