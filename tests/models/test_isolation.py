"""Documents packed into one row must not see each other, on every architecture that says so."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge.arrays import flat
from forge.data.pack import PackedRows
from forge.spec import Batch
from forge.training.isolation import forward, keeps_apart
from forge.training.objectives import causal_lm, shift

VOCAB = 29
ISOLATED = ["llama", "qwen3", "gemma3_text", "phi3", "mistral", "ministral3", "gpt2"]
LENGTHS = (9, 7, 5)  # packed in this order: the longest first
MakeBatch = Callable[[list[np.ndarray], bool], Batch]


def documents(seed: int = 1) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCAB, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture
def batch(pack_rows: Callable[..., PackedRows]) -> MakeBatch:
    """batch(documents, packed): one row of 24 tokens with all three, or three rows with one each."""

    def make(tokens: list[np.ndarray], packed: bool) -> Batch:
        rows = pack_rows(tokens, [f"d{n}" for n in range(len(tokens))], 24, packed)
        assert len(rows) == (1 if packed else 3)
        return rows.batch(range(len(rows)))

    return make


@pytest.fixture
def losses(batch: MakeBatch) -> Callable[[Any, list[np.ndarray]], list[np.ndarray]]:
    """losses(model, documents): each document's losses, position by position, from one packed row; log-softmax by numpy."""

    def compute(model: Any, tokens: list[np.ndarray]) -> list[np.ndarray]:
        inputs, targets, mask, segments = shift(batch(tokens, True))
        logits = np.array(forward(model, inputs, segments).astype(mx.float32), dtype=np.float64)[0]
        normal = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        each = (normal - logits[np.arange(len(logits)), np.array(targets)[0]])[np.array(mask)[0]]
        return np.split(each, np.cumsum([length - 1 for length in LENGTHS])[:-1])

    return compute


@pytest.mark.parametrize("name", ISOLATED)
def test_packed_and_unpacked_losses_are_equal(make_shape: Callable[..., Any], batch: MakeBatch, name: str) -> None:
    model = make_shape(name)
    packed, (count, _) = causal_lm(model, batch(documents(), True))
    apart, (count_apart, _) = causal_lm(model, batch(documents(), False))
    assert count.item() == count_apart.item() == sum(LENGTHS) - 3
    assert packed.item() == pytest.approx(apart.item(), rel=1e-5)


@pytest.mark.parametrize("name", ISOLATED)
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_changing_one_document_leaves_the_others_losses(make_shape: Callable[..., Any], losses: Any, name: str, changed: int) -> None:
    model = make_shape(name)
    before, tokens = losses(model, documents()), documents()
    tokens[changed] = (tokens[changed] + 1) % VOCAB
    after = losses(model, tokens)
    for number in {0, 1, 2} - {changed}:
        np.testing.assert_allclose(after[number], before[number], atol=1e-5)
    assert np.abs(after[changed] - before[changed]).max() > 0.01


@pytest.mark.parametrize("name", ISOLATED)
def test_a_position_sees_nothing_that_comes_later(make_shape: Callable[..., Any], losses: Any, name: str) -> None:
    """The last token of a document is changed: the losses of its earlier targets stay."""
    model, tokens = make_shape(name), documents()
    before = losses(model, tokens)[0]
    tokens[0][-1] = (tokens[0][-1] + 1) % VOCAB
    after = losses(model, tokens)[0]
    np.testing.assert_allclose(after[:-1], before[:-1], atol=1e-5)
    assert abs(after[-1] - before[-1]) > 0.01


@pytest.mark.parametrize("name", ISOLATED)
def test_gradients_are_equal_packed_and_unpacked(make_shape: Callable[..., Any], batch: MakeBatch, name: str) -> None:
    """To 1e-5 of the largest of each weight's gradients."""
    model = make_shape(name)
    one_row, three_rows = (
        flat(nn.value_and_grad(model, lambda rows: causal_lm(model, rows)[0])(batch(documents(), packed))[1]) for packed in (True, False)
    )
    assert one_row.keys() == three_rows.keys() == flat(model.parameters()).keys()
    for key, expected in ((key, np.array(value)) for key, value in three_rows.items()):
        np.testing.assert_allclose(np.array(one_row[key]), expected, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=key)
    assert all(mx.abs(value).max() > 0 for value in one_row.values())


@pytest.mark.parametrize("name", ISOLATED)
def test_these_models_are_found_to_keep_documents_apart(make_shape: Callable[..., Any], name: str) -> None:
    assert keeps_apart(make_shape(name)) is True


def test_a_state_space_is_found_out(make_shape: Callable[..., Any]) -> None:
    assert keeps_apart(make_shape("mamba")) is False


class MeanOfSeen(nn.Module):
    """Each position gets the mean of what it sees; `places` are learned positions under a name that nobody knows."""

    layers = (None,)

    def __init__(self, positions: bool):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCAB, 16), nn.Embedding(64, 16) if positions else lambda _: 0

    def __call__(self, tokens_BT: mx.array, cache: Any = None) -> mx.array:
        T = tokens_BT.shape[1]
        seen_BTT = cache[0].make_mask(T, return_array=True)[:, 0] if cache else mx.tri(T, dtype=mx.bool_)[None]
        return self.tokens.as_linear(seen_BTT / seen_BTT.sum(-1, keepdims=True) @ (self.tokens(tokens_BT) + self.places(mx.arange(T))))


@pytest.mark.parametrize("positions", [False, True])
def test_learned_positions_that_do_not_start_again_are_found_out(positions: bool) -> None:
    mx.random.seed(0)
    assert keeps_apart(MeanOfSeen(positions)) is not positions


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounding_in_bf16_is_not_taken_for_a_leak(make_shape: Callable[..., Any], name: str, seed: int) -> None:
    model = make_shape(name, seed)
    model.set_dtype(mx.bfloat16)
    assert keeps_apart(model) is True


def test_a_quantised_table_of_positions_starts_again_too(make_shape: Callable[..., Any]) -> None:
    model = make_shape("gpt2")
    nn.quantize(model, group_size=32, bits=8)
    assert isinstance(model.model.wpe, nn.QuantizedEmbedding)
    assert keeps_apart(model) is True


def test_positions_count_from_each_documents_beginning(make_shape: Callable[..., Any]) -> None:
    """A table that holds nothing past position 8 but not-a-number: the longest of the documents has 9 tokens, the row 21."""
    model = make_shape("gpt2")
    model.model.wpe.weight[9:] = mx.nan
    tokens = mx.array(np.concatenate(documents())[None])
    segments = mx.array([[1] * 9 + [2] * 7 + [3] * 5])
    assert mx.isfinite(forward(model, tokens, segments)).all().item()
    assert not mx.isfinite(forward(model, tokens, None)).all().item()


@pytest.mark.parametrize("fails", [False, True])
def test_the_table_of_positions_is_back_in_its_place_afterwards(make_shape: Callable[..., Any], batch: MakeBatch, fails: bool) -> None:
    """Also after an error, here from segments that are not as long as the tokens. Sums over weights are taken in their order."""
    model = make_shape("gpt2")
    table, before = model.model.wpe, flat(model.parameters())
    if fails:
        with pytest.raises(ValueError):
            forward(model, mx.zeros((1, 24), mx.int32), mx.ones((1, 20), mx.int32))
    else:
        nn.value_and_grad(model, lambda rows: causal_lm(model, rows)[0])(batch(documents(), True))
    after = flat(model.parameters())
    assert model.model.wpe is table
    assert list(after) == list(before)
    assert all(mx.array_equal(after[key], before[key]).item() for key in before)
    model.freeze()
    forward(model, mx.zeros((1, 4), mx.int32), mx.array([[1, 1, 2, 2]]))
    assert flat(model.trainable_parameters()) == {}


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mamba"])
@pytest.mark.parametrize("training", [True, False])
def test_asking_leaves_the_mode_as_it_was(make_shape: Callable[..., Any], name: str, training: bool) -> None:
    model = make_shape(name)
    model.train(training)
    keeps_apart(model)
    assert model.training is training
