"""data.read and data.build: what they hold out, count, sum up and never touch."""

import math
import re
from collections import Counter
from collections.abc import Mapping

import pytest

from forge import data
from forge.data.split import Split
from forge.errors import DataError
from forge.spec import Data, DataSpec, Document, EvaluationSpec, SourceSpec


class Letters:
    """a = 2, b = 3, …; 1 stands in front of a text and 0 behind it."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [1, *(ord(letter) - ord("a") + 2 for letter in text)]


def spec(weights: Mapping[str, float], seed: int = 0, length: int = 16) -> DataSpec:
    return DataSpec({name: SourceSpec({}, float(weight)) for name, weight in weights.items()}, length, 0.3, seed)


def corpus_of(sides: Mapping[str, tuple[list[str], list[str]]], weights: Mapping[str, float]) -> data.Corpus:
    """A corpus whose two sides are given: {source: (training texts, validation texts)}; the first text of source a is "a0"."""

    def made(name: str, texts: list[str], first: int) -> tuple[Document, ...]:
        return tuple(Document(f"{name}{first + n}", text, name) for n, text in enumerate(texts))

    splits = {
        name: Split(made(name, train, 0), made(name, valid, len(train)), len(train + valid), 0, 0, f"digest of {name}")
        for name, (train, valid) in sides.items()
    }
    return data.Corpus(splits, weights)


def build(
    corpus: data.Corpus, *, max_tokens: int = 1000, seed: int = 0, batch_rows: int = 2, isolated: bool = True, length: int = 16
) -> Data:
    return data.build(corpus, spec(corpus.weights, length=length), EvaluationSpec(max_tokens), Letters(), batch_rows, seed, isolated)


WORDS = [chr(97 + n % 26) * (n % 9 + 1) + chr(97 + n // 26) for n in range(60)]


def test_the_ledger_adds_up() -> None:
    """60 texts, 5 of them twice, and 2 blank ones; the second source repeats 3 of the first."""
    documents = [Document(f"a{n}", text, "a") for n, text in enumerate([*WORDS, *WORDS[:5], "", " \n"])]
    others = [Document(f"b{n}", text, "b") for n, text in enumerate([*WORDS[:3], *(word + "zz" for word in WORDS)])]
    weights = {"a": 3, "b": 1}
    corpus = data.read(spec(weights), {"a": lambda: documents, "b": lambda: others})
    built = build(corpus)
    counts = built.ledger.counts
    assert [counts[f"data/a/rows_{what}"] for what in ("in", "duplicate", "empty")] == [67, 5, 2]
    assert [counts[f"data/b/rows_{what}"] for what in ("in", "duplicate", "empty")] == [63, 3, 0]
    for name in weights:
        left = [counts[f"data/{name}/rows_{what}"] for what in ("train", "valid", "duplicate", "empty")]
        assert counts[f"data/{name}/rows_in"] == sum(left)
        texts = [document.text for document in corpus.splits[name].train]
        assert counts[f"data/{name}/rows_train"] == len(texts)
        assert counts[f"data/{name}/tokens_train"] == sum(len(text) + 2 for text in texts)
        assert counts[f"data/{name}/targets_train"] == sum(len(text) + 1 for text in texts)
        assert counts[f"data/{name}/targets_evaluated"] == sum(len(document.text) + 1 for document in corpus.splits[name].valid)
        assert counts[f"data/{name}/weight"] == {"a": 0.75, "b": 0.25}[name]
    assert built.epoch_tokens == counts["data/a/targets_train"] + counts["data/b/targets_train"]


def held_out(built: Data, name: str) -> Counter[tuple[int, ...]]:
    """The token lists of a source's validation batches, cut up by segment."""
    found: Counter[tuple[int, ...]] = Counter()
    for batch in built.valid[name]:
        for tokens, segments in zip(batch.tokens_BT, batch.segments_BT, strict=True):
            found.update(tuple(tokens[segments == number].tolist()) for number in range(1, segments.max() + 1))
    return found


@pytest.mark.parametrize("batch_rows", [1, 2, 7])
def test_validation_holds_each_target_once(batch_rows: int) -> None:
    """Also those of the last batch, which is smaller."""
    texts = [chr(97 + n) * (n % 5 + 1) for n in range(23)]
    built = build(corpus_of({"a": (["x"], texts)}, {"a": 1}), batch_rows=batch_rows)
    assert held_out(built, "a") == Counter((*Letters().encode(text), 0) for text in texts)
    assert sum(batch.targets for batch in built.valid["a"]) == sum(len(text) + 1 for text in texts)


def test_validation_rows_name_the_documents_they_hold() -> None:
    texts = [chr(97 + n) * 8 for n in range(20)]
    built = build(corpus_of({"a": (["x"], texts)}, {"a": 1}), isolated=False)
    for batch in built.valid["a"]:
        for tokens, name in zip(batch.tokens_BT, batch.row_ids, strict=True):
            number = int(re.match(r"a(\d+)\[", name)[1]) - 1
            assert tokens[1] == Letters().encode(texts[number])[1]


def test_validation_stops_at_whole_documents_within_the_limit() -> None:
    """10 documents of 5 targets, at most 23: four of them, 20 targets, whichever they are."""
    corpus = corpus_of({"a": (["x"], [chr(97 + n) * 4 for n in range(10)])}, {"a": 1})
    built = build(corpus, max_tokens=23)
    assert built.ledger.counts["data/a/targets_evaluated"] == 20
    assert {len(tokens) for tokens in held_out(built, "a")} == {6} and built.valid_bytes == {"a": 16}
    assert held_out(build(corpus, max_tokens=23, seed=5, batch_rows=3), "a") == held_out(built, "a")


def test_one_document_is_held_out_whatever_the_limit() -> None:
    assert build(corpus_of({"a": (["x"], ["abcdefgh"])}, {"a": 1}), max_tokens=1).ledger.counts["data/a/targets_evaluated"] == 9


def test_one_changed_byte_changes_the_digest_of_the_data_and_of_its_source() -> None:
    def ledger(last: str):
        texts = {"a": WORDS, "b": [*(word + "zz" for word in WORDS), last]}
        made = {name: [Document(f"{name}{n}", text, name) for n, text in enumerate(rows)] for name, rows in texts.items()}
        return build(data.read(spec({"a": 1, "b": 1}), {"a": lambda: made["a"], "b": lambda: made["b"]})).ledger

    one, same, other = ledger("word"), ledger("word"), ledger("worx")
    assert one.digest == same.digest != other.digest
    assert one.source_digests["a"] == other.source_digests["a"]
    assert one.source_digests["b"] != other.source_digests["b"]


SIDES = {"a": (["abc", "de"], ["fgh", "ij"]), "b": (["kl"], ["mno"])}


def test_weights_seeds_and_batches_leave_what_is_measured_on_alone() -> None:
    one = build(corpus_of(SIDES, {"a": 1, "b": 1}))
    other = build(corpus_of(SIDES, {"a": 5, "b": 0}), seed=7, batch_rows=1, isolated=False)
    assert one.ledger.valid_digest == other.ledger.valid_digest
    assert held_out(one, "a") == held_out(other, "a")


def test_another_context_is_another_measure() -> None:
    """What a token can see moves its loss, so losses under two sequence lengths are not compared."""
    lengths = [build(corpus_of(SIDES, {"a": 1, "b": 1}), length=length).ledger.valid_digest for length in (8, 16)]
    assert lengths[0] != lengths[1]


@pytest.mark.parametrize(
    ("sides", "equal"),
    [
        ({**SIDES, "a": (["abd", "de"], SIDES["a"][1])}, True),
        ({**SIDES, "a": (SIDES["a"][0], ["fgh", "ik"])}, False),
        ({**SIDES, "a": (SIDES["a"][0], ["fgh"])}, False),
        ({"a": (SIDES["a"][0], SIDES["b"][1]), "b": (SIDES["b"][0], SIDES["a"][1])}, False),
    ],
    ids=["training text", "a letter held out", "a document less", "sources exchanged"],
)
def test_the_digest_of_the_validation_tokens(sides: Mapping[str, tuple[list[str], list[str]]], equal: bool) -> None:
    weights = {"a": 1, "b": 1}
    digests = [build(corpus_of(each, weights)).ledger.valid_digest for each in (SIDES, sides)]
    assert (digests[0] == digests[1]) is equal


def test_the_unigram_loss_by_hand() -> None:
    """Training targets of "aab" and "b" with their ends: 2 2 3 0 and 3 0, so counts of 0 to 3 are 2 0 2 2, one added: 3 1 3 3 of 10.

    "ab": targets 2, 3, 0, each with p = 3/10. "d" (token 5) was never seen: counts reach to 5, 3 1 3 3 1 1 of 12; p = 1/12 and 3/12.
    Source c has weight 0: what it would train on is not counted.
    """
    sides = {"a": (["aab"], ["ab"]), "b": (["b"], ["d"]), "c": (["bbbbbb"], ["ab"])}
    built = build(corpus_of(sides, {"a": 1, "b": 2, "c": 0}))
    assert built.unigram["a"] == pytest.approx(-math.log(3 / 10))
    assert built.unigram["b"] == pytest.approx(-(math.log(1 / 12) + math.log(3 / 12)) / 2)
    assert built.unigram["c"] == built.unigram["a"]


def test_bytes_held_out_are_those_of_the_text() -> None:
    """é is 2 bytes, 日 is 3; the tokens in front and behind are none."""
    built = build(corpus_of({"a": (["x"], ["abc", "é", "日"]), "b": (["x"], ["abcd"])}, {"a": 1, "b": 1}))
    assert built.valid_bytes == {"a": 3 + 2 + 3, "b": 4}


def test_a_source_of_weight_zero_is_measured_but_never_trained_on() -> None:
    corpus = corpus_of({"a": (["aa"], ["ab"]), "b": (["bb"], ["cd"])}, {"a": 1, "b": 0})
    built = build(corpus)
    assert list(corpus.training_texts()) == ["aa"]
    assert held_out(built, "b") == Counter([(1, 4, 5, 0)])
    assert built.epoch_tokens == 3
    for _ in range(50):
        assert all(name.startswith("a0") for name in built.train.next().row_ids)


def test_rows_hold_one_token_more_than_the_model_sees() -> None:
    assert build(corpus_of({"a": (["a" * 100], ["ab"])}, {"a": 1})).train.next().tokens_BT.shape == (2, 17)


@pytest.mark.parametrize(("side", "what"), [((["", "a"], [""]), "validation"), (([""], ["a"]), "training")])
def test_documents_without_a_target_are_an_error(side: tuple[list[str], list[str]], what: str) -> None:
    """A tokenizer without a start token makes one token, the end, of an empty text."""

    class NoStart(Letters):
        def encode(self, text: str) -> list[int]:
            return super().encode(text)[1:]

    corpus = corpus_of({"a": side}, {"a": 1})
    with pytest.raises(DataError, match=f"source 'a': no {what} document has two tokens"):
        data.build(corpus, spec({"a": 1}), EvaluationSpec(100), NoStart(), 2, 0, True)


def test_toy_data_has_what_its_description_says(toy_data: Data) -> None:
    counts = toy_data.ledger.counts
    lengths = {name: counts[f"data/{name}/tokens_train"] / counts[f"data/{name}/rows_train"] for name in ("short", "long")}
    assert lengths["long"] > 10 * lengths["short"]
    assert toy_data.train.next().tokens_BT.shape == (2, 33)
