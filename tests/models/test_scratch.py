"""A model from nothing, and its tokenizer."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from forge.arrays import flat
from forge.models import Loaded, scratch, trainable_parameters

ODD_TEXTS = {
    "spaces": "  two  and \t tab \n\n\n end ",
    "line ends": "a\r\nb\rc\n\x0b\x0c\u2028\u2029",
    "contractions": "it's n't . , ! 're",
    "every ascii byte": "".join(map(chr, range(128))),
    "latin": "ÿ÷éß\x80\x9f",
    "chinese and japanese": "日本語のテキスト。中文",
    "emoji": "🙂👩‍👩‍👧‍👦🇩🇪",
    "combining": "e\u0301\ufeff\u200b",
    "plane 16": "\U0010ffff",
}


@pytest.fixture(scope="module")
def tiny(make_tiny_model: Callable[..., Loaded]) -> Loaded:
    return make_tiny_model()


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_any_text_is_encoded_without_loss(tiny: Loaded, name: str) -> None:
    start, *tokens = tiny.tokenizer.encode(ODD_TEXTS[name])
    assert start == tiny.tokenizer.bos_token_id == tiny.tokenizer.eos_token_id
    assert tiny.tokenizer.decode(tokens) == ODD_TEXTS[name]


def test_a_text_that_spells_the_end_of_text_does_not_end(tiny: Loaded) -> None:
    _, *tokens = tiny.tokenizer.encode(f"a {scratch.END_OF_TEXT} b")
    assert tiny.tokenizer.eos_token_id not in tokens


def build(texts: list[str], vocab_size: int = 300, seed: int = 0) -> Loaded:
    sizes = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_size": 24, "max_positions": 64}
    return scratch.build(lambda: iter(texts), seed, lambda uri: (Path(), ""), vocab_size=vocab_size, **sizes)


def test_the_same_texts_make_the_same_tokenizer() -> None:
    texts = [f"the cat number {n} sat on the mat, and the hat" for n in range(200)]
    one, again, other = (build(each).tokenizer for each in (texts, texts, ["zebra zebra zebra xylophone"] * 200))
    assert one.get_vocab() == again.get_vocab() != other.get_vocab()
    assert one.encode(texts[7]) == again.encode(texts[7]) != other.encode(texts[7])


def test_the_vocabulary_is_a_limit_and_the_model_has_as_many_rows() -> None:
    """257 leaves room for the bytes and the end of text alone; one short text yields fewer than 5,000."""
    smallest, roomy = build(["the cat"], 257), build(["the cat"], 5000)
    assert len(smallest.tokenizer.get_vocab()) == smallest.config["vocab_size"] == 257
    assert 257 < roomy.config["vocab_size"] < 300
    for loaded in (smallest, roomy):
        assert flat(loaded.model.parameters())["model.embed_tokens.weight"].shape == (loaded.config["vocab_size"], 16)


def test_parameters_by_hand() -> None:
    """Embedding 257·16; attention q 16·16, k and v 16·8 each, o 16·16, norms of q and k 8 each; MLP 3·16·24; norms 3·16."""
    expected = 257 * 16 + (16 * 16 + 2 * 16 * 8 + 16 * 16 + 2 * 8) + 3 * 16 * 24 + 3 * 16
    assert trainable_parameters(build(["the cat"], 257).model) == expected


def test_a_seed_makes_the_weights_and_the_revision() -> None:
    one, again, other = (build(["the cat"], 257, seed) for seed in (0, 0, 1))
    weights = [np.array(each.model(mx.array([[1, 2, 3]]))) for each in (one, again, other)]
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])
    assert one.lineage == again.lineage != other.lineage


def test_the_tiny_model_is_as_small_as_it_says(tiny: Loaded) -> None:
    assert 5_000 < trainable_parameters(tiny.model) < 15_000
