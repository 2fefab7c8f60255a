"""The two ends of each architecture are found, and running up to the head then on is running the model."""

import gc
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

import forge  # noqa: F401
from forge.arrays import flat
from forge.errors import ModelError
from forge.training import ends
from forge.training.ends import LOGITS, hidden_states
from forge.training.isolation import forward

NAMES = ["llama", "qwen3", "gemma3_text", "phi3", "mistral", "ministral3", "gpt2", "mamba", "mixtral"]
TOKENS = mx.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
SEGMENTS = mx.array([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 2]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_hidden_states_and_head_make_the_logits(make_shape: Callable[..., Any], name: str, segments: mx.array | None) -> None:
    if segments is not None and name in ("mamba", "mixtral"):
        pytest.skip("packs no documents")
    model = make_shape(name)
    before = flat(model.parameters())
    hidden, head = hidden_states(model, TOKENS, segments)
    assert head is not LOGITS
    assert hidden.shape == (2, 6, 32)
    np.testing.assert_allclose(np.array(head(hidden)), np.array(forward(model, TOKENS, segments)), atol=1e-6)
    assert list(flat(model.parameters())) == list(before)


class Capped(nn.Module):
    """Something stands behind the projection, as in Gemma 2."""

    layers = ()

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(29, 8), nn.Linear(8, 29)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return mx.tanh(self.lm_head(self.embed(tokens)))


class Given(nn.Module):
    """No modules at all."""

    layers = ()

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return mx.broadcast_to(mx.arange(4.0), (*tokens.shape, 4))


@pytest.mark.parametrize("make", [Capped, Given])
def test_where_no_head_gives_the_answer_the_logits_are_what_there_is(make: Callable[[], Any]) -> None:
    model = make()
    logits, head = hidden_states(model, TOKENS, None)
    assert head is LOGITS
    np.testing.assert_array_equal(np.array(logits), np.array(model(TOKENS)))


def test_an_adapter_on_the_head_and_one_on_the_embedding_are_run_through(make_shape: Callable[..., Any]) -> None:
    """Put on after the ends were looked for, as nothing says when a model is adapted."""
    for name, owner, key, adapter in [("mistral", "", "lm_head", LoRALinear), ("qwen3", "model", "embed_tokens", LoRAEmbedding)]:
        model = make_shape(name)
        hidden_states(model, TOKENS, None)
        place = model[owner] if owner else model
        place[key] = adapter.from_base(place[key], r=2)
        place[key].lora_b = mx.ones(place[key].lora_b.shape)
        hidden, head = hidden_states(model, TOKENS, None)
        assert isinstance(head.module, adapter)
        np.testing.assert_allclose(np.array(head(hidden)), np.array(model(TOKENS)), rtol=1e-5, atol=1e-5)


def test_a_cap_that_comes_later_is_noticed() -> None:
    model = Capped()
    model.lm_head, capped = nn.Linear(8, 29), mx.tanh
    try:
        mx.tanh = lambda x: x
        assert hidden_states(model, TOKENS, None)[1] is not LOGITS
    finally:
        mx.tanh = capped
    logits, head = hidden_states(model, TOKENS, None)
    assert head is LOGITS
    np.testing.assert_array_equal(np.array(logits), np.array(model(TOKENS)))


@pytest.mark.parametrize("name", NAMES)
def test_noise_goes_on_the_input_embeddings_alone(make_shape: Callable[..., Any], name: str) -> None:
    """Noise that cancels the embeddings leaves what the model makes of zeros; the tied head still has its weights."""
    model = make_shape(name)
    hidden, head = hidden_states(model, TOKENS, None, lambda embeddings: -embeddings)
    given: list[tuple[int, ...]] = []
    hidden_states(model, TOKENS, None, lambda embeddings: given.append(embeddings.shape) or mx.zeros_like(embeddings))  # type: ignore[func-returns-value]
    assert given == [(2, 6, 32)]
    expected, _ = hidden_states(model, TOKENS + 1, None, lambda embeddings: -embeddings)
    np.testing.assert_allclose(np.array(hidden), np.array(expected), atol=1e-6)
    assert mx.abs(head(mx.ones((1, 32)))).max().item() > 0


def test_noise_with_no_embedding_to_go_on_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no input embedding is found.*neftune_alpha"):
        hidden_states(Given(), TOKENS, None, lambda embeddings: embeddings)


def test_looking_draws_no_random_numbers(make_shape: Callable[..., Any]) -> None:
    model = make_shape("mistral")
    model.lm_head = LoRALinear.from_base(model.lm_head, dropout=0.5)
    model.train()
    mx.random.seed(2**40 + 3)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(2**40 + 3)
    ends._ends(model)
    assert mx.random.uniform(shape=(3,)).tolist() == expected


def test_what_was_found_is_forgotten_with_the_model(make_shape: Callable[..., Any]) -> None:
    model = make_shape("llama")
    hidden_states(model, TOKENS, None)
    key = id(model)
    assert key in ends._ENDS
    del model
    gc.collect()
    assert key not in ends._ENDS
