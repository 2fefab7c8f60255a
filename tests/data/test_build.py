"""data.read and data.build: what they hold out, count, sum up and never touch."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge import data
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.split import Sides
from forge.data.survey import survey
from forge.data.templates import named
from forge.errors import DataError
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import Batch, Conversation, Data, Document, Ledger, Packing, Preference, Row
from forge.values import OverLength

PACKED, BUCKETED = Packing(True, "a test"), Packing(False, "a test")


class Letters:
    """a = 2, b = 3, …; 1 stands in front of a text and 0 behind it. Of "-" and "_" nothing is left."""

    eos_token_id = 0

    def __init__(self, vocab_size: int = 2**16):
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [] if text in "-_" else [1, *(ord(letter) - ord("a") + 2 for letter in text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(("<end>", "<start>")[n] if n < 2 else chr(n + ord("a") - 2) for n in ids)


Given = Mapping[str, tuple[list[str], ...]]


class Bench:
    """The data path with a cache of its own, its parts set to something small."""

    def __init__(self, cache: Cache):
        self.cache = cache

    def spec(self, weights: Mapping[str, float], length: int = 16, policy: OverLength = "split", **parts: Any) -> DataSpec:
        sources = {name: SourceSpec({}, float(weight), over_length=policy) for name, weight in weights.items()}
        return DataSpec(sources, length, **{"valid_fraction": 0.3, "split_seed": 0, **parts})

    def read(self, rows: Mapping[str, Sequence[Row]], weights: Mapping[str, float] | None = None, **parts: Any) -> data.Corpus:
        sources = {name: lambda each=each: each for name, each in rows.items()}
        return data.read(self.spec(weights or dict.fromkeys(rows, 1.0), **parts), sources, {}, self.cache)

    def given(self, sides: Given, weights: Mapping[str, float]) -> data.Corpus:
        """A corpus whose sides are given: {source: texts of (training, validation, test)}; the first text of source a is "a0"."""
        surveys, numbers = {}, {}
        for name, texts in sides.items():
            rows = [Document(f"{name}{n}", text, name) for n, text in enumerate(text for side in texts for text in side)]
            surveys[name] = survey(name, lambda rows=rows: rows, {}, None, True, self.cache)
            assert len(surveys[name].keys) == len(rows)
            borders = np.cumsum([0, *map(len, texts), *[0] * (3 - len(texts))])
            numbers[name] = Sides(*(np.arange(*borders[n : n + 2]) for n in range(3)), {})
        return data.Corpus(surveys, numbers, weights)

    def build(
        self,
        corpus: data.Corpus,
        *,
        max_tokens: int = 1000,
        full_tokens: int | None = None,
        seed: int = 0,
        batch_rows: int = 2,
        packing: Packing = PACKED,
        encoder: Encoder | None = None,
        **parts: Any,
    ) -> Data:
        spec = self.spec(corpus.weights, **parts)
        encoder = encoder or Encoder(Letters())
        return data.build(corpus, spec, EvaluationSpec(max_tokens, full_tokens), encoder, self.cache, batch_rows, seed, packing)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Cache(tmp_path, 1))


def held_out(batches: Sequence[Batch]) -> Counter[tuple[int, ...]]:
    """The token lists of a source's batches, cut up by segment."""
    found: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        for tokens, segments in zip(batch.tokens_BT, batch.segments_BT, strict=True):
            found.update(tuple(tokens[segments == number].tolist()) for number in range(1, segments.max() + 1))
    return found


def counts_of(built: Data, name: str) -> dict[str, float]:
    return {key.removeprefix(f"data/{name}/"): value for key, value in built.ledger.counts.items() if key.startswith(f"data/{name}/")}


WORDS = [chr(97 + n % 26) * (n % 9 + 1) + chr(97 + n // 26) for n in range(60)]


# ---- counts -----------------------------------------------------------------------------------------------------------------


def test_the_ledger_adds_up(bench: Bench) -> None:
    """60 texts, 5 of them twice, and 2 blank ones; the second source repeats 3 of the first."""
    documents = [Document(f"a{n}", text, "a") for n, text in enumerate([*WORDS, *WORDS[:5], "", " \n"])]
    others = [Document(f"b{n}", text, "b") for n, text in enumerate([*WORDS[:3], *(word + "zz" for word in WORDS)])]
    weights, rows = {"a": 3, "b": 1}, {"a": documents, "b": others}
    corpus = bench.read(rows, weights, test_fraction=0.1)
    built = bench.build(corpus, test_fraction=0.1)
    counts = {name: counts_of(built, name) for name in weights}
    left_out = ("rows_in", "rows_bad", "rows_dropped", "rows_dropped/duplicate", "rows_dropped/empty")
    assert [counts["a"].get(key) for key in left_out] == [67, 0, 7, 5, 2]
    assert [counts["b"].get(key) for key in left_out] == [63, 0, 3, 3, None]
    for name, found in counts.items():
        texts = {side: [rows[name][int(corpus.surveys[name].ids[int(n)].as_py()[1:])].text for n in getattr(corpus.sides[name], side)]
                 for side in ("train", "valid", "test")}  # fmt: skip
        assert found["rows_in"] == sum(map(len, texts.values())) + found["rows_dropped"]
        assert [found[f"rows_{side}"] for side in texts] == [len(each) for each in texts.values()] and all(texts.values())
        assert found["tokens_train"] == sum(len(text) + 2 for text in texts["train"])
        assert found["targets_train"] == sum(len(text) + 1 for text in texts["train"])
        assert found["targets_evaluated"] == sum(len(text) + 1 for text in texts["valid"])
        assert found["weight"] == {"a": 0.75, "b": 0.25}[name]
        assert built.lengths[name].tolist() == [len(text) + 2 for text in texts["train"]]
        assert held_out(built.test[name]) == Counter((*Letters().encode(text), 0) for text in texts["test"])
    assert built.epoch_tokens == counts["a"]["targets_train"] + counts["b"]["targets_train"]
    assert built.ledger.counts["data/overlap"] == 0


def test_a_source_is_read_once(bench: Bench) -> None:
    readings = []

    def source() -> list[Row]:
        readings.append(1)
        return [Document(f"a{n}", word, "a") for n, word in enumerate(WORDS)]

    corpus = data.read(bench.spec({"a": 1}), {"a": source}, {}, bench.cache)
    assert set(corpus.training_texts()) <= set(WORDS)
    bench.build(corpus)
    assert len(readings) == 1


# ---- validation -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [PACKED, BUCKETED])
@pytest.mark.parametrize("batch_rows", [1, 2, 7])
def test_validation_holds_each_target_once(bench: Bench, batch_rows: int, packing: Packing) -> None:
    """Also those of the last batch, which is smaller."""
    texts = [chr(97 + n) * (n % 5 + 1) for n in range(23)]
    built = bench.build(bench.given({"a": (["x"], texts)}, {"a": 1}), batch_rows=batch_rows, packing=packing)
    assert held_out(built.valid["a"]) == Counter((*Letters().encode(text), 0) for text in texts)
    assert sum(batch.targets for batch in built.valid["a"]) == sum(len(text) + 1 for text in texts)


def test_rows_of_like_length_lie_together_where_each_holds_one_document(bench: Bench) -> None:
    """Lengths 3 to 10 in rows of two: batches are as wide as their longer row."""
    texts = ["abcdefgh"[: n + 1] for n in (3, 0, 7, 1, 6, 2, 5, 4)]
    built = bench.build(bench.given({"a": (["x"], texts)}, {"a": 1}), packing=BUCKETED)
    assert [batch.tokens_BT.shape for batch in built.valid["a"]] == [(2, 4), (2, 6), (2, 8), (2, 10)]


def test_validation_rows_name_the_documents_they_hold(bench: Bench) -> None:
    texts = [chr(97 + n) * 8 for n in range(20)]
    built = bench.build(bench.given({"a": (["x"], texts)}, {"a": 1}), packing=BUCKETED)
    for batch in built.valid["a"]:
        for tokens, name in zip(batch.tokens_BT, batch.row_ids, strict=True):
            number = int(re.match(r"a(\d+)\[", name)[1]) - 1
            assert tokens[1] == Letters().encode(texts[number])[1]


def test_validation_stops_at_whole_documents_within_the_limit(bench: Bench) -> None:
    """10 documents of 5 targets, at most 23: four of them, 20 targets, whichever they are; of the test at most 33, so six."""
    texts = [chr(97 + n) * 4 for n in range(20)]
    corpus = bench.given({"a": (["x"], texts[:10], texts[10:])}, {"a": 1})
    built = bench.build(corpus, max_tokens=23, full_tokens=33)
    assert counts_of(built, "a")["targets_evaluated"] == 20 and counts_of(built, "a")["rows_valid"] == 10
    assert {len(tokens) for tokens in held_out(built.valid["a"])} == {6} and built.valid_bytes == {"a": 16}
    again = bench.build(corpus, max_tokens=23, full_tokens=33, seed=5, batch_rows=3)
    assert held_out(again.valid["a"]) == held_out(built.valid["a"])
    assert counts_of(built, "a")["targets_evaluated_test"] == 30 and built.test_bytes == {"a": 24}
    assert len(held_out(built.test["a"])) == 6 and held_out(built.test["a"]) == held_out(again.test["a"])
    assert {tokens[1] - 2 for tokens in held_out(built.test["a"])} <= set(range(10, 20))


def test_what_is_measured_on_is_chosen_by_the_text_alone(bench: Bench) -> None:
    """Neither order nor names matter, so no folder and no alphabet is favoured."""
    texts = [chr(97 + n) * 4 for n in range(20)]
    one, other = (bench.build(bench.given({"a": (["x"], each)}, {"a": 1}), max_tokens=30) for each in (texts, texts[::-1]))
    assert held_out(one.valid["a"]) == held_out(other.valid["a"]) and len(held_out(one.valid["a"])) == 6


def test_one_document_is_held_out_whatever_the_limit(bench: Bench) -> None:
    built = bench.build(bench.given({"a": (["x"], ["abcdefgh"])}, {"a": 1}), max_tokens=1)
    assert counts_of(built, "a")["targets_evaluated"] == 9


def test_without_a_share_for_it_there_is_no_test(bench: Bench) -> None:
    assert bench.build(bench.given({"a": (["x"], ["y"])}, {"a": 1})).test == {}


# ---- digests ----------------------------------------------------------------------------------------------------------------


def test_one_changed_byte_changes_the_digest_of_the_data_and_of_its_source(bench: Bench) -> None:
    def ledger(last: str) -> Ledger:
        texts = {"a": WORDS, "b": [*(word + "zz" for word in WORDS), last]}
        rows = {name: [Document(f"{name}{n}", text, name) for n, text in enumerate(each)] for name, each in texts.items()}
        return bench.build(bench.read(rows)).ledger

    one, same, other = ledger("word"), ledger("word"), ledger("worx")
    assert one.digest == same.digest != other.digest
    assert one.source_digests["a"] == other.source_digests["a"]
    assert one.source_digests["b"] != other.source_digests["b"]


SIDES = {"a": (["abc", "de"], ["fgh", "ij"]), "b": (["kl"], ["mno"])}


def test_weights_seeds_and_batches_leave_what_is_measured_on_alone(bench: Bench) -> None:
    """Documents that fill rows together lie in other rows, and in another order, than where each has one to itself."""
    sides = {**SIDES, "a": (["xyz"], ["abcdefghijklmnopqrstuvwxyz"[:size] for size in (3, 25, 9, 1, 20, 7, 12)])}
    one = bench.build(bench.given(sides, {"a": 1, "b": 1}))
    other = bench.build(bench.given(sides, {"a": 5, "b": 1}), seed=7, batch_rows=1, packing=BUCKETED)
    assert one.ledger.valid_digest == other.ledger.valid_digest
    assert held_out(one.valid["a"]) == held_out(other.valid["a"])


def test_a_source_of_weight_zero_is_no_part_of_what_losses_are_compared_by(bench: Bench) -> None:
    """Measuring another source beside leaves the loss of all together what it was; taking one out of it does not."""
    both, beside = bench.given(SIDES, {"a": 1, "b": 1}), bench.given(SIDES, {"a": 1, "b": 0})
    alone = bench.given({"a": SIDES["a"]}, {"a": 1})
    digests = [(built.ledger.valid_digest, built.full_digest) for built in map(bench.build, (both, beside, alone))]
    assert digests[1] == digests[2] and not set(digests[0]) & set(digests[1])
    assert bench.build(beside).unweighted == {"b"} and bench.build(both).unweighted == set()


def test_another_context_is_another_measure(bench: Bench) -> None:
    """What a token can see moves its loss, so losses under two sequence lengths are not compared."""
    corpus = bench.given(SIDES, {"a": 1, "b": 1})
    lengths = [bench.build(corpus, length=length).ledger.valid_digest for length in (8, 16)]
    assert lengths[0] != lengths[1]


@pytest.mark.parametrize(
    ("sides", "equal"),
    [
        ({**SIDES, "a": (["abd", "de"], SIDES["a"][1])}, True),
        ({**SIDES, "a": (SIDES["a"][0], ["fgh", "ik"])}, False),
        ({**SIDES, "a": (SIDES["a"][0], ["fgh"])}, False),
        ({**SIDES, "a": (SIDES["a"][0], ["fghi", "j"])}, False),
        ({"a": (SIDES["a"][0], SIDES["b"][1]), "b": (SIDES["b"][0], SIDES["a"][1])}, False),
    ],
    ids=["training text", "a letter held out", "a document less", "a letter moved", "sources exchanged"],
)
def test_the_digest_of_the_validation_tokens(bench: Bench, sides: Given, equal: bool) -> None:
    weights = {"a": 1, "b": 1}
    digests = [bench.build(bench.given(each, weights)).ledger.valid_digest for each in (SIDES, sides)]
    assert (digests[0] == digests[1]) is equal


def test_a_policy_is_another_measure_where_it_cuts_what_is_measured_on(bench: Bench) -> None:
    """Rows of 9 tokens: 22 letters and the two tokens around them are cut, 7 letters are not."""
    policies = ("split", "drop", "truncate_left", "truncate_right")

    def digests(valid: list[str]) -> list[str]:
        corpus = bench.given({"a": (["abcdefghijklmnop"], valid)}, {"a": 1})
        train = bench.given({"a": (["abc"], valid)}, {"a": 1})
        return [bench.build(train if policy == "drop" else corpus, length=8, policy=policy).ledger.valid_digest for policy in policies]

    assert len(set(digests(["abcdefg", "x"]))) == 1
    assert len(set(digests(["abcdefghijklmnopqrstuv", "x"]))) == 4


# ---- rows that are too long -------------------------------------------------------------------------------------------------

LONG = "abcdefghijklmnopqrst"  # 22 tokens


@pytest.mark.parametrize(
    ("policy", "expected", "size", "cut"),
    [
        ("split", {"<start>abcdefgh", "hijklmnop", "pqrst<end>", "<start>xyz<end>"}, 20 + 3, 0),
        ("drop", {"<start>xyz<end>"}, 3, 22),
        ("truncate_right", {"<start>abcdefgh", "<start>xyz<end>"}, 8 + 3, 13),
        ("truncate_left", {"mnopqrst<end>", "<start>xyz<end>"}, 7 + 3, 13),
    ],
)
@pytest.mark.parametrize("packing", [PACKED, BUCKETED])
def test_what_is_left_of_a_row_that_is_too_long(
    bench: Bench, packing: Packing, policy: OverLength, expected: set[str], size: int, cut: int
) -> None:
    """Rows of 9 tokens. The first token is context: truncate_left learns n to t, 7 bytes, and the end, which is no text.

    Where it is split, each piece begins with the last token of the one before, and nothing is lost.
    """
    built = bench.build(bench.given({"a": ([LONG[::-1], "abc"], [LONG, "xyz"])}, {"a": 1}), length=8, policy=policy, packing=packing)
    assert {Letters().decode(tokens) for tokens in held_out(built.valid["a"])} == expected
    assert built.valid_bytes == {"a": size}
    found = counts_of(built, "a")
    assert (found["tokens_cut"], found["rows_split"], found["rows_truncated"], found.get("rows_dropped/over_length", 0)) == (
        cut,
        policy == "split",
        policy.startswith("truncate"),
        2 * (policy == "drop"),
    )
    assert found["rows_in"] == 4 == found["rows_train"] + found["rows_valid"] + found["rows_dropped"]


@pytest.mark.parametrize("sides", [([LONG, "a"], ["b"], []), (["a"], [LONG, "b"], []), (["a"], ["b"], [LONG])])
def test_a_row_that_is_too_long_can_be_an_error_on_every_side(bench: Bench, sides: tuple[list[str], ...]) -> None:
    with pytest.raises(DataError, match=r"source 'a': a\d has 22 tokens, 9 fit, .*\(1 such rows\); raise data.sequence_length"):
        bench.build(bench.given({"a": sides}, {"a": 1}), length=8, policy="error")


# ---- conversations ----------------------------------------------------------------------------------------------------------


def talk(number: int) -> Conversation:
    asked = {"role": "user", "content": f"What is the capital number {number}?"}
    return Conversation(f"c{number}", (asked, {"role": "assistant", "content": f"Paris é {number}"}), f"c.jsonl:{number}")


@pytest.mark.parametrize("packing", [PACKED, BUCKETED])
def test_conversations_are_learnt_where_the_assistant_speaks(bench: Bench, chat_tokenizer: Callable[..., Any], packing: Packing) -> None:
    """The targets of training and validation spell the answers, each with the token that ends it, and no question."""
    encoder = Encoder(chat_tokenizer("base", False), named("simple"))
    corpus = bench.read({"c": [talk(n) for n in range(40)]}, length=128)
    built = bench.build(corpus, encoder=encoder, length=128, packing=packing, batch_rows=32)

    def learnt(batches: Sequence[Batch]) -> Counter[str]:
        spelt = (encoder.decode(b.tokens_BT[row][b.mask_BT[row]]) for b in batches for row in range(len(b.tokens_BT)))
        return Counter(part for text in spelt for part in re.findall(r".*?<\|endoftext\|>", text))

    def answers(numbers: np.ndarray) -> set[str]:
        return {f"Paris é {corpus.surveys['c'].ids[int(n)].as_py()[1:]}<|endoftext|>" for n in numbers}

    held = learnt(built.valid["c"])
    assert set(held) == answers(corpus.sides["c"].valid) and set(held.values()) == {1}
    assert built.valid_bytes["c"] == sum(len(text.removesuffix("<|endoftext|>").encode()) for text in held)
    assert set(learnt([built.train.next() for _ in range(32)])) == answers(corpus.sides["c"].train)
    assert built.ledger.template_digest == encoder.template_digest != "" and built.ledger.tokenizer_digest == encoder.digest


def test_a_preference_is_counted_and_its_chosen_answer_learnt(bench: Bench, chat_tokenizer: Callable[..., Any]) -> None:
    encoder = Encoder(chat_tokenizer("base", False), named("simple"))
    wrong = {"role": "assistant", "content": "I don't know."}
    pairs = [Preference(f"p{n}", talk(n).messages[:1], talk(n).messages[1:], (wrong,), "p") for n in range(10)]
    built = bench.build(bench.read({"p": [*pairs, *(talk(n) for n in range(10, 20))]}, length=128), encoder=encoder, length=128)
    assert counts_of(built, "p")["rows_pairs"] == 10 and counts_of(built, "p")["rows_in"] == 20
    spelt = "".join(encoder.decode(row) for batch in (*built.valid["p"], built.train.next()) for row in batch.tokens_BT)
    assert "Paris" in spelt and "know" not in spelt


def test_rows_that_are_not_as_they_said_are_noted(bench: Bench, chat_tokenizer: Callable[..., Any]) -> None:
    encoder = Encoder(chat_tokenizer("base", False), named("simple"))
    rows = [talk(n) for n in range(20)]
    rows[3] = Conversation("odd", (rows[3].messages[0], {"role": "assistant", "content": "It is <|endoftext|>"}), "c.jsonl:3")
    built = bench.build(bench.read({"c": rows}, length=128), encoder=encoder, length=128)
    assert counts_of(built, "c")["rows_noted/special_in_content"] == 1


# ---- what a loss is held against --------------------------------------------------------------------------------------------


def test_the_unigram_loss_by_hand(bench: Bench) -> None:
    """Training targets of "aab" and "b" with their ends: 2 2 3 0 and 3 0. Counts of 0 to 5 are 2 0 2 2 0 0, one added 3 1 3 3 1 1, of 12.

    "ab": targets 2, 3, 0, each with p = 3/12. "d" (token 5) was never seen: p = 1/12 and, for its end, 3/12.
    Source c has weight 0: what it would train on is not counted.
    """
    sides = {"a": (["aab"], ["ab"]), "b": (["b"], ["d"]), "c": (["bbbbbb"], ["ba"])}
    built = bench.build(bench.given(sides, {"a": 1, "b": 2, "c": 0}), encoder=Encoder(Letters(vocab_size=6)))
    assert built.unigram["a"] == pytest.approx(-math.log(3 / 12))
    assert built.unigram["b"] == pytest.approx(-(math.log(1 / 12) + math.log(3 / 12)) / 2)
    assert built.unigram["c"] == pytest.approx(built.unigram["a"])


def test_bytes_held_out_are_those_of_the_text(bench: Bench) -> None:
    """é is 2 bytes, 日 is 3; the tokens in front and behind are none."""
    built = bench.build(bench.given({"a": (["x"], ["abc", "é", "日"]), "b": (["x"], ["abcd"])}, {"a": 1, "b": 1}))
    assert built.valid_bytes == {"a": 3 + 2 + 3, "b": 4}


# ---- training ---------------------------------------------------------------------------------------------------------------


def test_a_source_of_weight_zero_is_measured_but_never_trained_on(bench: Bench) -> None:
    corpus = bench.given({"a": (["aa"], ["ab"]), "b": (["bb"], ["cd"])}, {"a": 1, "b": 0})
    built = bench.build(corpus)
    assert list(corpus.training_texts()) == ["aa"]
    assert held_out(built.valid["b"]) == Counter([(1, 4, 5, 0)])
    assert built.epoch_tokens == 3 and counts_of(built, "b")["weight"] == 0
    for _ in range(50):
        batch = built.train.next()
        assert all(name.startswith("a0") for name in batch.row_ids) and set(batch.sources) == {"a"}


def test_rows_hold_one_token_more_than_the_model_sees(bench: Bench) -> None:
    assert bench.build(bench.given({"a": (["a" * 100], ["ab"])}, {"a": 1})).train.next().tokens_BT.shape == (2, 17)


def test_a_tokenizer_is_made_from_training_texts_in_their_order(bench: Bench) -> None:
    corpus = bench.given({"a": (["c", "a"], ["v"], ["t"]), "b": (["b"], ["w"])}, {"a": 1, "b": 1})
    assert list(corpus.training_texts()) == ["c", "a", "b"]


def test_a_tokenizer_sees_an_even_part_of_much_text(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 + 1,000 texts of 5 bytes a tenth is asked for: 200 and 100 draws, standard deviations below 14 and 10. At least one each."""
    texts = {name: [f"{name}{n:04}" for n in range(count)] for name, count in (("a", 2000), ("b", 1000))}
    corpus = bench.given({name: (each, ["v" + name]) for name, each in texts.items()}, {"a": 1, "b": 1})
    monkeypatch.setattr(data, "_TOKENIZER_BYTES", 1500)
    some = list(corpus.training_texts())
    assert abs(sum(text in texts["a"] for text in some) - 200) < 56 and abs(sum(text in texts["b"] for text in some) - 100) < 40
    assert some == [text for text in texts["a"] + texts["b"] if text in set(some)] == list(corpus.training_texts())
    monkeypatch.setattr(data, "_TOKENIZER_BYTES", 1)
    assert [text[0] for text in corpus.training_texts()] == ["a", "b"]


@pytest.mark.parametrize(
    ("sides", "policy", "said"),
    [
        ((["-", "a"], ["_"]), "split", r"no validation row has a target \(1 one_token\)"),
        ((["-"], ["a"]), "split", r"no training row has a target \(1 one_token\)"),
        (([LONG, LONG + "a"], ["a"]), "drop", r"no training row has a target \(2 over_length\)"),
    ],
)
def test_a_side_without_a_target_is_an_error(bench: Bench, sides: tuple[list[str], ...], policy: OverLength, said: str) -> None:
    """Of "-" and "_" only the end is left."""
    with pytest.raises(DataError, match=f"source 'a': {said}; look at over_length, data.mask and the rows"):
        bench.build(bench.given({"a": sides}, {"a": 1}), policy=policy)


def test_toy_data_has_what_its_description_says(toy_data: Data) -> None:
    counts = toy_data.ledger.counts
    lengths = {name: counts[f"data/{name}/tokens_train"] / counts[f"data/{name}/rows_train"] for name in ("short", "long")}
    assert lengths["long"] > 10 * lengths["short"]
    assert toy_data.train.next().tokens_BT.shape == (2, 33)
