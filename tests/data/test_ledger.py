"""The ledger of counts: where every row went, what breaks a limit, and the table."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from forge import data
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.ledger import broken, digest, table
from forge.data.templates import named
from forge.errors import DataError
from forge.settings import DataSpec, EvaluationSpec, LimitsSpec, SourceSpec
from forge.spec import BadRow, Conversation, Data, Document, Ledger, Packing, Preference, Row
from forge.values import Mask, OverLength

ROW = 65  # tokens


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., tuple[data.Corpus, Data]]:
    """prepare(rows by source, encoder, policy="split", packed=True, bad_rows="skip"): all are measured on."""
    cache = Cache(tmp_path, 1)

    def make(
        rows: Mapping[str, Sequence[Row]], encoder: Encoder, policy: OverLength = "split", packed: bool = True, bad_rows: str = "skip"
    ) -> tuple[data.Corpus, Data]:
        spec = DataSpec({name: SourceSpec({}, over_length=policy) for name in rows}, ROW - 1, 0.3, 0, test_fraction=0.2, bad_rows=bad_rows)
        corpus = data.read(spec, {name: lambda each=each: each for name, each in rows.items()}, {}, cache)
        return corpus, data.build(corpus, spec, EvaluationSpec(10**6), encoder, cache, 2, 0, Packing(packed, "a test"))

    return make


# ---- where every row went ---------------------------------------------------------------------------------------------------


def nasty(name: str, rng: random.Random) -> list[Row]:
    """300 rows of all kinds; some of them twice or in both sources, blank, bad, without an answer, or too long for a row."""

    def said() -> str:
        return " ".join(rng.choices(["Paris", "Rome", "city", "of", "the", "名", "é"], k=rng.choice([1, 2, 5, 30])))

    def turns(count: int) -> tuple[dict[str, str], ...]:
        return tuple({"role": ("user", "assistant")[n % 2], "content": said()} for n in range(count))

    def one(n: int) -> Row:
        id, origin, kind = f"{name}{n}", f"{name}.jsonl:{n}", rng.randrange(10)
        if kind < 3:
            return Document(id, said(), origin)
        if kind < 6:
            return Conversation(id, turns(rng.choice([1, 2, 2, 4])), origin)
        if kind == 6:
            return Preference(id, turns(1), turns(2)[1:] if rng.random() < 0.7 else (), turns(2)[1:], origin)
        if kind == 7:
            return Document(id, rng.choice(["", " \n", "half \ud83d", "Rome"]), origin)
        return (
            BadRow(origin, rng.choice(["broken_json", "no_text"]), "mend it")
            if kind == 8
            else Document(id, "same " * rng.randrange(9), origin)
        )

    return [one(n) for n in range(300)]


def expected_losses(results: Sequence[Any], row: int, policy: OverLength) -> Counter[str]:
    """What becomes of encoded rows, told by looking at each alone."""
    found: Counter[str] = Counter()
    for result in results:
        if isinstance(result, BadRow):
            found[f"rows_bad/{result.reason}"] += 1
            continue
        size = len(result.ids)
        learnt = np.arange(size) > 0 if result.targets is None else result.targets & (np.arange(size) > 0)
        first, last = {"truncate_left": (max(size - row, 0), size), "truncate_right": (0, min(row, size))}.get(policy, (0, size))
        if size < 2:
            found["rows_dropped/one_token"] += 1
        elif policy == "drop" and size > row:
            found["rows_dropped/over_length"] += 1
        elif not learnt[first + 1 : last].any():
            found["rows_dropped/no_target"] += 1
        else:
            found["kept"] += 1
            found["targets"] += int(learnt[first + 1 : last].sum())
    return found


def counts_of(built: Data, name: str) -> dict[str, float]:
    return {key.removeprefix(f"data/{name}/"): value for key, value in built.ledger.counts.items() if key.startswith(f"data/{name}/")}


@pytest.mark.parametrize("mask", get_args(Mask))
@pytest.mark.parametrize("policy", [each for each in get_args(OverLength) if each != "error"])
def test_every_row_of_a_nasty_mixture_is_accounted_for(
    prepare: Callable[..., tuple[data.Corpus, Data]], chat_tokenizer: Callable[..., Any], mask: Mask, policy: OverLength
) -> None:
    rng = random.Random(f"{mask} {policy}")
    rows = {name: nasty(name, rng) for name in ("a", "b")}
    rows["b"][:20] = rows["a"][:20]
    encoder = Encoder(chat_tokenizer("base", False), named("simple"), mask)
    for packed in (True, False):
        corpus, built = prepare(rows, encoder, policy, packed)
        for name, each in rows.items():
            by_id = {row.id: row for row in each if not isinstance(row, BadRow)}
            ids = corpus.surveys[name].ids.to_pylist()
            on = {side: [by_id[ids[int(n)]] for n in getattr(corpus.sides[name], side)] for side in ("train", "valid", "test")}
            becomes = {side: expected_losses(encoder.encode(on_side), ROW, policy) for side, on_side in on.items()}
            lost = sum(becomes.values(), Counter())
            lost.update(f"rows_bad/{row.reason}" for row in each if isinstance(row, BadRow))
            lost["rows_bad/lone_surrogate"] += sum(row.text == "half \ud83d" for row in by_id.values())
            check(counts_of(built, name), becomes, lost)
            assert sum(batch.targets for batch in built.valid[name]) == becomes["valid"]["targets"]
            assert sum(batch.targets for batch in built.test[name]) == becomes["test"]["targets"]
            assert counts_of(built, name)["rows_pairs"] == sum(isinstance(row, Preference) for row in corpus.surveys[name].rows) > 0


def check(found: Mapping[str, float], becomes: Mapping[str, Counter[str]], lost: Counter[str]) -> None:
    assert found["rows_in"] == 300 == sum(found[f"rows_{what}"] for what in ("train", "valid", "test", "bad", "dropped"))
    for what in ("bad", "dropped"):
        assert found[f"rows_{what}"] == sum(count for key, count in found.items() if key.startswith(f"rows_{what}/"))
    for side, expected in becomes.items():
        assert found[f"rows_{side}"] == expected["kept"]
    assert found["targets_train"] == becomes["train"]["targets"] and found["targets_evaluated"] == becomes["valid"]["targets"]
    earlier = ("rows_dropped/duplicate", "rows_dropped/empty")  # of no side
    by_reason = {key: count for key, count in found.items() if "/" in key and key not in earlier and not key.startswith("rows_noted/")}
    assert by_reason == {key: count for key, count in lost.items() if "/" in key and count}
    assert all(found[key] for key in earlier)


def test_bad_rows_are_errors_unless_they_are_to_be_skipped(
    prepare: Callable[..., tuple[data.Corpus, Data]], chat_tokenizer: Callable[..., Any]
) -> None:
    encoder = Encoder(chat_tokenizer("base", False), named("simple"))
    rows = {"a": [*(Document(f"a{n}", f"text {n}", "a") for n in range(60)), BadRow("a.jsonl:61", "broken_json", "column 3: mend it")]}
    with pytest.raises(DataError, match=r"^a.jsonl:61: broken_json: column 3: mend it; or leave"):
        prepare(rows, encoder, bad_rows="error")
    _, built = prepare(rows, encoder)
    assert counts_of(built, "a")["rows_bad/broken_json"] == 1
    assert built.ledger.examples["a"] == (("a.jsonl:61", "broken_json", "column 3: mend it"),)
    rows["a"][-1] = Conversation("c", ({"role": "user", "content": "Well?"},), "a.jsonl:61")
    with pytest.raises(DataError, match=r"^a.jsonl:61: no_target: .*; or leave"):
        prepare(rows, encoder, bad_rows="error")
    _, built = prepare(rows, encoder)
    assert counts_of(built, "a")["rows_bad/no_target"] == 1 and built.ledger.examples["a"][0][:2] == ("a.jsonl:61", "no_target")


# ---- limits, table and digest ------------------------------------------------------------------------------------------------

COUNTS = {
    "rows_in": 200,
    "rows_bad": 10,
    "rows_dropped": 50,
    "rows_dropped/duplicate": 20,
    "rows_dropped/near_duplicate": 10,
    "tokens_train": 1000,
    "tokens_cut": 300,
    "padding_share": 0.4,
    "epochs_planned": 3.5,
}
CLEAN = {"rows_in": 100, "tokens_train": 100}


def ledger(**sources: dict[str, float]) -> Ledger:
    counts = {f"data/{name}/{key}": float(value) for name, each in sources.items() for key, value in each.items()}
    return Ledger({**counts, "data/overlap": 0.0}, "digest", "digest", dict.fromkeys(sources, "digest"))


@pytest.mark.parametrize(
    ("limit", "value", "way_out"),
    [
        ("bad_share", 10 / 200, "mend these rows"),
        ("dropped_share", 50 / 200, "data.filters"),
        ("duplicate_share", (20 + 10) / 200, "remove the copies"),
        ("cut_share", 300 / 1000, "over_length to split"),
        ("padding_share", 0.4, "data.packing=pack"),
        ("epochs", 3.5, "trainer.budget"),
    ],
)
def test_each_limit_by_hand(limit: str, value: float, way_out: str) -> None:
    """At the limit nothing is broken; where it is, one line says where, what, the limit and the way out."""
    both = ledger(clean=CLEAN, talk=COUNTS)
    assert broken(both, LimitsSpec(**{limit: value})) == []
    allowed = value * 0.75
    (line,) = broken(both, LimitsSpec(**{limit: allowed}))
    assert line.startswith(f"source 'talk': {limit} is {value:g}, above data.limits.{limit}={allowed:g}; ")
    assert way_out in line and line.endswith(", or raise the limit")


def test_without_limits_nothing_is_broken() -> None:
    assert broken(ledger(talk=COUNTS), LimitsSpec()) == []


def test_every_broken_limit_of_every_source_has_a_line() -> None:
    """0 allows none of it, and is broken by none."""
    none = LimitsSpec(bad_share=0.0, dropped_share=0.0, duplicate_share=0.0, cut_share=0.0, padding_share=0.0, epochs=1.0)
    lines = broken(ledger(a=COUNTS, clean=CLEAN, b=COUNTS), none)
    assert [line.split(":")[0] for line in lines] == ["source 'a'"] * 6 + ["source 'b'"] * 6


def test_a_source_that_is_not_trained_on_breaks_no_limit_of_training() -> None:
    """It has neither padding nor epochs."""
    assert broken(ledger(a={**CLEAN, "weight": 0.0}), LimitsSpec(padding_share=0.0, epochs=0.1, cut_share=0.0)) == []


def test_the_ledger_as_a_table() -> None:
    """One row a count, one column a source; what is of no source is of all."""
    assert table(ledger(a={"rows_in": 3, "rows_bad/no_text": 1}, ab={"rows_in": 2})) == {
        "count": ["rows_in", "rows_bad/no_text", "overlap"],
        "a": [3.0, 1.0, 0.0],
        "ab": [2.0, None, 0.0],
    }


def test_one_digest_of_several_whatever_their_order() -> None:
    one = digest({"a": "1", "b": "2"})
    assert one == digest({"b": "2", "a": "1"})
    assert len({one, digest({"a": "2", "b": "1"}), digest({"a": "1"}), digest({"a": "1", "c": "2"}), digest({})}) == 5
