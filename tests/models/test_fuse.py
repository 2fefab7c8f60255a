"""What gets registered must answer as what was trained: adapters folded in, also on a quantised base."""

import json
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from forge import models
from forge.arrays import flat
from forge.models import Loaded, adapters, fuse, loaders, scratch

TOKENS = mx.array([[1, 5, 3, 8, 2, 9, 40, 7]])
KNOBS: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": "linear", "layers": None}
BOTH = pytest.mark.parametrize("adapter", [adapters.lora, adapters.dora])


def logits(model: nn.Module) -> np.ndarray:
    return np.array(model(TOKENS).astype(mx.float32))


def train_a_little(model: nn.Module, size: float) -> None:
    """Moves every trainable weight, as training would."""
    mx.random.seed(3)
    moved = [(name, value + size * mx.random.normal(value.shape)) for name, value in flat(model.trainable_parameters()).items()]
    model.update(tree_unflatten(moved))


def adapted(make: Callable[..., Loaded], adapter: Callable[..., None], size: float) -> Loaded:
    loaded = make()
    adapter(loaded.model, **KNOBS)
    train_a_little(loaded.model, size)
    loaded.model.eval()
    return loaded


@BOTH
def test_fusing_leaves_the_logits(make_tiny_model: Callable[..., Loaded], adapter: Callable[..., None]) -> None:
    base, loaded = logits(make_tiny_model().model), adapted(make_tiny_model, adapter, 0.1)
    before = logits(loaded.model)
    fused = fuse.fuse(loaded)
    assert np.abs(before - base).max() > 0.1
    np.testing.assert_allclose(logits(fused.model), before, atol=1e-5)
    assert set(flat(fused.model.parameters())) == set(flat(make_tiny_model().model.parameters()))


@pytest.mark.parametrize(("adapter", "name"), [(adapters.lora, "gpt2"), (adapters.dora, "gpt2"), (adapters.lora, "mixtral")])
def test_fusing_layers_with_a_bias_and_of_experts(make_shape: Callable[..., Any], adapter: Callable[..., None], name: str) -> None:
    model = make_shape(name)
    names = set(flat(model.parameters()))
    adapter(model, **KNOBS)
    train_a_little(model, 0.1)
    before = model(TOKENS % 29)
    fused = fuse.fuse(Loaded(model, None, {}, None))  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(fused.model(TOKENS % 29)), np.array(before), atol=2e-5)
    assert set(flat(fused.model.parameters())) == names


cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "parity" / "cases.py")))
ADAPTERS = {name: partial(getattr(adapters, name), **KNOBS) for name in ("lora", "dora", "rslora")} | {"full": adapters.full}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("shape", cases.CONFIGS)
def test_each_architecture_answers_alike_fused_and_read_back(
    shape: str, name: str, make_tiny_model: Callable[..., Loaded], tmp_path: Path
) -> None:
    """fp32, as a folder of the hub holds it: logits of some 1 in size stay within 1e-5."""
    shapes = json.loads((Path(__file__).parent / "parity" / f"{shape}.json").read_text())["shapes"]
    base = tmp_path / "base"
    make_tiny_model().tokenizer.save_pretrained(base)
    (base / "config.json").write_text(json.dumps(cases.CONFIGS[shape]))
    weights = {key: mx.array(value) for key, value in cases.weights(shapes).items()}
    mx.save_safetensors(str(base / "model.safetensors"), weights, {"format": "pt"})
    loaded = models.load(partial(loaders.local, path=str(base)), ADAPTERS[name], lambda: iter(()), 0, lambda uri: (Path(), ""), "float32")
    untrained = logits(loaded.model)
    train_a_little(loaded.model, 0.02)
    loaded.model.eval()
    before = logits(loaded.model)
    assert np.abs(before - untrained).max() > 0.01
    fuse.save(fuse.fuse(loaded), tmp_path / "fused")
    np.testing.assert_allclose(logits(fuse.load(tmp_path / "fused")[0]), before, atol=1e-5, rtol=1e-5)


def test_a_model_without_adapters_is_left_as_it_is(make_tiny_model: Callable[..., Loaded]) -> None:
    loaded = make_tiny_model()
    before = logits(loaded.model)
    np.testing.assert_array_equal(logits(fuse.fuse(loaded).model), before)


@BOTH
def test_tables_and_norms_are_fused_too(make_tiny_model: Callable[..., Loaded], adapter: Callable[..., None]) -> None:
    loaded = make_tiny_model()
    adapter(loaded.model, **{**KNOBS, "targets": ["attention", "embeddings"], "norms": True})
    train_a_little(loaded.model, 0.1)
    before = logits(loaded.model)
    fused = fuse.fuse(loaded)
    np.testing.assert_allclose(logits(fused.model), before, atol=1e-5)
    assert set(flat(fused.model.parameters())) == set(flat(make_tiny_model().model.parameters()))


@BOTH
def test_16_bit_weights_are_rounded_once(make_tiny_model: Callable[..., Loaded], adapter: Callable[..., None]) -> None:
    """The sum is taken in fp32: adding rounded numbers would round a second time, and lose more of a small change."""
    exact = adapted(make_tiny_model, adapter, 0.03)
    half = make_tiny_model()
    half.model.set_dtype(mx.bfloat16)
    adapter(half.model, **KNOBS)
    half.model.update(exact.model.trainable_parameters())
    exact.model.load_weights([(name, v.astype(mx.float32)) for name, v in flat(half.model.parameters()).items()])
    expected, found = (flat(fuse.fuse(loaded).model.parameters()) for loaded in (exact, half))
    for name, value in found.items():
        assert value.dtype == mx.bfloat16
        np.testing.assert_array_equal(np.array(value.astype(mx.float32)), np.array(expected[name].astype(mx.bfloat16).astype(mx.float32)))


@BOTH
def test_a_fused_model_is_saved_and_read_back(make_tiny_model: Callable[..., Loaded], adapter: Callable[..., None], tmp_path: Path) -> None:
    fused = fuse.fuse(adapted(make_tiny_model, adapter, 0.1))
    fuse.save(fused, tmp_path / "fused")
    model, tokenizer = fuse.load(tmp_path / "fused")
    np.testing.assert_allclose(logits(model), logits(fused.model), atol=1e-6)
    assert tokenizer.decode(tokenizer.encode("the cat")[1:]) == "the cat"


@pytest.fixture(scope="module")
def quantised_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of width 64 in 4 bits, in the layout that mlx-lm's converter writes."""
    from mlx_lm.utils import save_config, save_model

    sizes = {"vocab_size": 300, "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp_size": 64}
    loaded = scratch.build(lambda: iter(["the cat sat on the mat"]), 0, lambda uri: (Path(), ""), **sizes, max_positions=64)
    nn.quantize(loaded.model, group_size=32, bits=4)
    folder = tmp_path_factory.mktemp("quantised") / "model"
    save_model(folder, loaded.model)
    quantization = {"group_size": 32, "bits": 4}
    save_config({**loaded.config, "quantization": quantization, "quantization_config": quantization}, folder / "config.json")
    loaded.tokenizer.save_pretrained(folder)
    return folder


@BOTH
def test_a_small_change_to_a_quantised_base_survives_fusing(quantised_folder: Path, adapter: Callable[..., None], tmp_path: Path) -> None:
    """mlx-lm's fuse quantises again, which drowns a change of half a percent: its error is larger than the change."""
    loader = partial(loaders.local, path=str(quantised_folder))
    loaded = models.load(loader, partial(adapter, **KNOBS), lambda: iter(()), 0, lambda uri: (Path(), ""))
    loaded.model.eval()
    base = logits(loaded.model)
    train_a_little(loaded.model, 0.003)
    before = logits(loaded.model)
    change = np.linalg.norm(before - base)
    assert 0.001 < change / np.linalg.norm(base) < 0.02

    fused = fuse.fuse(loaded)
    np.testing.assert_allclose(logits(fused.model), before, atol=1e-3)
    assert np.linalg.norm(logits(fused.model) - before) < 0.01 * change
    assert not any(hasattr(module, "bits") for _, module in fused.model.named_modules())
    assert not {"quantization", "quantization_config"} & set(fused.config)

    fuse.save(fused, tmp_path / "fused")
    model, _ = fuse.load(tmp_path / "fused")
    assert np.linalg.norm(logits(model) - before) < 0.01 * change


def test_only_the_adapter_of_a_quantised_model_is_trained(quantised_folder: Path) -> None:
    loader = partial(loaders.local, path=str(quantised_folder))
    loaded = models.load(loader, partial(adapters.lora, **KNOBS), lambda: iter(()), 0, lambda uri: (Path(), ""))
    assert {name.rpartition(".")[2] for name in flat(loaded.model.trainable_parameters())} == {"lora_a", "lora_b"}
    assert flat(loaded.model.parameters())["model.layers.0.mlp.up_proj.linear.weight"].dtype == mx.uint32
