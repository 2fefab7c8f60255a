"""Evaluation: each held-out target once, by hand, with nothing left behind."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge.data.lots import Lots
from forge.models import Loaded, adapters
from forge.spec import Batch, Data
from forge.training.evaluate import (
    baseline,
    document_names,
    evaluate,
    forgetting,
    full,
    piece_losses,
    row_losses,
    scores_on_test,
)
from forge.training.world import World


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


def metrics(prefix: str, bits: Mapping[str, float], bits_per_byte: Mapping[str, float]) -> dict[str, Any]:
    """What is expected of losses given in bits a target, by ending."""
    found = {f"{prefix}/loss{ending}": each * math.log(2) for ending, each in bits.items()}
    found |= {f"{prefix}/perplexity{ending}": 2**each for ending, each in bits.items()}
    found |= {f"{prefix}/bits_per_byte{ending}": each for ending, each in bits_per_byte.items()}
    return {name: pytest.approx(value) for name, value in found.items()}


BY_SOURCE = {"/a": 8 / 6, "/b": 6 / 2}, {"/a": 8 / 9, "/b": 6 / 3}


def test_losses_are_means_over_targets_by_hand(by_hand: Data) -> None:
    """In bits: a has 3·1 + 2 + 1 + 2 = 8 over 6 targets and 9 bytes, b 3 + 3 = 6 over 2 and 3; together 14 over 8 and 12."""
    scores = evaluate(Frequencies(), by_hand)
    assert scores.metrics == metrics("val", {"": 14 / 8, **BY_SOURCE[0]}, {"": 14 / 12, **BY_SOURCE[1]})
    rows = [(3, 3), (2, 1), (3, 2), (6, 2)]
    assert scores.rows == [(pytest.approx(bits * math.log(2)), count) for bits, count in rows]


def test_a_source_of_weight_zero_counts_under_its_own_name_only(by_hand: Data) -> None:
    """`b` is measured as before; together there is `a` alone, in the rows too."""
    apart = replace(by_hand, unweighted=frozenset({"b"}), valid_full=by_hand.valid, full_bytes=by_hand.valid_bytes)
    scores = evaluate(Frequencies(), apart)
    assert scores.metrics == metrics("val", {"": 8 / 6, **BY_SOURCE[0]}, {"": 8 / 9, **BY_SOURCE[1]})
    assert len(scores.rows) == 3
    assert full(Frequencies(), apart).metrics == metrics("final", {"": 8 / 6, **BY_SOURCE[0]}, {"": 8 / 9, **BY_SOURCE[1]})
    assert baseline(apart) == {"val/unigram_loss": 1.5, "val/unigram_loss/a": 1.5, "val/unigram_loss/b": 2.5}


def test_the_full_set_and_the_test_are_measured_apart(by_hand: Data, batches: Callable[..., tuple[Batch, ...]]) -> None:
    """In bits: 1 + 2 = 3 over 2 targets and 4 bytes, 3 over 1; validation is another matter. Without bytes there are none a byte."""
    more = {"a": batches([0, 0, 1], batch_rows=2)}
    kept = replace(by_hand, test=more, test_bytes={"a": 4}, valid_full={"b": batches([0, 3], batch_rows=2)})
    assert scores_on_test(Frequencies(), kept) == metrics("test", {"": 1.5, "/a": 1.5}, {"": 0.75, "/a": 0.75})
    assert full(Frequencies(), kept).metrics == metrics("final", {"": 3, "/b": 3}, {})
    assert scores_on_test(Frequencies(), by_hand) == {}


def test_documents_are_whole_and_in_the_order_of_their_names_by_hand(by_hand: Data, pack_rows: Callable[..., Any]) -> None:
    """c has 9 tokens where 6 fit, so it is cut: targets 1 1 1 1 1 and 2 2 2 are 5·2 and 3·3 bits. b's targets are 0 3, of which 3 counts
    alone; a's is 0. What two rows of one name hold is one document's."""
    documents = [[0, 1, 1, 1, 1, 1, 2, 2, 2], [0, 0, 3], [0, 0]]
    flags = [[True] * 9, [False, False, True], [True, True]]
    rows = pack_rows(documents, ["c", "b", "a"], 6, targets=flags)
    found = full(Frequencies(), replace(by_hand, valid_full={"s": Lots(rows, 2, True)}, full_bytes={"s": 5}))
    bits = [(name, pytest.approx(loss / math.log(2)), targets) for name, loss, targets in found.documents["s"]]
    assert bits == [("a", 1, 1), ("b", 3, 1), ("c", 19, 8)]
    assert found.metrics == metrics("final", {"": 2.3, "/s": 2.3}, {"": 23 / 5, "/s": 23 / 5})


def test_documents_do_not_depend_on_rows_batches_or_processes(make_tiny_model: Callable[..., Loaded], pack_rows: Callable[..., Any],
                                                              toy_data: Data) -> None:  # fmt: skip
    model = make_tiny_model().model
    documents = [[1, *range(n, n + n % 9 + 1)] for n in range(2, 40)]
    held: list[list[Any]] = []

    class Process(World):
        """Takes its share; the second joins what both have."""

        def join(self, own: Sequence[Any]) -> list[Any]:
            held.append(list(own))
            return [own[n // 2] if n % 2 else held[0][n // 2] for n in range(len(held[0]) + len(own))] if self.rank else list(own)

    def documents_of(size: int, packed: bool, world: World) -> list[tuple[str, float, int]]:
        rows = pack_rows(documents, [f"[{n}:{n + 30}], {n}" for n in range(len(documents))], 12, packed=packed)
        return list(full(model, replace(toy_data, valid_full={"a": Lots(rows, size, packed)}), world).documents["a"])

    one = documents_of(1, True, World())
    assert len(one) == len(documents) and sum(targets for *_, targets in one) == sum(len(document) - 1 for document in documents)
    documents_of(3, True, Process(rank=0, size=2))
    for other in (documents_of(7, True, World()), documents_of(4, False, World()), documents_of(3, True, Process(rank=1, size=2))):
        assert [(name, targets) for name, _, targets in other] == [(name, targets) for name, _, targets in one]
        assert [loss for _, loss, _ in other] == pytest.approx([loss for _, loss, _ in one], rel=1e-5)


def test_documents_of_the_full_set_sum_to_its_loss(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    """And one that is cut over rows is one."""
    model = make_tiny_model().model
    found = full(model, toy_data)
    for source, each in found.documents.items():
        assert len(each) == toy_data.ledger.counts[f"data/{source}/rows_valid"]
        mean = sum(loss for _, loss, _ in each) / sum(targets for *_, targets in each)
        assert found.metrics[f"final/loss/{source}"] == pytest.approx(mean, rel=1e-12)
        rows = list(row_losses(model, toy_data.valid_full[source]))
        assert mean == pytest.approx(sum(loss for loss, _ in rows) / sum(targets for _, targets in rows), rel=1e-6)
    assert len(found.documents["long"]) < len(list(piece_losses(model, toy_data.valid_full["long"])))


@pytest.mark.parametrize(
    ("row_id", "lengths", "names"),
    [
        ("a.txt[0:3], b[7:9]", [3, 2], ["a.txt", "b"]),
        ("x[0:5], y[2:4][0:3]", [3], ["x[0:5], y[2:4]"]),  # one document with an odd name
        ("x[0:3], y[0:3]", [3, 3], ["x", "y"]),
        ("made up", [3, 2], ["made up#1", "made up#2"]),
        ("a[0:3], b[7:9]", [3], ["a[0:3], b[7:9]#1"]),
        ("", [], []),
    ],
)
def test_the_documents_of_a_row_are_read_off_its_name(row_id: str, lengths: list[int], names: list[str]) -> None:
    assert document_names(row_id, lengths) == names


def test_the_baseline_weighs_sources_by_their_targets(by_hand: Data) -> None:
    assert baseline(by_hand) == {
        "val/unigram_loss": pytest.approx((6 * 1.5 + 2 * 2.5) / 8),
        "val/unigram_loss/a": 1.5,
        "val/unigram_loss/b": 2.5,
    }


def test_forgetting_is_what_each_source_has_risen_by() -> None:
    """Of what either side did not measure there is none."""
    base = {"val/loss": 3.0, "val/loss/a": 2.0, "val/loss/b": 1.5, "val/perplexity/a": 7.0, "val/loss/gone": 1.0}
    now = {"val/loss": 2.0, "val/loss/a": 1.25, "val/loss/b": 1.75, "val/perplexity/a": 4.0, "val/loss/new": 1.0}
    assert forgetting(now, base) == {"val/forgetting/a": -0.75, "val/forgetting/b": 0.25}
    assert forgetting({"final/loss/a": 2.0}, {"final/loss/a": 1.0}) == {"final/forgetting/a": 1.0}
    assert math.isnan(forgetting({"val/loss/a": math.nan}, base)["val/forgetting/a"])


def test_each_target_is_counted(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    model = make_tiny_model().model
    for ending, sides in (("", toy_data.valid), ("_full", toy_data.valid_full)):
        for name, side in sides.items():
            targets = sum(count for _, count in row_losses(model, side))
            assert targets == toy_data.ledger.counts[f"data/{name}/targets_evaluated{ending}"] > 100
    scores = evaluate(model, toy_data)
    total = sum(loss for loss, _ in scores.rows) / sum(count for _, count in scores.rows)
    assert scores.metrics["val/loss"] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("packed", [True, False])
def test_batches_of_another_size_give_the_same_losses_row_by_row(
    make_tiny_model: Callable[..., Loaded], pack_rows: Callable[..., Any], toy_data: Data, packed: bool
) -> None:
    model = make_tiny_model().model
    documents = [[1, *range(n, n + n % 9 + 1)] for n in range(2, 40)]
    rows = pack_rows(documents, [str(n) for n in range(len(documents))], 12, packed=packed)
    one, *others = (evaluate(model, replace(toy_data, valid={"a": Lots(rows, size, packed)})) for size in (1, 4, 13, 100))
    for other in others:
        assert other.metrics == pytest.approx(one.metrics, rel=1e-6)
        assert [count for _, count in other.rows] == [count for _, count in one.rows]
        assert [loss for loss, _ in other.rows] == pytest.approx([loss for loss, _ in one.rows], rel=1e-5)


def test_one_batch_is_alive_at_a_time(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    """But for the one before, while the next is made."""
    made: list[weakref.ref[Batch]] = []
    most = 0

    class Watched(Sequence[Batch]):
        def __init__(self, batches: Sequence[Batch]):
            self._batches = batches

        def __len__(self) -> int:
            return len(self._batches)

        def __getitem__(self, number: Any) -> Any:
            nonlocal most
            batch = self._batches[number]
            made.append(weakref.ref(batch))
            most = max(most, sum(reference() is not None for reference in made))
            return batch

    watched = {name: Watched(batches) for name, batches in toy_data.valid.items()}
    full(make_tiny_model().model, replace(toy_data, valid_full=watched))
    evaluate(make_tiny_model().model, replace(toy_data, valid=watched))
    assert len(made) > 20 and most <= 2


def test_evaluating_draws_nothing_and_moves_nothing(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    """What MLX and numpy draw next, the training cursor and the mode stay; dropout is off; twice gives the same to the last bit."""
    model = make_tiny_model().model
    adapters.lora(model, rank=2, alpha=4.0, dropout=0.5, targets="linear", layers=None)
    for layer in model.layers:
        layer.mlp.up_proj.lora_b = mx.ones_like(layer.mlp.up_proj.lora_b)
    model.train()
    toy_data.train.next()

    def drawn(evaluated: bool) -> list[object]:
        mx.random.seed(1)
        np.random.seed(1)
        scores = [evaluate(model, toy_data), full(model, toy_data).metrics] if evaluated else []
        return [mx.random.uniform(shape=(4,)).tolist(), np.random.random(), toy_data.train.cursor, model.training, *scores]

    before, first, again = drawn(False), drawn(True), drawn(True)
    assert first[:4] == before and again == first
    model.eval()
    assert evaluate(model, toy_data) == first[4]
    assert model.training is False


def test_each_module_gets_its_own_mode_back_also_after_an_error(make_tiny_model: Callable[..., Loaded]) -> None:
    model = make_tiny_model().model
    model.train()
    model.layers[0].eval()
    with pytest.raises(AttributeError):
        list(row_losses(model, [None]))  # type: ignore[list-item]
    assert [model.training, model.layers[0].mlp.training, model.layers[1].mlp.training] == [True, False, True]


@pytest.mark.parametrize(("logit", "loss", "perplexity"), [(5000.0, 5000.0, math.inf), (math.nan, math.nan, math.nan)])
def test_what_is_not_finite_is_reported_as_it_is(by_hand: Data, logit: float, loss: float, perplexity: float) -> None:
    """Of `b` the second target is the 3 that is certain: half the loss."""

    class Wrong(nn.Module):
        layers: tuple[()] = ()

        def __call__(self, tokens_BT: mx.array, cache: object = None) -> mx.array:
            return mx.broadcast_to(mx.array([0.0, 0.0, 0.0, logit]), (*tokens_BT.shape, 4))

    found = evaluate(Wrong(), by_hand).metrics
    assert found["val/loss/a"] == pytest.approx(loss, nan_ok=True) and found["val/loss/b"] == pytest.approx(loss / 2, nan_ok=True)
    assert found["val/perplexity"] == pytest.approx(perplexity, nan_ok=True)
