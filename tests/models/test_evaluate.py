"""Evaluation: each held-out target once, by hand, with nothing left behind."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge.models import Loaded, adapters
from forge.spec import Batch, Data
from forge.training.evaluate import baseline, evaluate, loss_sum, scores_on_test, targets


class Frequencies(nn.Module):
    """The next token is 0 with probability 1/2, 1 with 1/4, 2 and 3 with 1/8, whatever stands before it."""

    layers: tuple[()] = ()

    def __call__(self, tokens_BT: mx.array, cache: object = None) -> mx.array:
        return mx.broadcast_to(mx.log(mx.array([0.5, 0.25, 0.125, 0.125])), (*tokens_BT.shape, 4))


@pytest.fixture
def batches(pack_rows: Callable[..., Any]) -> Callable[..., tuple[Batch, ...]]:
    """batches([1, 0], …, batch_rows=2): a document a row, in rows of 8."""

    def make(*documents: list[int], batch_rows: int) -> tuple[Batch, ...]:
        rows = pack_rows(documents, [str(n) for n in range(len(documents))], 8, packed=False)
        return tuple(rows.batch(range(at, min(at + batch_rows, len(rows)))) for at in range(0, len(rows), batch_rows))

    return make


@pytest.fixture
def by_hand(toy_data: Data, batches: Callable[..., tuple[Batch, ...]]) -> Data:
    """`a`: targets 0 0 0, then 1, then 0 1: the last batch is smaller. `b`: targets 2 3."""
    valid = {"a": batches([1, 0, 0, 0], [1, 1], [1, 0, 1], batch_rows=2), "b": batches([1, 2, 3], batch_rows=2)}
    return replace(toy_data, valid=valid, valid_bytes={"a": 9, "b": 3}, unigram={"a": 1.5, "b": 2.5})


def test_the_test_rows_are_measured_apart(by_hand: Data, batches: Callable[..., tuple[Batch, ...]]) -> None:
    """In bits: 1 + 2 = 3 over 2 targets; validation is another matter. Without test rows there is no number."""
    kept = replace(by_hand, test={"a": batches([0, 0, 1], batch_rows=2)})
    assert scores_on_test(Frequencies(), kept) == {name: pytest.approx(1.5 * math.log(2)) for name in ("test/loss", "test/loss/a")}
    assert scores_on_test(Frequencies(), by_hand) == {}


def test_losses_are_means_over_targets_by_hand(by_hand: Data) -> None:
    """In bits: a has 3·1 + 2 + 1 + 2 = 8 over 6 targets, b 3 + 3 = 6 over 2; together 14 over 8 targets and 12 bytes."""
    assert evaluate(Frequencies(), by_hand) == {
        "val/loss": pytest.approx(14 / 8 * math.log(2)),
        "val/loss/a": pytest.approx(8 / 6 * math.log(2)),
        "val/loss/b": pytest.approx(3 * math.log(2)),
        "val/perplexity": pytest.approx(2 ** (14 / 8)),
        "val/bits_per_byte": pytest.approx(14 / 12),
    }


def test_the_baseline_weighs_sources_by_their_targets(by_hand: Data) -> None:
    assert baseline(by_hand) == {
        "val/unigram_loss": pytest.approx((6 * 1.5 + 2 * 2.5) / 8),
        "val/unigram_loss/a": 1.5,
        "val/unigram_loss/b": 2.5,
    }
    assert targets(by_hand.valid) == {"a": 6, "b": 2}


def test_each_target_is_counted(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    for name, rows in toy_data.valid.items():
        _, count = loss_sum(make_tiny_model().model, rows)
        assert count == toy_data.ledger.counts[f"data/{name}/targets_evaluated"] > 100


def test_batches_of_another_size_give_the_same_loss(
    make_tiny_model: Callable[..., Loaded], batches: Callable[..., tuple[Batch, ...]]
) -> None:
    model = make_tiny_model().model
    documents = [[1, *range(n, n + n % 5 + 1)] for n in range(2, 15)]
    losses = [loss_sum(model, batches(*documents, batch_rows=size)) for size in (1, 4, 13)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_evaluating_draws_nothing_and_moves_nothing(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    """Random streams of MLX and numpy, the training cursor and the mode stay; dropout is off."""
    model = make_tiny_model().model
    adapters.lora(model, rank=2, alpha=4.0, dropout=0.5, targets="linear", layers=None)
    for layer in model.layers:
        layer.mlp.up_proj.lora_b = mx.ones_like(layer.mlp.up_proj.lora_b)
    model.train()
    toy_data.train.next()
    mx.random.seed(1)

    def state() -> list[object]:
        numpy = np.random.get_state()
        return [np.array(mx.random.state[0]).tolist(), numpy[1].tolist(), numpy[2], toy_data.train.cursor, model.training]

    before = state()
    first = evaluate(model, toy_data)
    assert state() == before
    mx.random.seed(2)
    assert evaluate(model, toy_data) == first
    model.eval()
    assert evaluate(model, toy_data) == first
    assert model.training is False


def test_the_mode_comes_back_after_an_error(make_tiny_model: Callable[..., Loaded]) -> None:
    model = make_tiny_model().model
    model.train()
    with pytest.raises(AttributeError):
        loss_sum(model, [None])  # type: ignore[list-item]
    assert model.training is True


def test_a_hopeless_model_has_an_infinite_perplexity_not_an_error(by_hand: Data) -> None:
    class Wrong(nn.Module):
        layers: tuple[()] = ()

        def __call__(self, tokens_BT: mx.array, cache: object = None) -> mx.array:
            return mx.broadcast_to(mx.array([0.0, 0.0, 0.0, 5000.0]), (*tokens_BT.shape, 4))

    found = evaluate(Wrong(), by_hand)
    assert found["val/perplexity"] == math.inf and math.isfinite(found["val/loss"])
