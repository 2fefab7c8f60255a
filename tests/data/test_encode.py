"""Documents to ids: the same as the tokenizer's own, every byte of them. What identifies a tokenizer; rows that can't be encoded."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge.data.encode import Encoded, Encoder
from forge.errors import DataError
from forge.models import Loaded
from forge.spec import BadRow, Conversation, Document, Preference

TEXTS = {
    "prose": "The capital of France is Paris.  Two spaces, a tab\tand an end. ",
    "code": "def f(x):\n    if x:\n\t\treturn [x, 'é']  # <|im_start|> is no tag here\n\n\n",
    "Chinese": "法国的首都是巴黎。\u3000全角空格",
    "emoji": "🗼 👩‍👩‍👧‍👦 🇫🇷 e\u0301",
    "line ends": "a\r\nb\nc\rd\r\r\n\n",
    "nothing": "",
}
CHAT = ({"role": "user", "content": "France?"}, {"role": "assistant", "content": "Paris."})


def documents(*texts: str) -> list[Document]:
    return [Document(f"d{n}", text, f"texts.jsonl:{n + 1}") for n, text in enumerate(texts)]


def loaded(tokenizer: Any, folder: Path, **changes: Any) -> Any:
    """The tokenizer saved and read again."""
    from transformers import PreTrainedTokenizerFast

    tokenizer.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder, **changes)


# ---- documents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_decoding_gives_every_byte_back(text: str, chat_tokenizer: Callable[..., Any]) -> None:
    """Byte-level; <|endoftext|> behind is the one token more."""
    encoder = Encoder(chat_tokenizer("base"))
    (result,) = encoder.encode(documents(text))
    assert isinstance(result, Encoded) and result.ids[-1] == encoder.eos_token_id
    assert encoder.decode(result.ids[:-1]) == text
    first = chat_tokenizer("base").convert_ids_to_tokens(int(result.ids[0]))  # no target; a letter for each byte
    assert result.target_bytes == len(text.encode()) - (len(first) if text else 0) and result.targets is None and result.notes == ()


@pytest.mark.parametrize("family", ["base", "llama3", "gemma", "mistral", "phi"])
def test_documents_are_what_the_tokenizer_gives_and_the_end_token(family: str, chat_tokenizer: Callable[..., Any]) -> None:
    tokenizer = chat_tokenizer(family)
    results = Encoder(tokenizer).encode(documents(*TEXTS.values()))
    assert [result.ids.tolist() for result in results] == [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in TEXTS.values()]
    assert {result.ids.dtype for result in results} == {np.dtype(np.int32)}


def test_special_tokens_spelt_in_a_document_are_text_where_the_tokenizer_says_so_and_in_conversations_are_not(
    make_tiny_model: Callable[..., Loaded],
) -> None:
    """A tokenizer from scratch splits them in documents. The simple template ends turns with the same token."""
    tokenizer = make_tiny_model().tokenizer
    encoder = Encoder(tokenizer, "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    document, chat = encoder.encode([*documents("a<|endoftext|>b"), Conversation("c", CHAT, "c.jsonl:1")])
    end = tokenizer.eos_token_id
    assert document.ids.tolist() == [*tokenizer.encode("a<|endoftext|>b"), end]
    assert np.flatnonzero(document.ids == end).tolist() == [0, len(document.ids) - 1]
    assert (chat.ids == end).sum() == 2 and chat.ids[-1] == end and chat.targets[-1]


def test_an_end_token_that_the_tokenizer_adds_comes_once(chat_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = loaded(chat_tokenizer("base"), tmp_path)
    end = ("<|endoftext|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[end])
    (result,) = Encoder(tokenizer).encode(documents("Paris"))
    assert result.ids.tolist() == tokenizer.encode("Paris")
    assert (result.ids == tokenizer.eos_token_id).sum() == 1


def test_nothing_is_cut_or_padded_whatever_the_tokenizer_was_set_to(chat_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = loaded(chat_tokenizer("chatml"), tmp_path)
    rows = [*documents(*TEXTS.values()), Conversation("c", CHAT, "c.jsonl:1")]
    before = Encoder(tokenizer)
    expected = [result.ids.tolist() for result in before.encode(rows)]
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    after = Encoder(tokenizer)
    assert [result.ids.tolist() for result in after.encode(rows)] == expected
    assert [result.ids.tolist() for result in before.encode(rows)] == expected
    assert after.digest == before.digest


def test_half_a_pair_is_a_bad_row_and_its_neighbours_are_not(chat_tokenizer: Callable[..., Any]) -> None:
    chat = ({"role": "user", "content": "\ud83d"}, CHAT[1])
    rows = [*documents("a", "b\udc00", "c"), Conversation("x", chat, "c.jsonl:7"), Conversation("y", CHAT, "c.jsonl:8")]
    results = Encoder(chat_tokenizer("chatml")).encode(rows)
    assert [isinstance(result, BadRow) for result in results] == [False, True, False, True, False]
    assert [(bad.origin, bad.reason) for bad in results if isinstance(bad, BadRow)] == [
        ("texts.jsonl:2", "lone_surrogate"),
        ("c.jsonl:7", "lone_surrogate"),
    ]


# ---- all kinds of rows ----------------------------------------------------------------------------------------------------


def test_results_keep_the_order_of_mixed_rows(chat_tokenizer: Callable[..., Any]) -> None:
    encoder = Encoder(chat_tokenizer("chatml"))
    rows = [Conversation("c", CHAT, "c:1"), *documents("Rome"), Conversation("d", CHAT[:1], "c:2"), Conversation("e", CHAT, "c:3")]
    results = encoder.encode(rows)
    assert isinstance(results[2], BadRow) and results[2].origin == "c:2"
    assert encoder.decode(results[1].ids) == "Rome<|endoftext|>"
    assert results[0].ids.tolist() == results[3].ids.tolist() == encoder.encode(rows[:1])[0].ids.tolist()
    assert encoder.encode([]) == []


def test_a_preference_is_encoded_with_the_chosen_answer_else_the_rejected(chat_tokenizer: Callable[..., Any]) -> None:
    encoder = Encoder(chat_tokenizer("chatml"))
    other = {"role": "assistant", "content": "Rome."}
    both = Preference("p", CHAT[:1], CHAT[1:], (other,), "p:1")
    rejected = Preference("q", CHAT[:1], (), (other,), "p:2")
    expected = encoder.encode([Conversation("c", CHAT, "c:1"), Conversation("d", (CHAT[0], other), "c:2")])
    assert [result.ids.tolist() for result in encoder.encode([both, rejected])] == [result.ids.tolist() for result in expected]


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("impatient_threads")
def test_threads_share_an_encoder(chat_tokenizer: Callable[..., Any]) -> None:
    """A compiled template with generation blocks refuses to render twice at once."""
    encoder = Encoder(chat_tokenizer("generation"))
    rows = [Conversation(str(n), CHAT * (1 + n % 3), f"c:{n}") for n in range(60)]
    expected = [result.ids.tolist() for result in encoder.encode(rows)]
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(encoder.encode, [rows] * 8):
            assert [result.ids.tolist() for result in results] == expected


# ---- tokenizers -----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_has_one_digest_in_whatever_object_or_folder(chat_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("qwen3", False)
    again = loaded(tokenizer, tmp_path / "a")
    twice = loaded(again, tmp_path / "b")
    one, *others = (Encoder(each) for each in (tokenizer, chat_tokenizer("qwen3"), again, twice))
    assert {other.digest for other in others} == {one.digest}
    assert {other.template_digest for other in others} == {one.template_digest} and one.template_digest
    assert {other.vocab_size for other in others} == {len(tokenizer)}


def test_what_changes_ids_changes_the_digest(chat_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("qwen3", False)
    more = loaded(tokenizer, tmp_path)
    more.add_tokens(["zebra"])
    others = [more, loaded(tokenizer, tmp_path, split_special_tokens=True), loaded(tokenizer, tmp_path, eos_token="<|endoftext|>")]
    assert len({Encoder(each).digest for each in (tokenizer, *others)}) == 4


class Letters:
    """a = 2, b = 3, …; 1 stands in front of a text and 0 behind it."""

    eos_token_id = 0

    def encode(self, text: str) -> list[int]:
        return [1, *(ord(letter) - ord("a") + 2 for letter in text)]


def test_a_tokenizer_with_encode_alone_serves_for_documents() -> None:
    encoder = Encoder(Letters())
    assert [result.ids.tolist() for result in encoder.encode(documents("ab", ""))] == [[1, 2, 3, 0], [1, 0]]
    assert len(encoder.digest) >= 16 and encoder.template_digest == "" and encoder.vocab_size > 27
    other = Letters()
    other.encode = lambda text: [1, *(ord(letter) for letter in text)]
    assert Encoder(Letters()).digest == encoder.digest != Encoder(other).digest
    with pytest.raises(DataError, match="conversations need a fast tokenizer"):
        encoder.encode([Conversation("c", CHAT, "c:1")])


def test_a_tokenizer_without_an_end_token_is_an_error() -> None:
    class Endless(Letters):
        eos_token_id = None

    with pytest.raises(DataError, match="no end-of-text token"):
        Encoder(Endless())
