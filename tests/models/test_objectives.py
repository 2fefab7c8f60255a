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
from forge.training.objectives import causal_lm, shift, token_losses

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


NAMES = ["llama", "qwen3", "gemma3_text", "phi3", "mistral", "ministral3", "gpt2", "mamba", "mixtral"]


def by_mlx(model: Any, batch: Batch, smoothing: float) -> mx.array:
    """All logits, and MLX's own loss."""
    inputs, targets, mask, _ = shift(batch)
    return (nn.losses.cross_entropy(model(inputs), targets, label_smoothing=smoothing) * mask).sum()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_loss_and_gradients_of_each_architecture_are_those_of_all_logits(
    make_shape: Callable[..., Any], packed: Callable[..., Batch], name: str, chunk: int, smoothing: float
) -> None:
    model, batch = make_shape(name), packed([3, 0, 7, 1, 20, 5], [11, 28, 4, 4, 4], row=6)
    loss, gradients = nn.value_and_grad(model, lambda: causal_lm(model, batch, chunk=chunk, label_smoothing=smoothing)[0])()
    expected_loss, expected = nn.value_and_grad(model, lambda: by_mlx(model, batch, smoothing))()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    for key, value in flat(expected).items():
        np.testing.assert_allclose(np.array(flat(gradients)[key]), np.array(value), atol=1e-5 * max(1.0, mx.abs(value).max().item()))


def test_further_terms_are_in_the_loss_and_plain_cross_entropy_is_beside_it(packed: Callable[..., Batch]) -> None:
    """The probabilities above, 3 added to each logit: log-sum-exp 3; targets 0 and 1, ln 2 + 2 ln 2 = 3 ln 2.

    The mean of -log p is (1 + 2 + 3 + 3) / 4 ln 2 = 9/4 ln 2. Smoothing 0.1: 0.9 · 3 ln 2 + 0.1 · 2 · 9/4 ln 2. z: 0.01 · 2 · 3².
    """
    loss, (count, sums) = causal_lm(Frequencies(), packed([3, 0, 1]), label_smoothing=0.1, z_loss=0.01)
    assert count.item() == 2
    assert sums["cross_entropy"].item() == pytest.approx(3 * math.log(2), rel=1e-5)
    assert sums["z_loss"].item() == pytest.approx(0.18, rel=1e-5)
    assert loss.item() == pytest.approx(3.15 * math.log(2) + 0.18, rel=1e-5)
    assert list(causal_lm(Frequencies(), packed([3, 0, 1]), label_smoothing=0.1)[1][1]) == ["cross_entropy"]


class Counts(nn.Module):
    """Notes how many positions its head is given; one matrix, tied."""

    layers: tuple[()] = ()

    def __init__(self) -> None:
        super().__init__()
        self.embed, seen = nn.Embedding(8, 4), []
        self._seen: list[int] = seen

        class Head(nn.Linear):
            def __call__(self, x: mx.array) -> mx.array:
                seen.append(x.size // x.shape[-1])
                return super().__call__(x)

        self.lm_head = Head(4, 8)

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.lm_head(self.embed(tokens))


@pytest.mark.parametrize("of", [causal_lm, token_losses])
def test_a_position_that_is_no_target_has_no_logits(of: Callable[..., Any], packed: Callable[..., Batch]) -> None:
    """Of eleven positions three are targets, which come in chunks of two and one."""
    model, batch = Counts(), packed([1, 2, 3, 4])
    of(model, batch)  # finds the head
    model._seen.clear()
    of(model, batch, chunk=2)
    assert model._seen == [2, 1]


def test_evaluation_gives_the_loss_of_training(make_shape: Callable[..., Any], packed: Callable[..., Batch]) -> None:
    model, batch = make_shape("qwen3"), packed([3, 0, 7, 1], [2, 1, 9], [4, 4], row=7)
    losses_BT = token_losses(model, batch)
    loss, (count, _) = causal_lm(model, batch)
    assert losses_BT.sum().item() == pytest.approx(loss.item(), rel=1e-5)
    assert (np.array(losses_BT) > 0).sum() == count.item() == 6


class Echo(nn.Module):
    """The embeddings are the logits, and zero: what is left is noise."""

    layers: tuple[()] = ()

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.embed.weight = mx.zeros((8, 16))

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.embed(tokens) * 1


def test_noise_is_uniform_and_scaled_by_each_rows_tokens(packed: Callable[..., Batch]) -> None:
    """alpha / sqrt(T D): 6 / sqrt(9 · 16) = 1/2 for the row of 9 input tokens, 6 / sqrt(4 · 16) = 3/4 for the row of 4."""
    from forge.training.ends import hidden_states
    from forge.training.objectives import _neftune

    mx.random.seed(0)
    batch = packed([*range(1, 8), 1, 2, 3], [1, 2, 3, 4], row=10)
    inputs, *_ = shift(batch)
    out = np.array(hidden_states(Echo(), inputs, None, _neftune(batch, 6.0))[0])
    for noise, most in [(out[0], 0.5), (out[1], 0.75)]:
        assert most * 0.9 < np.abs(noise).max() <= most
        assert np.abs(noise).mean() == pytest.approx(most / 2, rel=0.2)


def test_noise_comes_in_training_only(make_shape: Callable[..., Any], packed: Callable[..., Batch]) -> None:
    model, batch = make_shape("qwen3"), packed([3, 0, 7, 1])
    plain = causal_lm(model, batch)[0].item()
    model.train()
    assert abs(causal_lm(model, batch, neftune_alpha=5.0)[0].item() - plain) > 1e-4
    assert token_losses(model, batch).sum().item() == pytest.approx(plain, rel=1e-5)
    model.eval()
    assert causal_lm(model, batch, neftune_alpha=5.0)[0].item() == plain
