"""Attention in blocks is attention: what is left out was hidden."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge import blas
from forge.training import attention
from forge.training.attention import in_blocks

LENGTH = 300  # positions: three blocks, the last of them short


def made(*shape: int) -> mx.array:
    return mx.random.normal(shape)


def by_numpy(q: Any, k: Any, v: Any, visible: np.ndarray) -> np.ndarray:
    """softmax(q kᵀ / 2) v over what is visible; visible: (B, T, T)."""
    scores = np.where(visible[:, None], np.einsum("bhtd,bhsd->bhts", np.array(q), np.array(k)) / 2, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdims=True), np.array(v))


CAUSAL = np.tril(np.ones((LENGTH, LENGTH), dtype=bool))
SEGMENTS = np.stack([np.repeat([1, 2, 3, 0], [140, 20, 100, 40]), np.repeat([1, 2, 3, 4], [10, 250, 5, 35])])
WINDOW = CAUSAL & ~np.tril(CAUSAL, -50)


@pytest.mark.parametrize("kind", ["causal by name", "causal", "window", "packed", "packed window"])
def test_equal_to_attention_by_hand(kind: str) -> None:
    mx.random.seed(0)
    q, k, v = (made(2, 2, LENGTH, 4) for _ in range(3))
    packed = kind.startswith("packed")
    same = SEGMENTS[:, :, None] == SEGMENTS[:, None, :] if packed else np.ones((2, LENGTH, LENGTH), dtype=bool)
    visible = same & (WINDOW if kind.endswith("window") else CAUSAL)
    mask = "causal" if kind == "causal by name" else mx.array(visible)[:, None]
    with in_blocks(mx.array(SEGMENTS) if packed else None):
        found = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask=mask)
    np.testing.assert_allclose(np.array(found), by_numpy(q, k, v, visible), atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_models_give_the_same_logits_and_gradients(make_model: Callable[..., Any], packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge.arrays import flat
    from forge.training.isolation import forward

    model = make_model()
    tokens, segments = mx.random.randint(0, 20, (2, LENGTH)), mx.array(SEGMENTS) if packed else None

    def run(block: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        monkeypatch.setattr(attention, "_BLOCK", block)
        gradients = nn.value_and_grad(model, lambda: mx.logsumexp(forward(model, tokens, segments)).sum())()[1]
        return np.array(forward(model, tokens, segments)), {key: np.array(value) for key, value in flat(gradients).items()}

    (logits, gradients), (whole, expected) = run(128), run(10**6)
    np.testing.assert_allclose(logits, whole, atol=1e-5)
    for key, value in expected.items():
        np.testing.assert_allclose(gradients[key], value, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("cores", [1, 5])
@pytest.mark.parametrize("kind", ["causal", "packed", "window of two dimensions"])
def test_outputs_and_gradients_with_shared_keys_are_mlx_s(kind: str, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six heads of queries to two of keys, values of another size, three rows, on one core and on several."""
    mx.random.seed(0)
    monkeypatch.setattr(blas, "cores", lambda: cores)
    q, k, v, weights = (made(3, heads, LENGTH, size) for heads, size in ((6, 4), (2, 4), (2, 8), (6, 8)))
    segments = np.concatenate([SEGMENTS, SEGMENTS[:1]])
    visible = (segments[:, :, None] == segments[:, None, :]) & CAUSAL
    masks = {
        "causal": "causal",
        "packed": mx.array(visible)[:, None],
        "window of two dimensions": mx.array(WINDOW),
    }

    def run(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask=masks[kind])
        return (out * weights).sum()

    expected, of_expected = mx.value_and_grad(run, argnums=(0, 1, 2))(q, k, v)
    with in_blocks(mx.array(segments) if kind == "packed" else None):
        found, of_found = mx.value_and_grad(run, argnums=(0, 1, 2))(q, k, v)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(of_found, of_expected, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5 * max(1.0, mx.abs(b).max().item()))


@pytest.mark.parametrize("kind", ["keys of before", "sinks", "mask of keys alone", "mask of each head", "no mask"])
def test_whatever_else_is_asked_goes_mlx_s_way(kind: str) -> None:
    q, (k, v) = made(1, 2, LENGTH, 4), (made(1, 2, LENGTH + 10 * (kind == "keys of before"), 4) for _ in range(2))
    masks = {
        "mask of keys alone": mx.array(np.arange(LENGTH) < 200),
        "mask of each head": mx.array(np.stack([CAUSAL, WINDOW])),
        "no mask": None,
    }
    given = {"scale": 0.5, "mask": masks.get(kind, "causal"), "sinks": mx.array([1.0, 2.0]) if kind == "sinks" else None}
    expected = mx.fast.scaled_dot_product_attention(q, k, v, **given)
    with in_blocks(None):
        found = mx.fast.scaled_dot_product_attention(q, k, v, **given)
    assert mx.array_equal(found, expected).item()


def test_an_added_mask_has_its_gradient() -> None:
    """With one head, DeepSeek's rotary share of the scores is such a mask."""
    q, k, v = (made(1, 1, LENGTH, 4) for _ in range(3))

    def run(added: mx.array) -> mx.array:
        mask = mx.where(mx.array(CAUSAL), added, -mx.inf)
        return mx.square(mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask=mask)).sum()

    added = made(LENGTH, LENGTH)
    expected = mx.grad(run)(added)
    with in_blocks(None):
        found = mx.grad(run)(added)
    assert mx.array_equal(found, expected).item() and mx.abs(found).max() > 1e-3


@pytest.mark.parametrize("cores", [1, 2])
def test_what_is_not_finite_passes_through_without_a_warning(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guards name it. A block of queries that sees an infinite score is NaN, and one before it is not."""
    monkeypatch.setattr(blas, "cores", lambda: cores)
    q, k, v = (made(1, 2, LENGTH, 4) for _ in range(3))
    k[:, :, LENGTH - 1] = float("inf")

    def run(v: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask="causal")[:, :, [0, -1]].sum(axis=(0, 1, 3))

    with in_blocks(None):
        assert mx.isnan(run(v)).tolist() == [False, True]
        assert mx.isnan(mx.grad(lambda v: run(v).sum())(v)).any().item()


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_other_types_go_mlx_s_way(dtype: mx.Dtype) -> None:
    q, k, v = (made(1, 1, LENGTH, 4).astype(dtype) for _ in range(3))
    expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask="causal")
    with in_blocks(None):
        found = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask="causal")
    assert found.dtype == dtype
    assert mx.array_equal(found, expected).item()


def test_hidden_keys_are_not_computed_with() -> None:
    """A key that nobody may see is NaN: whole attention would spread it through 0 · NaN."""
    q, k, v = (made(1, 1, LENGTH, 4) for _ in range(3))
    segments = np.repeat([1, 2], [128, LENGTH - 128])[None]
    v[:, :, :128] = float("nan")
    mask = mx.array((segments[:, :, None] == segments[:, None, :]) & CAUSAL)[:, None]
    with in_blocks(mx.array(segments)):
        found = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.5, mask=mask)
    assert not np.isnan(np.array(found[:, :, 128:])).any()


def test_the_function_is_back_afterwards_also_behind_an_error() -> None:
    before = mx.fast.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), in_blocks(None):
        assert mx.fast.scaled_dot_product_attention is not before
        1 / 0  # noqa: B018
    assert mx.fast.scaled_dot_product_attention is before
