"""Decoding one token at a time, with ids that are known by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from forge.serving.decode import Names, Text


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def run(tokenizer, prompt: str, completion: list[int]) -> list[str]:
    """The text after each token."""
    text = Text(tokenizer, ids(tokenizer, prompt))
    seen = []
    for token in completion:
        text.add(token)
        seen.append(text.text)
    return seen


def test_leading_space_is_kept(tokenizer) -> None:
    """The word and its space are one token. mlx_lm's detokenizer would give "cat"."""
    (cat,) = ids(tokenizer, " cat")
    assert run(tokenizer, "the", [cat]) == [" cat"]


def test_decoder_that_strips_the_first_space() -> None:
    """As SentencePiece's does: cat alone decodes to "cat", after the prompt to " cat"."""
    raw = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1}))
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert tokenizer.decode([1]) == "cat"
    text = Text(tokenizer, [0])
    text.add(1)
    assert text.text == " cat"


def test_incomplete_character_waits(tokenizer) -> None:
    """The euro sign is the three bytes e2 82 ac, and each is a token: nothing can be shown before the third."""
    euro = ids(tokenizer, "€")
    assert len(euro) == 3
    assert run(tokenizer, "the", euro) == ["", "", "€"]


def test_incomplete_character_at_the_end(tokenizer) -> None:
    text = Text(tokenizer, ids(tokenizer, "the"))
    for token in ids(tokenizer, " cat€")[:-1]:
        text.add(token)
    assert text.text == " cat"
    text.finish()
    assert text.text == " cat\ufffd"


def test_prompt_that_ends_within_a_long_character_run(tokenizer) -> None:
    """20 euro signs are 60 tokens: the kept end of the prompt begins inside a character, and none of it leaks into the text."""
    assert run(tokenizer, "€" * 20, ids(tokenizer, "€a")) == ["", "", "€", "€a"]


class Counting:
    """Tokens are bytes of UTF-8; it remembers the most that it had to decode at once."""

    def __init__(self) -> None:
        self.most = 0

    def decode(self, ids: list[int], **_: object) -> str:
        self.most = max(self.most, len(ids))
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("part", [b"\x80", b"\xff", b"\xe2\x82", b"\xf0\x9f\x98", "\ufffd".encode()])
def test_a_long_run_of_bytes_that_are_no_text_is_decoded_a_piece_at_a_time(part) -> None:
    """Nothing is lost or doubled by that, also of the character behind it, and the run is shown while it goes on."""
    completion = part * 200 + "€a".encode()
    tokenizer = Counting()
    text = Text(tokenizer, list(b"the"))
    for n, token in enumerate(completion, 1):
        text.add(token)
        assert len(text.text) >= len(completion[: max(0, n - 64)].decode(errors="replace"))
    text.finish()
    assert text.text == completion.decode(errors="replace")
    assert tokenizer.most <= 64


def test_a_long_run_that_the_decoder_judges_as_a_whole_is_shown_as_it_says() -> None:
    """As SentencePiece's does: of bytes side by side, one that is no text makes all of them U+FFFD."""
    raw = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    raw.decoder = decoders.ByteFallback()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    text = Text(tokenizer, list(b"the"))
    for token in b"\x80" * 100:
        text.add(token)
    assert 30 < len(text.text) <= 100
    text.finish()
    assert text.text == "\ufffd" * 100


@pytest.mark.parametrize(
    ("stops", "at"),
    [(["sat"], 8), (["t s"], 6), (["on", "cat s"], 4), (["t s", "at s"], 5), (["mat!"], None), ([], None)],
    ids=["one token", "across tokens", "the earliest of two", "the earliest of two at once", "never whole", "none"],
)
def test_find(tokenizer, stops: list[str], at: int | None) -> None:
    """In "the cat sat on": "sat" starts at 8, "t s" at 6, "at s" at 5, "cat s" at 4 and before "on"."""
    text = Text(tokenizer, ids(tokenizer, "x"))
    found = None
    for token in ids(tokenizer, "the cat sat on"):
        text.add(token)
        found = text.find(stops) if found is None else found
    assert found == at


@pytest.mark.parametrize(
    ("stops", "end"),
    [(["only"], "o"), (["some", "t some"], "t so"), (["xyz"], ""), ([], ""), (["off", "cat so far"], "cat so"), (["o"], "")],
)
def test_undecided(tokenizer, stops: list[str], end: str) -> None:
    """The longest end of "the cat so" that may go on to a stop string. A whole one is find's."""
    text = Text(tokenizer, ids(tokenizer, "x"))
    text.text = "the cat so"
    assert text.undecided(stops) == len(end)


def test_names(tokenizer) -> None:
    names = Names(tokenizer)
    assert [names(token) for token in ids(tokenizer, "the cat sat")] == ["the", " cat", " sat"]
    assert names(tokenizer.eos_token_id) == "<|endoftext|>"
    assert names(ids(tokenizer, "€")[0]) == "\ufffd"


def test_names_where_the_decoder_strips_the_first_space() -> None:
    raw = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "▁a": 2, "?": 3}, unk_token="?"))
    raw.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert [Names(tokenizer)(token) for token in (0, 1)] == [" the", " cat"]
