"""Adapters: what each trains, where it sits, that it starts as the base model, and that it computes what its paper says."""

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
from forge.models import adapters, parts

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
SHAPES = ["llama", "qwen3", "gemma3_text", "phi3", "mistral", "ministral3", "gpt2", "mamba", "mixtral"]
KNOBS: dict[str, Any] = {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": "linear", "layers": None}
BOTH = pytest.mark.parametrize("adapter", [adapters.lora, adapters.dora])


def draws(*shapes: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def trained(model: nn.Module) -> set[str]:
    return set(flat(model.trainable_parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_the_linear_layers_of_each_role(make_shape: Callable[..., Any], name: str) -> None:
    attention, mlp = NAMES[name]
    block = make_shape(name).layers[0]
    found = {role: parts.linear_names(block, role) for role in ("attention", "mlp", "linear")}
    assert found == {"attention": attention, "mlp": mlp, "linear": attention | mlp}


def test_attention_is_known_by_its_place_too() -> None:
    """Some classes don't say that they are attention, such as DeepSeek's MLA; the block's own name for it does."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 12)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_norm, self.linear_attn, self.ffn = nn.RMSNorm(4), Mixer(), nn.Linear(4, 4)

    assert parts.linear_names(Block(), "attention") == {"linear_attn.qkv"}
    assert parts.linear_names(Block(), "mlp") == {"ffn"}


VOCABULARY = {
    "qwen3": ({"model.embed_tokens"}, set()),
    "mistral": ({"model.embed_tokens"}, {"lm_head"}),
    "gpt2": ({"model.wte"}, set()),  # and not its table of positions
    "mamba": ({"backbone.embeddings"}, set()),
}


@pytest.mark.parametrize("name", VOCABULARY)
def test_embeddings_and_the_untied_head(make_shape: Callable[..., Any], name: str) -> None:
    model = make_shape(name)
    assert (set(parts.embeddings(model)), set(parts.head(model))) == VOCABULARY[name]
    adapters.lora(model, **{**KNOBS, "targets": "embeddings", "layers": 1})
    assert trained(model) == {f"{layer}.{part}" for layer in set().union(*VOCABULARY[name]) for part in ("lora_a", "lora_b")}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("adapter", [adapters.lora, adapters.rslora, adapters.dora])
@pytest.mark.parametrize("name", SHAPES)
def test_an_adapted_model_starts_as_the_base_to_the_bit(
    make_shape: Callable[..., Any], adapter: Callable[..., None], name: str, dtype: mx.Dtype
) -> None:
    if name == "mixtral" and dtype == mx.bfloat16:
        pytest.skip("MLX has no 16-bit experts on a CPU")
    model = make_shape(name)
    models.cast(model, dtype)
    base = model(TOKENS)
    roles = ["attention", "embeddings"] if (adapter, name) == (adapters.dora, "mixtral") else ["linear", "embeddings"]
    adapter(model, **{**KNOBS, "targets": roles, "dropout": 0.5})
    model.train()
    after = model(TOKENS)
    assert after.dtype == dtype
    np.testing.assert_array_equal(np.array(after.astype(mx.float32)), np.array(base.astype(mx.float32)))


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


@pytest.mark.parametrize(("adapter", "scale"), [(adapters.lora, 6 / 4), (adapters.rslora, 6 / 2)])
def test_the_update_is_scaled_by_alpha_over_rank_or_its_root(
    make_shape: Callable[..., Any], adapter: Callable[..., None], scale: float
) -> None:
    """alpha 6, rank 4: y = x (W + scale · (A B)^T)^T, with 6/4 as Hu et al. have it and 6/√4 as Kalajdzievski."""
    model = make_shape("qwen3")
    weight = np.array(model.layers[1].mlp.up_proj.weight)
    adapter(model, **{**KNOBS, "rank": 4})
    layer = model.layers[1].mlp.up_proj
    a, b, x = draws((32, 4), (4, 48), (5, 32))
    layer.lora_a, layer.lora_b = mx.array(a), mx.array(b)
    np.testing.assert_allclose(np.array(layer(mx.array(x))), x @ (weight + scale * (a @ b).T).T, atol=1e-4)


def test_dora_and_its_gradient_by_hand(make_shape: Callable[..., Any]) -> None:
    """V = W + 3 (A B)^T; the rows of W' are those of V at the lengths m; lengths of V are constants to the gradient (section 4.3):
    of L = sum(c · (x W'^T + bias)), dL/dm = sum(c · x V^T) / ‖V‖, dL/dV = (m / ‖V‖) c^T x, dL/dB = 3 A^T (dL/dV)^T."""
    model = make_shape("gpt2")
    weight = np.array(model.layers[1].mlp.c_fc.weight)
    adapters.dora(model, **KNOBS)
    layer = model.layers[1].mlp.c_fc
    np.testing.assert_allclose(np.array(layer.m), np.linalg.norm(weight, axis=1), rtol=1e-5)
    a, b, x, m, c = draws((32, 2), (2, 128), (4, 32), 128, (4, 128))
    layer.lora_a, layer.lora_b, layer.m, layer.linear.bias = mx.array(a), mx.array(b), mx.array(m), mx.arange(128.0)
    direction = weight + 3 * (a @ b).T
    lengths = np.linalg.norm(direction, axis=1)
    np.testing.assert_allclose(np.array(layer(mx.array(x))), x @ (direction * (m / lengths)[:, None]).T + np.arange(128), atol=1e-3)

    _, gradients = nn.value_and_grad(layer, lambda: (layer(mx.array(x)) * mx.array(c)).sum())()
    d_direction = (m / lengths)[:, None] * (c.T @ x)
    assert set(flat(gradients)) == {"lora_a", "lora_b", "m"}
    np.testing.assert_allclose(np.array(gradients["m"]), (c * (x @ direction.T)).sum(axis=0) / lengths, atol=1e-3)
    np.testing.assert_allclose(np.array(gradients["lora_b"]), 3 * a.T @ d_direction.T, atol=1e-3)
    np.testing.assert_allclose(np.array(gradients["lora_a"]), 3 * d_direction.T @ b.T, atol=1e-3)


def test_dora_of_a_table_as_embedding_and_as_output(make_shape: Callable[..., Any]) -> None:
    """A row of zeros, as padded vocabularies have, stays zeros; mlx-lm's gives NaN."""
    model = make_shape("qwen3")
    (weight,) = draws((29, 32))
    weight[7] = 0
    model.model.embed_tokens.weight = mx.array(weight)
    adapters.dora(model, **{**KNOBS, "targets": "embeddings"})
    table = model.model.embed_tokens
    assert np.isfinite(np.array(model(TOKENS))).all() and not np.array(table(mx.array([7]))).any()

    a, b, x, m = draws((29, 2), (2, 32), (4, 32), 29)
    table.lora_a, table.lora_b, table.m = mx.array(a), mx.array(b), mx.array(m)
    rows = weight + 3 * a @ b
    rows *= (m / np.linalg.norm(rows, axis=1))[:, None]
    np.testing.assert_allclose(np.array(table(TOKENS)), rows[np.array(TOKENS)], atol=1e-4)
    np.testing.assert_allclose(np.array(table.as_linear(mx.array(x))), x @ rows.T, atol=1e-4)


@BOTH
@pytest.mark.parametrize(("layers", "blocks"), [(1, {2}), (2, {1, 2}), (3, {0, 1, 2}), (None, {0, 1, 2})])
def test_the_last_blocks_are_adapted(
    make_shape: Callable[..., Any], adapter: Callable[..., None], layers: int | None, blocks: set[int]
) -> None:
    model = make_shape("llama")
    adapter(model, **{**KNOBS, "layers": layers})
    assert {int(name.split(".")[2]) for name in trained(model)} == blocks


@pytest.mark.parametrize("adapter", [partial(adapters.lora, **{**KNOBS, "layers": 4}), partial(adapters.last_layers, layers=4)])
def test_more_layers_than_blocks_is_an_error(make_shape: Callable[..., Any], adapter: Callable[..., None]) -> None:
    with pytest.raises(ModelError, match=r"adapter\.layers=4: the model has 3 blocks"):
        adapter(make_shape("qwen3"))


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


def test_norms_are_trained_beside_lora(make_shape: Callable[..., Any]) -> None:
    model = make_shape("qwen3")
    adapters.lora(model, **{**KNOBS, "layers": 1, "norms": True})
    norms = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"}
    assert {name for name in trained(model) if "lora" not in name} == {
        "model.norm.weight",
        *(f"model.layers.2.{norm}.weight" for norm in norms),
    }


def test_full_trains_every_weight_in_the_type_it_has(make_shape: Callable[..., Any]) -> None:
    model = make_shape("qwen3")
    model.set_dtype(mx.bfloat16)
    model.freeze()
    adapters.full(model)
    assert trained(model) == set(flat(model.parameters()))
    assert {value.dtype for value in flat(model.parameters()).values()} == {mx.bfloat16}


LAST = {
    "nothing else": ("mistral", {"final_norm": False}, set()),
    "the norm": ("mistral", {}, {"model.norm.weight"}),
    "the head": ("mistral", {"final_norm": False, "head": True}, {"lm_head.weight"}),
    "all three": ("mistral", {"head": True, "embeddings": True}, {"model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"}),
    "a tied head": ("gpt2", {"final_norm": False, "head": True}, {"model.wte.weight"}),
    "a norm of two parts": ("gpt2", {}, {"model.ln_f.weight", "model.ln_f.bias"}),
    "no attention": ("mamba", {}, {"backbone.norm_f.weight"}),
}


@pytest.mark.parametrize("case", LAST)
def test_last_layers_trains_the_last_blocks_whole_and_what_is_named(make_shape: Callable[..., Any], case: str) -> None:
    name, knobs, beside = LAST[case]
    model = make_shape(name)
    prefix = {"mistral": "model.layers", "gpt2": "model.h", "mamba": "backbone.layers"}[name]
    blocks = {key for key in flat(model.parameters()) if key.startswith((f"{prefix}.1.", f"{prefix}.2."))}
    adapters.last_layers(model, layers=2, **knobs)
    assert trained(model) == blocks | beside


@pytest.mark.parametrize("adapter", [adapters.full, partial(adapters.last_layers, layers=1)], ids=["full", "last_layers"])
def test_a_quantised_model_is_not_trained_in_full(make_shape: Callable[..., Any], adapter: Callable[..., None]) -> None:
    model = make_shape("qwen3")
    nn.quantize(model, group_size=32, bits=4, class_predicate=lambda _, module: isinstance(module, nn.Embedding))
    with pytest.raises(ModelError, match="a quantised model can't be trained in full; use adapter=lora or dora, or a base"):
        adapter(model)
