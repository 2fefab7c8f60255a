"""Held-out questions and what is answered to them: which are asked, where prompt and reference lie, and how answers end."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge import data
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.templates import named
from forge.evaluation.answers import answered, answers, continuations, generate
from forge.models import Loaded
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import Batch, Conversation, Data, Document, Packing

END = 9
TOKENIZER = SimpleNamespace(eos_token_ids={END})


class Counting(nn.Module):
    """Says the number after the last one, up to 19 and from 0 again. Keeps no cache; remembers how many rows it saw at once."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def make_cache(self) -> list[Any]:
        return []

    def __call__(self, tokens_BT: mx.array, cache: Any = None) -> mx.array:
        self.rows.append(tokens_BT.shape[0])
        return mx.equal(mx.arange(20), ((tokens_BT + 1) % 20)[..., None]).astype(mx.float32)


# ---- generating --------------------------------------------------------------------------------------------------------


def test_answers_end_before_the_end_token_or_at_their_limit() -> None:
    prompts, most = [[3, 5], [12], [8], [1, 2, 3], [7]], [8, 4, 8, 2, 2]
    expected = [((6, 7, 8), True), ((13, 14, 15, 16), False), ((), True), ((4, 5), False), ((8,), True)]
    model = Counting()
    assert generate(model, TOKENIZER, prompts, most) == expected
    assert max(model.rows) > 1
    assert [generate(model, TOKENIZER, [prompt], [limit])[0] for prompt, limit in zip(prompts, most, strict=True)] == expected


def test_so_many_stand_together_as_memory_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge.evaluation.answers._POSITIONS", 24)
    model = Counting()
    generate(model, TOKENIZER, [[12]] * 7, [5] * 7)  # 6 positions each
    assert max(model.rows) == 4
    model = Counting()
    assert generate(model, TOKENIZER, [[12] * 30, [3]], [2, 2]) == [((13, 14), False), ((4, 5), False)]  # one alone is more
    assert max(model.rows) == 1


@pytest.mark.parametrize("positions", [2**14, 1])
def test_what_is_enough_goes_no_further(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    monkeypatch.setattr("forge.evaluation.answers._POSITIONS", positions)  # 1: one by one
    found = generate(Counting(), TOKENIZER, [[10], [11], [12]], [6] * 3, lambda n, tokens: n != 1 and len(tokens) == n + 1)
    assert [tokens for tokens, _ in found] == [(11,), (12, 13, 14, 15, 16, 17), (13, 14, 15)]


def test_modules_get_their_own_mode_back() -> None:
    model = Counting()
    model.inner = nn.Dropout()
    model.inner.eval()
    generate(model, TOKENIZER, [[1]], [1])
    assert model.training and not model.inner.training


def test_an_answer_ends_where_the_context_does(make_tiny_model: Callable[..., Loaded]) -> None:
    loaded = make_tiny_model()
    short = replace(loaded, config={**loaded.config, "max_position_embeddings": 6})
    ids = loaded.tokenizer.encode("abcdefgh")
    found = answered(short, [ids[:4], ids[:6], ids[:7]], 5)
    assert [len(tokens) for _, tokens, _ in found] == [2, 0, 0] and found[1] == ("", (), False)


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "phi3", "gpt2", "mamba", "mixtral"])
def test_together_they_say_what_each_says_alone(make_shape: Callable[..., Any], name: str) -> None:
    model, draw = make_shape(name), np.random.default_rng(0)
    prompts = [draw.integers(29, size=size).tolist() for size in (1, 3, 12, 7, 7, 2, 9, 4, 11)]
    alone = [generate(model, TOKENIZER, [prompt], [10])[0] for prompt in prompts]
    assert generate(model, TOKENIZER, prompts, [10] * 9) == alone
    assert len({tokens for tokens, _ in alone}) > 2


def test_a_cache_that_can_not_stand_in_a_batch_is_asked_one_by_one(make_shape: Callable[..., Any]) -> None:
    from mlx_lm.models.cache import ConcatenateKVCache, KVCache

    assert not hasattr(ConcatenateKVCache, "merge") and hasattr(KVCache, "merge")
    prompts = [[3, 4, 5], [6, 7], [8]]
    expected = generate(make_shape("qwen3"), TOKENIZER, prompts, [6] * 3)
    model = make_shape("qwen3")
    object.__setattr__(model, "make_cache", lambda: [ConcatenateKVCache() for _ in model.layers])
    assert generate(model, TOKENIZER, prompts, [6] * 3) == expected


# ---- asking ------------------------------------------------------------------------------------------------------------


def batch(*rows: Sequence[Sequence[tuple[int, bool]]], names: Sequence[str]) -> Batch:
    """Rows of segments of (token, target)."""
    width = max(sum(map(len, row)) for row in rows)
    tokens, mask, segments = (
        np.zeros((len(rows), width), np.int32),
        np.zeros((len(rows), width), bool),
        np.zeros((len(rows), width), np.int32),
    )
    for line, row in enumerate(rows):
        at = 0
        for number, segment in enumerate(row, start=1):
            for token, target in segment:
                tokens[line, at], mask[line, at], segments[line, at] = token, target, number
                at += 1
    return Batch(tokens, mask, segments, tuple(names))


def said(ids: Sequence[int], targets: Sequence[int]) -> list[tuple[int, bool]]:
    return [(token, place in targets) for place, token in enumerate(ids)]


def test_prompt_and_reference_are_those_of_the_last_turn(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    """One row of two conversations, the first of two turns; plain text; one whose question is cut away; an answer that is cut short."""
    loaded = make_tiny_model()
    end, decode = loaded.tokenizer.eos_token_id, loaded.tokenizer.decode
    two_turns = said([70, 71, 80, end, 72, 73, 81, 82, end, 74], {2, 3, 6, 7, 8})
    one_turn = said([75, 76, 77, 83, end], {3, 4})
    plain = said([90, 91, 92, 93], {1, 2, 3})
    headless = said([84, 85, 86, end], {1, 2, 3})
    cut = said([70, 71, 72, 87, 88], {3, 4})
    packed = batch([two_turns, one_turn], [plain, headless, cut], names=["a[0:10], b[0:5]", "c[0:4], d[9:13], e[0:5]"])
    found = answers(loaded, replace(toy_data, valid_full={"s": (packed,)}), 9, 4)
    by_document = {each.document: each for each in found}
    assert by_document.keys() == {"a", "b"}
    assert (by_document["a"].prompt, by_document["a"].reference) == (decode([70, 71, 80, end, 72, 73]), decode([81, 82]))
    assert (by_document["b"].prompt, by_document["b"].reference) == (decode([75, 76, 77]), decode([83]))
    expected = generate(loaded.model, loaded.tokenizer, [[75, 76, 77]], [4])[0]
    assert (by_document["b"].tokens, by_document["b"].ended) == expected and by_document["b"].text == decode(list(expected[0]))

    (only,) = answers(loaded, replace(toy_data, valid_full={"s": (batch([cut], names=["e[0:5]"]),)}), 9, 4)
    assert only.reference == decode([87, 88])  # where no answer of a source has an end token, a template writes none


def test_plain_text_is_gone_on_with_and_is_no_question(make_tiny_model: Callable[..., Loaded], toy_data: Data) -> None:
    loaded = make_tiny_model()
    assert answers(loaded, toy_data, 3, 4) == []
    long, short = list(range(60, 130)), list(range(60, 66))
    rows = batch([said(long, set(range(1, 70)))], [said(short, set(range(1, 6)))], names=["l[0:70]", "s[0:6]"])
    found = {each.document: each for each in continuations(loaded, replace(toy_data, valid_full={"s": (rows,)}), 5, 4)}
    decode = loaded.tokenizer.decode
    assert (found["l"].prompt, found["l"].reference) == (decode(long[:32]), decode(long[32:36]))
    assert (found["s"].prompt, found["s"].reference) == (decode(short[:3]), decode(short[3:]))
    assert not found["l"].question and len(found["l"].tokens) <= 4


@pytest.fixture
def conversations(make_tiny_model: Callable[..., Loaded], tmp_path: Path) -> Callable[..., tuple[Loaded, Data]]:
    """(packed, rows) -> a model, and 40 conversations beside plain text, in batches of so many rows."""

    def make(packed: bool, rows: int) -> tuple[Loaded, Data]:
        loaded = make_tiny_model()
        talk = [
            Conversation(
                f"t/{n}",
                ({"role": "user", "content": f"say {n}" + "!" * (n % 7)}, {"role": "assistant", "content": f"it is {n}"}),
                "made up",
            )
            for n in range(40)
        ]
        plain = [Document(f"p/{n}", f"text {n} of many words", "made up") for n in range(20)]
        spec = DataSpec({"talk": SourceSpec({}), "plain": SourceSpec({})}, sequence_length=96, valid_fraction=0.5, split_seed=0)
        sources: dict[str, Any] = {"talk": lambda: talk, "plain": lambda: plain}
        cache = Cache(tmp_path / "cache", 1.0)
        corpus = data.read(spec, sources, {}, cache)
        encoder = Encoder(loaded.tokenizer, named("simple"))
        packing = Packing(packed, "a test")
        return loaded, data.build(corpus, spec, EvaluationSpec(max_tokens=500), encoder, cache, rows, seed=0, packing=packing)

    return make


def test_the_same_questions_are_asked_however_rows_are_packed(conversations: Callable[..., tuple[Loaded, Data]]) -> None:
    loaded, packed = conversations(True, 3)
    found = answers(loaded, packed, 6, 5)
    assert found == answers(*conversations(False, 2), 6, 5)
    assert len(found) == 6 and {each.source for each in found} == {"talk"}
    assert found[:4] == answers(loaded, packed, 4, 5)  # fewer are the first of more
    assert sorted(each.document for each in found) != [each.document for each in found]  # not by name
    for each in found:
        n = int(each.document.removeprefix("t/"))
        assert each.reference == f"it is {n}" and each.prompt.endswith(f"say {n}{'!' * (n % 7)}\n<|assistant|>\n")
