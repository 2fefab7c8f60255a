"""Rows as tokens on disk: read back, they are what the encoder made of each."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forge import data
from forge.data import tokens
from forge.data.cache import Cache
from forge.data.encode import Encoded
from forge.data.survey import Survey, survey
from forge.data.tokens import Tokenised, tokenise
from forge.errors import DataError
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import BadRow, Conversation, Document, Packing, Row


class Toy:
    """The ids of a text are its code points between 1 and 0; of turns, all those of the assistant's are targets.

    A text of "!" alone is refused, and "?" in it is noted. `calls` counts the rows.
    """

    eos_token_id = 0

    def __init__(self, digest: str = "toy", template_digest: str = "", mask: str = "assistant", vocab_size: int = 2**16, factor: int = 1):
        self.digest, self.template_digest, self.mask, self.vocab_size, self._factor = digest, template_digest, mask, vocab_size, factor
        self.calls = 0

    def encode(self, rows: Sequence[Row]) -> list[Encoded | BadRow]:
        self.calls += len(rows)
        return [self.one(row) for row in rows]

    def one(self, row: Row) -> Encoded | BadRow:
        if row.text.startswith("!"):
            return BadRow(row.origin, "refused", "it shouts; lower your voice")
        turns = row.messages if isinstance(row, Conversation) else ({"role": "assistant", "content": row.text},)
        ids = [1, *(ord(letter) * self._factor for turn in turns for letter in turn["content"]), 0]
        learnt = [False, *(turn["role"] == "assistant" for turn in turns for _ in turn["content"]), True]
        targets = np.array(learnt) if isinstance(row, Conversation) else None
        notes = ("asks", "asks_twice") if "??" in row.text else ("asks",) if "?" in row.text else ()
        return Encoded(np.array(ids, dtype=np.int32), targets, len(row.text.encode()), notes)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(n // self._factor) for n in ids if n > 1)


def talk(name: str, *said: str) -> Conversation:
    return Conversation(name, tuple({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)), f"talk:{name}")


def documents(*texts: str) -> list[Row]:
    return [Document(f"d{n}", text, f"texts:{n}") for n, text in enumerate(texts)]


MIXED = [*documents("abc", "b", "!no", "who?"), talk("c0", "a??", "b", "cd", "efg"), *documents("zz", "!!"), talk("c1", "x", "y")]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path, 1)


@pytest.fixture
def tokens_of(cache: Cache) -> Callable[..., Tokenised]:
    """tokens_of(rows, encoder, strict=False)"""

    def make(rows: Sequence[Row], encoder: Toy, strict: bool = False) -> Tokenised:
        return tokenise(surveyed(rows, cache), encoder, strict, cache)

    return make


def surveyed(rows: Sequence[Row], cache: Cache) -> Survey:
    return survey("s", lambda: rows, {}, None, False, cache)


def expected_mask(result: Encoded) -> list[bool]:
    return [False, *([True] * (len(result.ids) - 1))] if result.targets is None else [False, *result.targets[1:].tolist()]


def check(found: Tokenised, rows: Sequence[Row], encoder: Toy) -> None:
    """Each row against the encoder's own result for it alone."""
    assert len(found.sequences.lengths) == len(rows)
    counts: dict[int, int] = {}
    for n, row in enumerate(rows):
        result = encoder.one(row)
        if isinstance(result, BadRow):
            assert found.sequences.lengths[n] == found.target_bytes[n] == 0 and found.bad[n] == result.reason
            continue
        ids, mask = found.sequences.row(n), found.sequences.mask(n, 0, len(result.ids))
        assert ids.tolist() == result.ids.tolist() and mask.tolist() == expected_mask(result) and n not in found.bad
        assert found.target_bytes[n] == result.target_bytes
        for id in ids[mask].tolist():
            counts[id] = counts.get(id, 0) + 1
    assert dict(enumerate(found.target_counts)) | counts == dict(enumerate(found.target_counts))
    assert found.target_counts.sum() == sum(counts.values()) and len(found.target_counts) == encoder.vocab_size


# ---- what is read back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab_size", "factor", "type"), [(2**16, 500, np.uint16), (2**16 + 1, 500, np.int32), (2**17, 1000, np.int32)])
@pytest.mark.parametrize(
    "rows",
    [
        documents("abc", "b", "zz"),
        [talk("a", "q", "an"), talk("b", "qq", "a", "q", "bn")],
        MIXED,
        [*MIXED, *documents("after")],
        documents("!", "a"),
    ],
    ids=["documents", "conversations", "masks mid-way", "documents behind", "refused first"],
)
def test_what_is_read_back_is_what_the_encoder_gave(
    tokens_of: Callable[..., Tokenised], rows: list[Row], vocab_size: int, factor: int, type: type
) -> None:
    """z, 122, times 500 is 61,000; times 1000 it needs more than 16 bits. 65,536 ids fit 16 bits, one more doesn't."""
    encoder = Toy(vocab_size=vocab_size, factor=factor)
    for _ in range(2):  # the second from what is known
        found = tokens_of(rows, encoder)
        assert found.sequences.tokens.dtype == type
        check(found, rows, encoder)
    assert encoder.calls == len(rows)
    assert (found.sequences.targets is None) is all(isinstance(row, Document) for row in rows)


def test_a_part_of_a_row_has_its_first_token_as_context(tokens_of: Callable[..., Tokenised]) -> None:
    """d is 1 100 0; the turn's ids are 1 q a b 0, of which a b 0 are targets."""
    sequences = tokens_of([*documents("d"), talk("t", "q", "ab")], Toy()).sequences
    assert sequences.row(1, 2, 4).tolist() == [97, 98] and sequences.mask(1, 2, 4).tolist() == [False, True]
    assert sequences.row(1, 3).tolist() == [98, 0] and sequences.mask(1, 1, 5).tolist() == [False, True, True, True]
    assert sequences.mask(0, 0, 3).tolist() == [False, True, True] and sequences.mask(0, 1, 3).tolist() == [False, True]
    assert sequences.mask(1, 1, 5).tolist() == [False, True, True, True]  # asking writes nothing


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CHUNK_CHARACTERS", 4)


@pytest.mark.parametrize("before", range(7))
def test_masks_appear_in_a_later_chunk(tokens_of: Callable[..., Tokenised], small_chunks: None, before: int) -> None:
    """What was written before the first conversation is filled up."""
    rows = [*documents(*["abc", "!", "d", "efghi", "jk", "!!", "l"][:before]), talk("t", "q", "answer"), *documents("m", "nopq")]
    encoder = Toy()
    check(tokens_of(rows, encoder), rows, encoder)


def test_rows_keep_their_order_with_several_chunks_in_flight(cache: Cache, small_chunks: None) -> None:
    """Each second chunk is encoded before the one in front of it, which waits for it. Of 40 no more than 4 are held at a time."""
    rows = documents(*(f"{n:04}" for n in range(40)))
    read, done = 0, [threading.Event() for _ in rows]

    def reading() -> Iterator[Row]:
        nonlocal read
        for row in rows:
            read += 1
            yield row

    class Overtaken(Toy):
        def encode(self, rows: Sequence[Row]) -> list[Encoded | BadRow]:
            number = int(rows[0].text)
            done[number].set()
            assert number % 2 or done[number + 1].wait(20)
            assert read - number <= 4
            return super().encode(rows)

    check(tokenise(replace(surveyed(rows, cache), rows=reading()), Overtaken(), False, cache), rows, Toy())


def test_an_error_of_the_encoder_passes_and_keeps_nothing(tokens_of: Callable[..., Tokenised], small_chunks: None) -> None:
    class Broken(Toy):
        def encode(self, rows: Sequence[Row]) -> list[Encoded | BadRow]:
            if "b" in rows[0].text:
                raise DataError("no chat template")
            return super().encode(rows)

    rows = documents(*(letter * 5 for letter in "abc"))
    with pytest.raises(DataError, match="no chat template"):
        tokens_of(rows, Broken())
    check(tokens_of(rows[:1], Toy()), rows[:1], Toy())


# ---- rows that can't be rendered, and notes ---------------------------------------------------------------------------------


def test_refused_rows_are_numbered_and_shown(tokens_of: Callable[..., Tokenised]) -> None:
    found = tokens_of([*MIXED, *documents(*(f"!{n}" for n in range(9)))], Toy())
    assert found.bad == dict.fromkeys((2, 6, *range(8, 17)), "refused")
    assert [example[0] for example in found.examples] == ["texts:2", "texts:1", "texts:0", "texts:1", "texts:2"]
    assert found.examples[0][1:] == ("refused", "it shouts; lower your voice")
    assert found.notes == {"asks": 2, "asks_twice": 1}


def test_a_refused_row_is_an_error_when_asked_strictly_also_of_what_is_known(tokens_of: Callable[..., Tokenised]) -> None:
    said = r"^texts:2: refused: it shouts; lower your voice; or leave such rows out, counted, by data.bad_rows=skip$"
    encoder = Toy()
    for _ in range(2):  # an error keeps nothing
        with pytest.raises(DataError, match=said):
            tokens_of(MIXED, encoder, strict=True)
    before = encoder.calls
    tokens_of(MIXED, encoder)
    with pytest.raises(DataError, match=said):
        tokens_of(MIXED, encoder, strict=True)
    assert before == 2 * len(MIXED) and encoder.calls == before + len(MIXED)


# ---- when rows are tokenised again ------------------------------------------------------------------------------------------

ROWS = {name: [Document(f"{name}{n}", f"{name} {n} " + "x" * (n % 30), name) for n in range(50)] for name in "ab"}
BEFORE = DataSpec({"a": SourceSpec({}, 1.0), "b": SourceSpec({}, 2.0)}, sequence_length=16, valid_fraction=0.3, split_seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"sources": {"a": SourceSpec({}, 5.0), "b": SourceSpec({}, 0.0)}},
        {"sources": {"a": SourceSpec({}, 1.0, max_epochs=2.0), "b": SourceSpec({}, 2.0, over_length="drop")}},
        {"sequence_length": 32},
        {"split_seed": 7},
        {"valid_fraction": 0.2, "test_fraction": 0.2},
        {"bad_rows": "skip"},
        {"seed": 9},
        {"batch_rows": 1, "packing": Packing(False, "a test")},
        {"max_tokens": 20},
    ],
    ids=[
        "weights",
        "caps and policies",
        "sequence length",
        "split seed",
        "shares",
        "bad rows",
        "seed",
        "batches and packing",
        "validation",
    ],
)
def test_what_moves_no_token_tokenises_nothing_again(cache: Cache, change: dict) -> None:
    encoder = Toy()
    built(cache, encoder, {})
    assert encoder.calls == 100
    built(cache, encoder, change)
    assert encoder.calls == 100


@pytest.mark.parametrize(
    "change", [{"digest": "other"}, {"template_digest": "other"}, {"mask": "last"}], ids=["tokenizer", "template", "mask"]
)
def test_what_decides_tokens_and_targets_tokenises_again(cache: Cache, change: dict) -> None:
    built(cache, Toy(), {})
    other = Toy(**change)
    built(cache, other, {})
    assert other.calls == 100


def test_one_changed_row_tokenises_its_own_source_again(cache: Cache) -> None:
    encoder = Toy()
    built(cache, encoder, {})
    built(cache, encoder, {}, {**ROWS, "b": [*ROWS["b"][:-1], Document("b49", "other", "b")]})
    assert encoder.calls == 150


def built(cache: Cache, encoder: Toy, change: dict, rows: dict[str, list[Row]] = ROWS) -> None:
    run = {"seed": 0, "batch_rows": 2, "packing": Packing(True, "a test"), "max_tokens": 1000}
    run |= {name: value for name, value in change.items() if name in run}
    spec = replace(BEFORE, **{name: value for name, value in change.items() if name not in run})
    corpus = data.read(spec, {name: lambda each=each: each for name, each in rows.items()}, {}, cache)
    data.build(corpus, spec, EvaluationSpec(run["max_tokens"]), encoder, cache, run["batch_rows"], run["seed"], run["packing"])
