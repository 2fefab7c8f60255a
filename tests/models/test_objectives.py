"""The loss against numpy, the shift, and which targets count."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge.arrays import flat
from forge.data.pack import join
from forge.spec import Batch
from forge.training.objectives import causal_lm, shift

VOCAB = 29
# By target token: the log of 1/2, 1/4, 1/8, 1/8, whatever stands before it.
PROBABILITIES = (0.5, 0.25, 0.125, 0.125)


class Frequencies(nn.Module):
    """Logits that are the same everywhere, with 3 added, which changes no probability."""

    layers: tuple[()] = ()

    def __init__(self, dtype: mx.Dtype = mx.float32):
        super().__init__()
        self.logits_V = (mx.log(mx.array(PROBABILITIES)) + 3).astype(dtype)

    def __call__(self, tokens_BT: mx.array, cache: Any = None) -> mx.array:
        return mx.broadcast_to(self.logits_V, (*tokens_BT.shape, 4))


@pytest.fixture
def packed(pack_rows: Callable[..., Any]) -> Callable[..., Batch]:
    """packed([3, 0, 1], …, row=12): all documents, packed."""

    def make(*documents: list[int], row: int = 12) -> Batch:
        rows = pack_rows(documents, [f"d{n}" for n in range(len(documents))], row)
        return rows.batch(range(len(rows)))

    return make


def blank(row: int) -> Batch:
    """A row that has tokens but no target, as a prompt as long as the window would."""
    return Batch(np.full((1, row), 3, dtype=np.int32), np.zeros((1, row), dtype=bool), np.ones((1, row), dtype=np.int32), ("blank",))


def test_the_loss_by_hand(packed: Callable[..., Batch]) -> None:
    """Targets 0 and 1 of one document, with probabilities 1/2 and 1/4: ln 2 + ln 4, two targets."""
    loss, (count, sums) = causal_lm(Frequencies(), packed([3, 0, 1]))
    assert loss.item() == pytest.approx(math.log(2) + math.log(4), rel=1e-6)
    assert (count.item(), dict(sums)) == (2, {})


def test_only_targets_count_neither_padding_nor_first_tokens(packed: Callable[..., Batch]) -> None:
    """Four tokens are three targets; the mask of mlx-lm's loop counts a fourth, the pad behind them."""
    loss, (count, _) = causal_lm(Frequencies(), packed([3, 0, 0, 1], [2, 1, 1]))
    assert count.item() == 3 + 2
    assert loss.item() == pytest.approx(2 * math.log(2) + 3 * math.log(4), rel=1e-6)


def test_what_the_padding_holds_changes_nothing(make_shape: Callable[..., Any], packed: Callable[..., Batch]) -> None:
    model, batch = make_shape("qwen3"), packed([3, 0, 7, 1], [2, 1, 9])
    tokens = np.where(batch.segments_BT == 0, 17, batch.tokens_BT)
    assert (tokens != batch.tokens_BT).any()
    losses = [
        causal_lm(model, Batch(each, batch.mask_BT, batch.segments_BT, batch.row_ids))[0].item() for each in (batch.tokens_BT, tokens)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_loss_is_numpys(make_shape: Callable[..., Any], packed: Callable[..., Batch]) -> None:
    """-log softmax, document by document, from the model's logits for the document alone."""
    documents = [[3, 0, 7, 1, 20, 5], [2, 1, 9], [11, 28, 4, 4, 4]]
    model, expected = make_shape("qwen3"), 0.0
    for document in documents:
        logits = np.array(model(mx.array([document[:-1]])), dtype=np.float64)[0]
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected -= np.log(probabilities[np.arange(len(document) - 1), document[1:]]).sum()
    loss, (count, _) = causal_lm(model, packed(*documents))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert count.item() == 5 + 2 + 4


def test_a_row_without_targets_adds_nothing_and_no_nan(make_shape: Callable[..., Any], packed: Callable[..., Batch]) -> None:
    model, batch = make_shape("qwen3"), packed([3, 0, 7, 1], [2, 1, 9])

    def gradients(rows: Batch) -> tuple[float, int, dict[str, np.ndarray]]:
        (loss, (count, _)), grads = nn.value_and_grad(model, lambda each: causal_lm(model, each))(rows)
        return loss.item(), count.item(), {name: np.array(value) for name, value in flat(grads).items()}

    loss, count, grads = gradients(blank(12))
    assert (loss, count) == (0, 0)
    assert all((value == 0).all() for value in grads.values())

    one, other = gradients(batch), gradients(join([batch, blank(12)]))
    assert one[:2] == pytest.approx(other[:2], rel=1e-6)
    for name, value in one[2].items():
        np.testing.assert_allclose(other[2][name], value, atol=1e-5)


def test_low_precision_logits_are_summed_in_fp32(packed: Callable[..., Batch]) -> None:
    """1,024 targets of ln 2 are 709.78; a sum in bf16 has steps of 4."""
    loss, _ = causal_lm(Frequencies(mx.bfloat16), packed([3] + [0] * 1024, row=1025))
    assert loss.dtype == mx.float32
    assert loss.item() == pytest.approx(1024 * math.log(2), rel=5e-3)


def test_the_shift_by_hand(packed: Callable[..., Batch]) -> None:
    inputs, targets, mask, segments = shift(packed([5, 6, 7], [8, 9], row=7))
    assert inputs.tolist() == [[5, 6, 7, 8, 9, 0]]
    assert targets.tolist() == [[6, 7, 8, 9, 0, 0]]
    assert mask.astype(mx.int32).tolist() == [[1, 1, 0, 1, 0, 0]]
    assert segments is not None and segments.tolist() == [[1, 1, 1, 2, 2, 0]]


def test_rows_of_one_document_leave_the_mask_to_the_model(packed: Callable[..., Batch]) -> None:
    assert shift(packed([5, 6, 7], row=7))[3] is None
