"""Documents packed into one row must not see each other, on every architecture that says so."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forge.data.pack import PackedRows
from forge.spec import Batch
from forge.training.isolation import forward, keeps_apart
from forge.training.objectives import causal_lm, shift

VOCAB = 29
ROTARY = ["qwen3", "llama", "gemma3_text", "phi3", "ministral3"]
LENGTHS = (9, 7, 5)  # packed in this order: the longest first


def documents(seed: int = 1) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCAB, length).astype(np.int32) for length in LENGTHS]


def batch(tokens: list[np.ndarray], isolated: bool) -> Batch:
    """One row of 24 tokens with all three, or three rows with one each."""
    rows = PackedRows(tokens, [f"d{n}" for n in range(len(tokens))], 24, isolated)
    assert len(rows) == (1 if isolated else 3)
    return rows.batch(range(len(rows)))


def losses(model: Any, tokens: list[np.ndarray]) -> list[np.ndarray]:
    """Each document's losses, position by position, from one packed row; log-softmax by numpy."""
    inputs, targets, mask, segments = shift(batch(tokens, isolated=True))
    logits = np.array(forward(model, inputs, segments).astype(mx.float32), dtype=np.float64)[0]
    normal = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    each = (normal - logits[np.arange(len(logits)), np.array(targets)[0]])[np.array(mask)[0]]
    return np.split(each, np.cumsum([length - 1 for length in LENGTHS])[:-1])


@pytest.mark.parametrize("name", ROTARY)
def test_packed_and_unpacked_losses_are_equal(make_shape: Callable[..., Any], name: str) -> None:
    model = make_shape(name)
    packed, (count, _) = causal_lm(model, batch(documents(), isolated=True))
    apart, (count_apart, _) = causal_lm(model, batch(documents(), isolated=False))
    assert count.item() == count_apart.item() == sum(LENGTHS) - 3
    assert packed.item() == pytest.approx(apart.item(), rel=1e-5)


@pytest.mark.parametrize("name", ROTARY)
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_changing_one_document_leaves_the_others_losses(make_shape: Callable[..., Any], name: str, changed: int) -> None:
    model = make_shape(name)
    before, tokens = losses(model, documents()), documents()
    tokens[changed] = (tokens[changed] + 1) % VOCAB
    after = losses(model, tokens)
    for number in {0, 1, 2} - {changed}:
        np.testing.assert_allclose(after[number], before[number], atol=1e-5)
    assert np.abs(after[changed] - before[changed]).max() > 0.01


@pytest.mark.parametrize("name", ROTARY)
def test_a_position_sees_nothing_that_comes_later(make_shape: Callable[..., Any], name: str) -> None:
    """The last token of a document is changed: the losses of its earlier targets stay."""
    model, tokens = make_shape(name), documents()
    before = losses(model, tokens)[0]
    tokens[0][-1] = (tokens[0][-1] + 1) % VOCAB
    after = losses(model, tokens)[0]
    np.testing.assert_allclose(after[:-1], before[:-1], atol=1e-5)
    assert abs(after[-1] - before[-1]) > 0.01


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_gradients_are_equal_packed_and_unpacked(make_shape: Callable[..., Any], name: str) -> None:
    import mlx.nn as nn

    from forge.arrays import flat

    model = make_shape(name)
    grads = [
        flat(nn.value_and_grad(model, lambda rows: causal_lm(model, rows)[0])(batch(documents(), isolated))[1])
        for isolated in (True, False)
    ]
    for key, value in grads[0].items():
        np.testing.assert_allclose(np.array(value), np.array(grads[1][key]), atol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_models_are_found_to_keep_documents_apart(make_shape: Callable[..., Any], name: str) -> None:
    assert keeps_apart(make_shape(name)) is True


@pytest.mark.parametrize("name", ["gpt2", "mamba"])
def test_learned_positions_and_state_spaces_are_found_out(make_shape: Callable[..., Any], name: str) -> None:
    assert keeps_apart(make_shape(name)) is False


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounding_in_bf16_is_not_taken_for_a_leak(make_shape: Callable[..., Any], name: str, seed: int) -> None:
    model = make_shape(name, seed)
    model.set_dtype(mx.bfloat16)
    assert keeps_apart(model) is True


def test_a_bf16_model_with_learned_positions_is_found_out(make_shape: Callable[..., Any]) -> None:
    model = make_shape("gpt2")
    model.set_dtype(mx.bfloat16)
    assert keeps_apart(model) is False


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mamba"])
@pytest.mark.parametrize("training", [True, False])
def test_asking_leaves_the_mode_as_it_was(make_shape: Callable[..., Any], name: str, training: bool) -> None:
    model = make_shape(name)
    model.train(training)
    keeps_apart(model)
    assert model.training is training
