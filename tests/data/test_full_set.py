"""The full held-out set: it holds the quick one, is the same for every run, and is never in memory as a whole."""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge import data
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.lots import Lots
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import Batch, Data, Document, Packing
from forge.values import OverLength

LENGTHS = (3, 40, 7, 12, 1, 25)


class Characters:
    """Each character is a token; 1 stands in front of a text and 0 behind it."""

    eos_token_id, vocab_size = 0, 2**16

    def encode(self, text: str) -> list[int]:
        return [1, *map(ord, text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Data]:
    """build(max_tokens, full_tokens, …): two sources of `rows` documents, of which about a half is validated on and a fifth tested."""

    def make(
        max_tokens: int,
        full_tokens: int | None,
        *,
        packed: bool = True,
        policy: OverLength = "split",
        weights: tuple[float, float] = (1, 1),
        rows: int = 120,
        batch_rows: int = 2,
        seed: int = 0,
    ) -> Data:
        texts = {name: [f"{name}{n:05}é" + "x" * LENGTHS[n % 6] for n in range(rows)] for name in ("a", "b")}
        sources = {
            name: lambda name=name, each=each: [Document(f"{name}{n}", text, name) for n, text in enumerate(each)]
            for name, each in texts.items()
        }
        given = {name: SourceSpec({}, weight, over_length=policy) for name, weight in zip(texts, weights, strict=True)}
        spec = DataSpec(given, 16, valid_fraction=0.5, split_seed=0, test_fraction=0.2)
        cache = Cache(tmp_path, 1)
        corpus = data.read(spec, sources, {}, cache)
        evaluation = EvaluationSpec(max_tokens, full_tokens)
        return data.build(corpus, spec, evaluation, Encoder(Characters()), cache, batch_rows, seed, Packing(packed, "a test"))

    return make


def pieces(batches: Sequence[Batch]) -> Counter[tuple[int, ...]]:
    """The token lists of a source's batches, cut up by segment."""
    found: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        for tokens, segments in zip(batch.tokens_BT, batch.segments_BT, strict=True):
            found.update(tuple(tokens[segments == number].tolist()) for number in range(1, segments.max() + 1))
    return found


def targets(batches: Sequence[Batch]) -> int:
    return sum(batch.targets for batch in batches)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("policy", ["split", "truncate_left", "truncate_right", "drop"])
def test_it_holds_the_quick_set_and_ends_at_its_own_limit(build: Callable[..., Data], policy: OverLength, packed: bool) -> None:
    """The longest document has 48 targets, so less than that is missing to the limit."""
    built = build(200, 500, rows=480, packed=packed, policy=policy)
    for name in ("a", "b"):
        quick, full = pieces(built.valid[name]), pieces(built.valid_full[name])
        assert quick < full
        for side, limit in ((built.valid[name], 200), (built.valid_full[name], 500), (built.test[name], 500)):
            assert limit - 48 < targets(side) <= limit
        text = [c for tokens, times in full.items() for c in tokens[1:] * times]
        assert built.full_bytes[name] == sum(len(chr(c).encode()) for c in text if c)
        counts = built.ledger.counts
        assert counts[f"data/{name}/targets_evaluated"] == targets(built.valid[name])
        assert counts[f"data/{name}/targets_evaluated_full"] == targets(built.valid_full[name])
        assert counts[f"data/{name}/rows_evaluated"] < counts[f"data/{name}/rows_evaluated_full"] < counts[f"data/{name}/rows_valid"]


def test_without_a_limit_it_is_all_that_is_held_out(build: Callable[..., Data]) -> None:
    built = build(200, None)
    for name in ("a", "b"):
        counts = built.ledger.counts
        assert counts[f"data/{name}/rows_evaluated_full"] == counts[f"data/{name}/rows_valid"] > 40
        assert counts[f"data/{name}/rows_evaluated_test"] == counts[f"data/{name}/rows_test"] > 10
        assert targets(built.test[name]) == counts[f"data/{name}/targets_evaluated_test"]
    assert build(200, 10**6).full_digest == built.full_digest


def test_a_lower_limit_than_that_of_the_quick_set_leaves_that(build: Callable[..., Data]) -> None:
    built = build(200, 10)
    assert pieces(built.valid_full["a"]) == pieces(built.valid["a"]) and built.full_digest == built.ledger.valid_digest


def test_seeds_weights_and_batches_don_t_change_it_and_its_limit_changes_only_it(build: Callable[..., Data]) -> None:
    one, same, more = build(200, 700), build(200, 700, seed=5, weights=(3, 1), batch_rows=5, packed=False), build(200, 900)
    assert pieces(one.valid_full["b"]) == pieces(same.valid_full["b"]) < pieces(more.valid_full["b"])
    assert one.full_digest == same.full_digest != more.full_digest
    assert one.ledger.valid_digest == same.ledger.valid_digest == more.ledger.valid_digest != one.full_digest


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_is_a_function_of_its_number(pack_rows: Callable[..., Any], packed: bool) -> None:
    documents = [np.arange(2 + n % 7) for n in range(11)]
    lots = Lots(pack_rows(documents, [str(n) for n in range(11)], 9, packed=packed), 2, packed)
    batches = list(lots)
    assert len(batches) == len(lots) and pieces(batches) == Counter(tuple(each.tolist()) for each in documents)
    for at in (0, 2, -1):
        assert lots[at] is not lots[at] and lots[at].row_ids == batches[at].row_ids
        assert np.array_equal(lots[at].tokens_BT, batches[at].tokens_BT)
    assert [batch.row_ids for batch in lots[1:3]] == [batch.row_ids for batch in batches[1:3]]
    with pytest.raises(IndexError):
        lots[len(lots)]


@pytest.mark.parametrize("packed", [True, False])
def test_going_through_it_takes_the_same_memory_whatever_its_size(build: Callable[..., Data], packed: bool) -> None:
    """20 times the rows, of which all batches together take more than 20 times what one does."""

    def peak(rows: int) -> tuple[int, int]:
        built = build(200, None, rows=rows, packed=packed)
        everything = sum(batch.tokens_BT.nbytes for batch in built.valid_full["a"])
        tracemalloc.start()
        try:
            targets(built.valid_full["a"])
            return tracemalloc.get_traced_memory()[1], everything
        finally:
            tracemalloc.stop()

    (few, less), (many, more) = peak(120), peak(2400)
    assert more > 15 * less and many < 1.3 * few + 2000
