"""Batches of rows of like length: only as wide as they need to be, and nothing else changed."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from forge.data.mix import Mixture
from forge.data.pack import PackedRows
from forge.spec import Batch

Rows = Callable[..., PackedRows]
LENGTHS = np.clip(np.random.default_rng(3).lognormal(4.0, 0.9, 1024).astype(int), 2, 401).tolist()


@pytest.fixture
def rows(pack_rows: Rows) -> Rows:
    """rows(name, lengths): a document a row, at most 401 tokens long, with ids such as a17."""

    def make(name: str, lengths: Sequence[int]) -> PackedRows:
        return pack_rows([np.full(n, 7) for n in lengths], [f"{name}{n}" for n in range(len(lengths))], 401, packed=False, name=name)

    return make


def walk(mixture: Mixture, batches: int) -> list[list[str]]:
    """Of each row, the name of its document: "a17[0:64]" -> "a17"."""
    return [[name.partition("[")[0] for name in mixture.next().row_ids] for _ in range(batches)]


def width(batch: Batch) -> int:
    """The narrowest of 33, 65, 97, …, 401 that the longest row fits in."""
    return next(w for w in [*range(33, 401, 32), 401] if w >= np.count_nonzero(batch.segments_BT, axis=1).max())


def padding(batches: Sequence[Batch]) -> float:
    return 1 - sum(np.count_nonzero(batch.segments_BT) for batch in batches) / sum(batch.tokens_BT.size for batch in batches)


def test_a_bucketed_batch_is_as_wide_as_its_longest_row_needs(rows: Rows) -> None:
    mixture = Mixture({"a": rows("a", LENGTHS)}, {"a": 1}, 8, seed=0, bucketed=True)
    widths = []
    for _ in range(256):
        batch = mixture.next()
        assert batch.tokens_BT.shape == batch.mask_BT.shape == batch.segments_BT.shape == (8, width(batch))
        widths.append(width(batch))
    assert {33, 65, 401} < set(widths)
    assert np.corrcoef(widths[:127], widths[1:128])[0, 1] < 0.3  # not from the shortest to the longest


def test_a_block_of_buckets_has_each_row_once(rows: Rows) -> None:
    """1,024 rows are a block, and an epoch; the next block groups them anew."""
    mixture = Mixture({"a": rows("a", LENGTHS)}, {"a": 1}, 8, seed=0, bucketed=True)
    blocks = [walk(mixture, 128) for _ in range(2)]
    for block in blocks:
        assert sorted(name for batch in block for name in batch) == sorted(f"a{n}" for n in range(1024))
    groups = [{frozenset(batch) for batch in block} for block in blocks]
    assert len(groups[0] & groups[1]) < 5


def test_buckets_pad_far_less_than_random_batches_of_the_same_rows(rows: Rows) -> None:
    """Random batches as wide as their longest row would have 62 % padding, rows of full width 80 %."""
    bucketed = Mixture({"a": rows("a", LENGTHS)}, {"a": 1}, 8, seed=0, bucketed=True)
    shuffled = np.random.default_rng(0).permutation(LENGTHS).reshape(-1, 8)
    random = 1 - shuffled.sum() / (shuffled.max(axis=1) * 8).sum()
    assert padding([bucketed.next() for _ in range(128)]) < random / 3 < 0.25


def test_buckets_keep_the_shares_of_tokens_and_use_rows_evenly(rows: Rows) -> None:
    """Rows of 2 to 401, of 25 and of 4 tokens: each row as often as its source was gone through, give or take two.

    Blocks end with the epochs of the slowest source, and not with the others'.
    """
    sources = {"a": rows("a", LENGTHS), "b": rows("b", [25] * 97), "c": rows("c", [4] * 300)}
    mixture = Mixture(sources, {"a": 7, "b": 2, "c": 1}, 8, seed=0, bucketed=True)
    tokens: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for _ in range(1024):
        batch = mixture.next()
        for source, name, mask in zip(batch.sources, batch.row_ids, batch.mask_BT, strict=True):
            tokens[source] += int(mask.sum())
            used[name.partition("[")[0]] += 1
    assert {name: tokens[name] / tokens.total() for name in "abc"} == pytest.approx({"a": 0.7, "b": 0.2, "c": 0.1}, abs=0.01)
    for name, epochs in mixture.epochs(mixture.cursor).items():
        assert {used[f"{name}{n}"] for n in range(len(sources[name]))} <= {int(epochs) + by for by in (-1, 0, 1, 2)}


@pytest.mark.parametrize("count", [40, 360, 1600])
def test_an_epoch_in_buckets_leaves_no_row_out(rows: Rows, count: int) -> None:
    """Blocks end where the epoch does, so all rows have been used once when it is over. 1,600 rows are two blocks."""
    mixture = Mixture({"a": rows("a", [2 + n % 300 for n in range(count)])}, {"a": 1}, 8, seed=0, bucketed=True)
    names = [name.partition("[")[0] for _ in range(count // 8) for name in mixture.next().row_ids]
    assert sorted(names) == sorted(f"a{n}" for n in range(count))


@pytest.mark.parametrize("bucketed", [False, True])
def test_padding_is_counted_by_source(rows: Rows, bucketed: bool) -> None:
    """Against the batches of the first block; where all rows are equally wide, of all rows, here one epoch of each."""
    sources = {"a": rows("a", LENGTHS[:512]), "b": rows("b", [n // 2 + 2 for n in LENGTHS[512:]])}
    weights = {name: float(each.targets.sum()) for name, each in sources.items()}  # so that a block holds 512 rows of each
    mixture = Mixture(sources, weights, 8, seed=0, bucketed=bucketed)
    held: Counter[str] = Counter()
    filled: Counter[str] = Counter()
    for _ in range(128):
        batch = mixture.next()
        for name, segments in zip(batch.sources, batch.segments_BT, strict=True):
            held[name] += len(segments)
            filled[name] += int(np.count_nonzero(segments))
    assert mixture.epochs(mixture.cursor) == {"a": 1, "b": 1}
    mixture.cursor = 77
    assert mixture.padding_shares() == pytest.approx({name: 1 - filled[name] / held[name] for name in "ab"})
    assert mixture.cursor == 77


def test_buckets_are_the_same_after_a_seek(rows: Rows) -> None:
    sources = {"a": rows("a", LENGTHS), "b": rows("b", [25] * 97)}
    straight = Mixture(sources, {"a": 1, "b": 2}, 3, seed=9, bucketed=True)
    batches = [straight.next() for _ in range(700)]
    for cursor in (699, 0, 341, 342, 340, 1, 682, 683):
        resumed = Mixture(sources, {"a": 1, "b": 2}, 3, seed=9, bucketed=True)
        resumed.cursor = cursor
        found = resumed.next()
        assert found.row_ids == batches[cursor].row_ids
        np.testing.assert_array_equal(found.tokens_BT, batches[cursor].tokens_BT)
