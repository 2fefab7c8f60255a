"""The mixture: shares of tokens, and batches that depend on (seed, cursor) alone."""

from collections import Counter
from collections.abc import Callable, Mapping

import mlx.core as mx
import numpy as np
import pytest

import forge  # noqa: F401
from forge.data.mix import Mixture
from forge.data.pack import PackedRows
from forge.errors import DataError
from forge.spec import Batch

Rows = Callable[..., PackedRows]


@pytest.fixture
def rows(pack_rows: Rows) -> Rows:
    """rows(name, documents, length, row=64): `documents` rows of `length - 1` targets each, one document a row, with ids such as a17."""

    def make(name: str, documents: int, length: int, row: int = 64) -> PackedRows:
        return pack_rows([np.full(length, 7)] * documents, [f"{name}{n}" for n in range(documents)], row, packed=False, name=name)

    return make


def ids(batch: Batch) -> list[str]:
    """Of each row, the name of its document: "a17[0:64]" -> "a17"."""
    return [name.partition("[")[0] for name in batch.row_ids]


def walk(mixture: Mixture, batches: int) -> list[list[str]]:
    return [ids(mixture.next()) for _ in range(batches)]


def same(one: Batch, other: Batch) -> bool:
    arrays = zip((one.tokens_BT, one.mask_BT, one.segments_BT), (other.tokens_BT, other.mask_BT, other.segments_BT), strict=True)
    return one.row_ids == other.row_ids and all(np.array_equal(a, b) for a, b in arrays)


def count_targets(tokens: Counter[str], batch: Batch) -> None:
    assert batch.sources == tuple(name[0] for name in ids(batch))
    for source, mask in zip(batch.sources, batch.mask_BT, strict=True):
        tokens[source] += int(mask.sum())


@pytest.mark.parametrize("weights", [{"a": 7, "b": 2, "c": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 0.05, "b": 0.9, "c": 0.05}])
def test_shares_are_of_tokens_however_long_the_documents(rows: Rows, weights: Mapping[str, float]) -> None:
    """Rows of 63, 3 and 24 targets: rows dealt by weight would miss the shares of tokens by far."""
    mixture = Mixture({"a": rows("a", 50, 64), "b": rows("b", 300, 4), "c": rows("c", 11, 25)}, weights, 4, seed=0)
    tokens: Counter[str] = Counter()
    for _ in range(1000):
        batch = mixture.next()
        count_targets(tokens, batch)
    for name, weight in weights.items():
        assert tokens[name] / tokens.total() == pytest.approx(weight / sum(weights.values()), abs=0.01)
    assert mixture.tokens_per_row == pytest.approx(tokens.total() / 4000, rel=0.02)


def test_tokens_per_row_by_hand(rows: Rows) -> None:
    """Rows of 63 and 3 targets, equal shares of tokens: 21 of the short for 1 of the long, 126 tokens in 22 rows."""
    mixture = Mixture({"a": rows("a", 5, 64), "b": rows("b", 5, 4)}, {"a": 1, "b": 1}, 2, seed=0)
    assert mixture.tokens_per_row == pytest.approx(126 / 22)


def test_a_source_of_weight_zero_is_never_drawn(rows: Rows) -> None:
    mixture = Mixture({"a": rows("a", 5, 8), "b": rows("b", 5, 8)}, {"a": 1, "b": 0}, 3, seed=0)
    assert {name[0] for batch in walk(mixture, 700) for name in batch} == {"a"}
    assert set(mixture.epochs(mixture.cursor)) == {"a"}


def test_a_source_of_very_little_weight_among_others_is_dealt_without_fail(rows: Rows) -> None:
    """Its share of a block (1,024 rows) is below one row; 400 blocks hold 400 · 1024 · 0.0005 = 205 of them."""
    sources = {name: rows(name, 7, 8) for name in "abc"}
    weights = {"a": 0.3, "b": 0.0005, "c": 0.6995}
    mixture = Mixture(sources, weights, 1024, seed=0)
    for block in range(400):
        mixture.cursor = block
        mixture.epochs(mixture.cursor)  # deals the block
    mixture.cursor = 400
    assert mixture.epochs(mixture.cursor)["b"] * 7 == pytest.approx(205, abs=2)


def test_a_batch_is_the_same_after_a_seek(rows: Rows) -> None:
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


def test_every_row_is_used_once_before_any_is_used_again(rows: Rows) -> None:
    mixture = Mixture({"a": rows("a", 11, 16), "b": rows("b", 7, 40)}, {"a": 1, "b": 2}, 3, seed=0)
    drawn = [name for batch in walk(mixture, 800) for name in batch]
    for source, size in (("a", 11), ("b", 7)):
        own = [name for name in drawn if name[0] == source]
        epochs = [own[at : at + size] for at in range(0, len(own) - size, size)]
        assert len(epochs) > 50
        assert all(sorted(epoch) == sorted(f"{source}{n}" for n in range(size)) for epoch in epochs)


def test_each_epoch_has_another_order_and_other_batches(rows: Rows) -> None:
    """8 rows in batches of 2: mlx-lm's loop shuffles the batches and keeps their members."""
    mixture = Mixture({"a": rows("a", 8, 16)}, {"a": 1}, 2, seed=0)
    epochs = [walk(mixture, 4) for _ in range(5)]
    assert len({str(epoch) for epoch in epochs}) == 5
    assert len({frozenset(frozenset(batch) for batch in epoch) for epoch in epochs}) > 1


def test_the_rows_past_the_last_full_batch_are_used(rows: Rows) -> None:
    """5 rows in batches of 2: five batches are two epochs."""
    mixture = Mixture({"a": rows("a", 5, 16)}, {"a": 1}, 2, seed=0)
    assert Counter(name for batch in walk(mixture, 5) for name in batch) == {f"a{n}": 2 for n in range(5)}


def test_two_sources_come_in_different_orders(rows: Rows) -> None:
    mixture = Mixture({"a": rows("a", 30, 16), "b": rows("b", 30, 16)}, {"a": 1, "b": 1}, 1, seed=0)
    drawn = [name for batch in walk(mixture, 200) for name in batch]
    first, second = ([int(name[1:]) for name in drawn if name[0] == source][:30] for source in "ab")
    assert first != second


@pytest.mark.parametrize("sizes", [{"a": 20}, {"a": 1, "b": 1}], ids=["rows of a source", "sources"])
def test_a_seed_gives_one_order_and_another_seed_another(rows: Rows, sizes: Mapping[str, int]) -> None:
    sources = {name: rows(name, size, 16) for name, size in sizes.items()}
    one, again, other = (walk(Mixture(sources, dict.fromkeys(sizes, 1.0), 4, seed), 5) for seed in (3, 3, 4))
    assert one == again != other


def test_nothing_drawn_elsewhere_moves_the_order(rows: Rows) -> None:
    """mlx-lm's evaluation draws from training's random stream; here noise, looks at epochs() and at other rows change nothing."""
    sources, weights = {"a": rows("a", 20, 16), "b": rows("b", 20, 16)}, {"a": 1, "b": 1}
    expected = walk(Mixture(sources, weights, 4, seed=0), 60)
    mixture, found = Mixture(sources, weights, 4, seed=0), []
    for step in range(60):
        np.random.seed(step)
        mx.eval(mx.random.uniform(shape=(3,)))
        sources["a"].batch(range(5))
        mixture.epochs(mixture.cursor)
        found.append(ids(mixture.next()))
    assert found == expected


def test_epochs_by_hand(rows: Rows) -> None:
    """Equal rows and weights: a block of 1,024 rows holds 512 of each source, 128 epochs of 4 rows and 64 of 8."""
    mixture = Mixture({"a": rows("a", 4, 16), "b": rows("b", 8, 16)}, {"a": 1, "b": 1}, 2, seed=0)
    assert mixture.epochs(mixture.cursor) == {"a": 0, "b": 0}
    mixture.cursor = 512
    assert mixture.epochs(mixture.cursor) == {"a": 128, "b": 64}
    mixture.cursor = 1024
    assert mixture.epochs(mixture.cursor) == {"a": 256, "b": 128}
    mixture.cursor = 0
    drawn = Counter(name[0] for batch in walk(mixture, 5) for name in batch)
    assert mixture.epochs(mixture.cursor) == {"a": drawn["a"] / 4, "b": drawn["b"] / 8}


# ---- caps on epochs ---------------------------------------------------------------------------------------------------


def test_a_source_that_has_had_its_epochs_leaves_and_the_others_keep_their_proportions(rows: Rows) -> None:
    """Shares 5 : 3 : 2 while a lasts (800 rows of 63 targets), then 6 : 4 for b and c."""
    sources = {"a": rows("a", 400, 64), "b": rows("b", 50, 25), "c": rows("c", 30, 4)}
    weights = {"a": 5, "b": 3, "c": 2}
    mixture, free = (Mixture(sources, weights, 4, seed=0, caps=caps) for caps in ({"a": 2.0, "b": None}, None))
    batches = []
    for _ in range(8000):
        batches.append(mixture.next())
        assert mixture.epochs(mixture.cursor)["a"] <= 2
    last = max(n for n, batch in enumerate(batches) if "a" in batch.sources)
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for n, batch in enumerate(batches):
        count_targets(before if n <= last else after, batch)
    assert 800 * 63 - before["a"] < 4 * 63  # less than a batch is left over
    assert {name: before[name] / before.total() for name in "abc"} == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2}, abs=0.01)
    assert after.total() > 40_000
    assert {name: after[name] / after.total() for name in "bc"} == pytest.approx({"b": 0.6, "c": 0.4}, abs=0.01)
    assert (mixture.max_batches, free.max_batches) == (None, None)
    assert mixture.tokens_per_row == free.tokens_per_row  # of the mixture as it begins


@pytest.mark.parametrize("cap", [0.5, 1.0, 1.5, 3.0])
def test_a_cap_counts_passes_over_the_rows(rows: Rows, cap: float) -> None:
    """40 rows: half of them once, all once, half of them twice and half once, all three times."""
    mixture = Mixture({"a": rows("a", 40, 16), "b": rows("b", 7, 16)}, {"a": 1, "b": 1}, 2, seed=0, caps={"a": cap})
    drawn = Counter(name for batch in walk(mixture, 200) for name in batch if name[0] == "a")
    assert drawn.total() == cap * 40
    assert set(drawn.values()) <= {int(np.floor(cap)), int(np.ceil(cap))}


def test_the_data_ends_when_every_source_has_had_its_epochs(rows: Rows) -> None:
    """100, 60 and 90 rows: 62 batches of 4, and one of the 2 that are left."""
    sources = {"a": rows("a", 50, 64), "b": rows("b", 60, 4), "c": rows("c", 30, 25)}
    caps = {"a": 2.0, "b": 1.0, "c": 3.0}
    mixture = Mixture(sources, {"a": 1, "b": 1, "c": 1}, 4, seed=0, caps=caps)
    batches = mixture.max_batches
    assert batches == 63
    taken = walk(mixture, batches)
    assert [len(batch) for batch in taken] == [4] * 62 + [2]
    assert Counter(name[0] for batch in taken for name in batch) == {"a": 100, "b": 60, "c": 90}
    assert mixture.epochs(mixture.cursor) == {"a": 2.0, "b": 1.0, "c": 3.0}
    for _ in range(2):
        with pytest.raises(
            DataError, match=rf"the data ends after {batches} batches: raise max_epochs of a source, or shorten trainer\.budget"
        ):
            mixture.next()
        assert mixture.cursor == batches
    mixture.cursor = 0
    assert mixture.next().row_ids == Mixture(sources, {"a": 1, "b": 1, "c": 1}, 4, seed=0, caps=caps).next().row_ids


@pytest.mark.parametrize("bucketed", [False, True])
def test_a_seek_lands_right_on_both_sides_of_every_phase(rows: Rows, bucketed: bool) -> None:
    """Three phases of several blocks: every cursor of the run, in any order, gives the batch and the epochs of the straight run."""
    sources = {"a": rows("a", 500, 33), "b": rows("b", 90, 40), "c": rows("c", 300, 25)}
    caps, sizes = {"a": 2.0, "b": 7.5, "c": 9.0}, {"a": 500, "b": 90, "c": 300}

    def mixture() -> Mixture:
        return Mixture(sources, {"a": 3, "b": 1, "c": 2}, 3, seed=5, caps=caps, bucketed=bucketed)

    straight, other = mixture(), mixture()
    assert straight.max_batches is not None and straight.max_batches * 3 > 4 * 1024
    batches = [straight.next() for _ in range(straight.max_batches)]
    last = {name: max(n for n, batch in enumerate(batches) if name in batch.sources) for name in sizes}
    assert len(set(last.values())) == 3 and max(last.values()) == len(batches) - 1
    borders = {at + by for at in last.values() for by in (-1, 0, 1, 2) if at + by < len(batches)}
    sample = [*borders, *np.random.default_rng(0).choice(len(batches), 200, replace=False).tolist()]
    drawn = np.cumsum([[0, 0, 0]] + [[batch.sources.count(name) for name in "abc"] for batch in batches], axis=0)
    for cursor in sample:
        other.cursor = cursor
        assert other.epochs(other.cursor) == {name: count / sizes[name] for name, count in zip("abc", drawn[cursor].tolist(), strict=True)}
        assert same(other.next(), batches[cursor])
    fresh = mixture()
    fresh.cursor = last["a"] + 1
    assert same(fresh.next(), batches[last["a"] + 1])


def test_any_caps_come_to_an_end_that_uses_them_up(rows: Rows) -> None:
    """200 draws of up to six sources, among them some that get a row in several batches only. No cap is passed, and none is left unused."""
    draw = np.random.default_rng(0)
    sources = {name: rows(name, int(draw.integers(20, 200)), int(draw.integers(2, 65))) for name in "abcdef"}
    for _ in range(200):
        names = "abcdef"[: draw.integers(1, 7)]
        weights = dict(zip(names, draw.lognormal(0, 2, len(names)).tolist(), strict=True))
        caps = dict(zip(names, draw.uniform(0.3, 4, len(names)).tolist(), strict=True))
        size = int(draw.integers(1, 9))
        mixture = Mixture({name: sources[name] for name in names}, weights, size, seed=0, caps=caps)
        assert mixture.max_batches is not None
        mixture.cursor = mixture.max_batches
        for name, epochs in mixture.epochs(mixture.cursor).items():
            count = len(sources[name])
            assert int(caps[name] * count) - size - 1 < epochs * count <= caps[name] * count, (weights, caps, size)


def test_a_cap_on_a_source_of_weight_zero_changes_nothing(rows: Rows) -> None:
    sources = {"a": rows("a", 5, 8), "b": rows("b", 5, 8)}
    mixture = Mixture(sources, {"a": 1, "b": 0}, 3, seed=0, caps={"b": 1.0})
    assert mixture.max_batches is None
    assert walk(mixture, 50) == walk(Mixture(sources, {"a": 1, "b": 0}, 3, seed=0), 50)


def test_caps_that_leave_less_than_a_batch_give_a_short_one_and_those_that_leave_no_row_are_refused(rows: Rows) -> None:
    mixture = Mixture({"a": rows("a", 5, 8)}, {"a": 1}, 4, seed=0, caps={"a": 0.6})
    assert mixture.max_batches == 1 and len(mixture.next().sources) == 3
    with pytest.raises(DataError, match="sources a: max_epochs leaves no row; raise it"):
        Mixture({"a": rows("a", 5, 8)}, {"a": 1}, 4, seed=0, caps={"a": 0.1})
