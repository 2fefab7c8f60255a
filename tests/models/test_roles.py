import re
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from forge.models import adapters
from forge.models.roles import roles

SHAPES = ("llama", "qwen3", "gemma3_text", "phi3", "mistral", "ministral3", "gpt2", "mamba", "mixtral")
# How people tell them apart, by the names of these nine; the first that fits.
BY_NAME = {
    r"\.bias$": "bias",
    r"norm|\.ln_|\.A_log$|\.D$": "norm",
    r"embed_tokens|\.wte\.|\.wpe\.|embeddings": "embedding",
    r"^lm_head": "head",
    r"": "matrix",
}
KNOBS = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "layers": None}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_of_a_model_has_the_role_that_its_name_says(make_shape: Callable[..., Any], shape: str) -> None:
    found = roles(make_shape(shape))
    assert found == {name: next(role for pattern, role in BY_NAME.items() if re.search(pattern, name)) for name in found}
    untied = {"gemma3_text", "phi3", "mistral", "mixtral"}
    assert ("head" in found.values()) == (shape in untied)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("adapter", [adapters.lora, adapters.dora])
def test_adapters_have_the_roles_of_their_parts_and_frozen_weights_none(
    make_shape: Callable[..., Any], adapter: Callable[..., None], shape: str
) -> None:
    if (shape, adapter) == ("mixtral", adapters.dora):
        pytest.skip("experts have no DoRA")
    model = make_shape(shape)
    adapter(model, targets="linear", **KNOBS)
    found = roles(model)
    parts = {"lora_a": "lora_a", "lora_b": "lora_b", "m": "norm"}  # m: DoRA's magnitudes
    assert found == {name: parts[name.rpartition(".")[2]] for name in found}
    assert set(found.values()) == ({"lora_a", "lora_b"} if adapter is adapters.lora else {"lora_a", "lora_b", "norm"})


@pytest.mark.parametrize("adapter", [adapters.lora, adapters.dora])
def test_an_adapted_embedding_or_head_is_an_adapter(make_shape: Callable[..., Any], adapter: Callable[..., None]) -> None:
    model = make_shape("mistral")
    adapter(model, targets="embeddings", **KNOBS)
    found = roles(model)
    assert {name: role for name, role in found.items() if role != "norm"} == {
        "model.embed_tokens.lora_a": "lora_a",
        "model.embed_tokens.lora_b": "lora_b",
        "lm_head.lora_a": "lora_a",
        "lm_head.lora_b": "lora_b",
    }


class Gate(nn.Module):
    """Holds its matrix itself, as routers of experts do; and a bias by a longer name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.correction_bias = mx.zeros((3, 4)), mx.zeros(3)


class PerHeadNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = mx.ones((2, 2))


class Model(nn.Module):
    """A layer outside the blocks is the head only if it predicts tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.project, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.layers = [nn.Sequential(Gate(), PerHeadNorm(), nn.Linear(4, 7))]
        self.gains = [mx.ones((4, 4))]

    def __call__(self, ids: mx.array) -> mx.array:
        return self.out(self.project(self.table(ids)))


def test_modules_that_are_no_one_s_layers_are_told_by_what_they_hold() -> None:
    assert roles(Model()) == {
        "table.weight": "embedding",
        "project.weight": "matrix",
        "project.bias": "bias",
        "out.weight": "head",
        "out.bias": "bias",
        "layers.0.layers.0.weight": "matrix",
        "layers.0.layers.0.correction_bias": "bias",
        "layers.0.layers.1.weight": "norm",
        "layers.0.layers.2.weight": "matrix",
        "layers.0.layers.2.bias": "bias",
        "gains.0": "norm",
    }
