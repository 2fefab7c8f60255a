"""The mixture: shares of tokens, and batches that depend on (seed, cursor) alone."""

from collections import Counter
from collections.abc import Mapping

import mlx.core as mx
import numpy as np
import pytest

import forge  # noqa: F401
from forge.data.mix import Mixture
from forge.data.pack import PackedRows
from forge.spec import Batch


def rows(name: str, documents: int, length: int, row: int = 64) -> PackedRows:
    """`documents` rows of `length - 1` targets each, one document a row, with ids such as a17."""
    return PackedRows([np.full(length, 7) for _ in range(documents)], [f"{name}{n}" for n in range(documents)], row, isolated=False)


def ids(batch: Batch) -> list[str]:
    """Of each row, the name of its document: "a17[0:64]" -> "a17"."""
    return [name.partition("[")[0] for name in batch.row_ids]


def walk(mixture: Mixture, batches: int) -> list[list[str]]:
    return [ids(mixture.next()) for _ in range(batches)]


def same(one: Batch, other: Batch) -> bool:
    arrays = zip((one.tokens_BT, one.mask_BT, one.segments_BT), (other.tokens_BT, other.mask_BT, other.segments_BT), strict=True)
    return one.row_ids == other.row_ids and all(np.array_equal(a, b) for a, b in arrays)


@pytest.mark.parametrize("weights", [{"a": 7, "b": 2, "c": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 0.05, "b": 0.9, "c": 0.05}])
def test_shares_are_of_tokens_however_long_the_documents(weights: Mapping[str, float]) -> None:
    """Rows of 63, 3 and 24 targets: rows dealt by weight would miss the shares of tokens by far."""
    mixture = Mixture({"a": rows("a", 50, 64), "b": rows("b", 300, 4), "c": rows("c", 11, 25)}, weights, 4, seed=0)
    tokens: Counter[str] = Counter()
    for _ in range(1000):
        batch = mixture.next()
        for name, mask in zip(ids(batch), batch.mask_BT, strict=True):
            tokens[name[0]] += int(mask.sum())
    for name, weight in weights.items():
        assert tokens[name] / tokens.total() == pytest.approx(weight / sum(weights.values()), abs=0.01)
    assert mixture.tokens_per_row == pytest.approx(tokens.total() / 4000, rel=0.02)


def test_tokens_per_row_by_hand() -> None:
    """Rows of 63 and 3 targets, equal shares of tokens: 21 of the short for 1 of the long, 126 tokens in 22 rows."""
    mixture = Mixture({"a": rows("a", 5, 64), "b": rows("b", 5, 4)}, {"a": 1, "b": 1}, 2, seed=0)
    assert mixture.tokens_per_row == pytest.approx(126 / 22)


def test_a_source_of_weight_zero_is_never_drawn() -> None:
    mixture = Mixture({"a": rows("a", 5, 8), "b": rows("b", 5, 8)}, {"a": 1, "b": 0}, 3, seed=0)
    assert {name[0] for batch in walk(mixture, 700) for name in batch} == {"a"}
    assert set(mixture.epochs()) == {"a"}


def test_a_source_of_very_little_weight_among_others_is_dealt_without_fail() -> None:
    """Its share of a block (1,024 rows) is below one row; 400 blocks hold 400 · 1024 · 0.0005 = 205 of them."""
    sources = {name: rows(name, 7, 8) for name in "abc"}
    weights = {"a": 0.3, "b": 0.0005, "c": 0.6995}
    mixture = Mixture(sources, weights, 1024, seed=0)
    for block in range(400):
        mixture.cursor = block
        mixture.epochs()  # deals the block
    mixture.cursor = 400
    assert mixture.epochs()["b"] * 7 == pytest.approx(205, abs=2)


def test_a_batch_is_the_same_after_a_seek() -> None:
    """Cursors on both sides of a block's border (row 1,024 is the first of batch 341.3) and of many epochs' ones."""
    sources, weights = {"a": rows("a", 11, 16), "b": rows("b", 7, 40)}, {"a": 1, "b": 2}
    straight = Mixture(sources, weights, 3, seed=9)
    batches = [straight.next() for _ in range(700)]
    for cursor in (699, 0, 341, 342, 340, 1, 682, 683, 3, 4):
        resumed = Mixture(sources, weights, 3, seed=9)
        resumed.cursor = cursor
        assert same(resumed.next(), batches[cursor])
        straight.cursor = cursor
        assert same(straight.next(), batches[cursor])
        assert straight.cursor == cursor + 1


def test_every_row_is_used_once_before_any_is_used_again() -> None:
    mixture = Mixture({"a": rows("a", 11, 16), "b": rows("b", 7, 40)}, {"a": 1, "b": 2}, 3, seed=0)
    drawn = [name for batch in walk(mixture, 800) for name in batch]
    for source, size in (("a", 11), ("b", 7)):
        own = [name for name in drawn if name[0] == source]
        epochs = [own[at : at + size] for at in range(0, len(own) - size, size)]
        assert len(epochs) > 50
        assert all(sorted(epoch) == sorted(f"{source}{n}" for n in range(size)) for epoch in epochs)


def test_each_epoch_has_another_order_and_other_batches() -> None:
    """8 rows in batches of 2: mlx-lm's loop shuffles the batches and keeps their members."""
    mixture = Mixture({"a": rows("a", 8, 16)}, {"a": 1}, 2, seed=0)
    epochs = [walk(mixture, 4) for _ in range(5)]
    assert len({str(epoch) for epoch in epochs}) == 5
    assert len({frozenset(frozenset(batch) for batch in epoch) for epoch in epochs}) > 1


def test_the_rows_past_the_last_full_batch_are_used() -> None:
    """5 rows in batches of 2: five batches are two epochs."""
    mixture = Mixture({"a": rows("a", 5, 16)}, {"a": 1}, 2, seed=0)
    assert Counter(name for batch in walk(mixture, 5) for name in batch) == {f"a{n}": 2 for n in range(5)}


def test_two_sources_come_in_different_orders() -> None:
    mixture = Mixture({"a": rows("a", 30, 16), "b": rows("b", 30, 16)}, {"a": 1, "b": 1}, 1, seed=0)
    drawn = [name for batch in walk(mixture, 200) for name in batch]
    first, second = ([int(name[1:]) for name in drawn if name[0] == source][:30] for source in "ab")
    assert first != second


@pytest.mark.parametrize("sizes", [{"a": 20}, {"a": 1, "b": 1}], ids=["rows of a source", "sources"])
def test_a_seed_gives_one_order_and_another_seed_another(sizes: Mapping[str, int]) -> None:
    sources = {name: rows(name, size, 16) for name, size in sizes.items()}
    one, again, other = (walk(Mixture(sources, dict.fromkeys(sizes, 1.0), 4, seed), 5) for seed in (3, 3, 4))
    assert one == again != other


def test_nothing_drawn_elsewhere_moves_the_order() -> None:
    """mlx-lm's evaluation draws from training's random stream; here noise, looks at epochs() and at other rows change nothing."""
    sources, weights = {"a": rows("a", 20, 16), "b": rows("b", 20, 16)}, {"a": 1, "b": 1}
    expected = walk(Mixture(sources, weights, 4, seed=0), 60)
    mixture, found = Mixture(sources, weights, 4, seed=0), []
    for step in range(60):
        np.random.seed(step)
        mx.eval(mx.random.uniform(shape=(3,)))
        sources["a"].batch(range(5))
        mixture.epochs()
        found.append(ids(mixture.next()))
    assert found == expected


def test_epochs_by_hand() -> None:
    """Equal rows and weights: a block of 1,024 rows holds 512 of each source, 128 epochs of 4 rows and 64 of 8."""
    mixture = Mixture({"a": rows("a", 4, 16), "b": rows("b", 8, 16)}, {"a": 1, "b": 1}, 2, seed=0)
    assert mixture.epochs() == {"a": 0, "b": 0}
    mixture.cursor = 512
    assert mixture.epochs() == {"a": 128, "b": 64}
    mixture.cursor = 1024
    assert mixture.epochs() == {"a": 256, "b": 128}
    mixture.cursor = 0
    drawn = Counter(name[0] for batch in walk(mixture, 5) for name in batch)
    assert mixture.epochs() == {"a": drawn["a"] / 4, "b": drawn["b"] / 8}
