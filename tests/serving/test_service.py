"""The service on the calling thread, with tiny models of several architectures and a tokenizer that writes ids as words.

What a text should be comes from the model without a cache: the whole text so far, computed again for each token.
"""

import importlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import MODEL_REMAPPING

from forge.errors import ServingError
from forge.serving.contract import Completion, Piece, Sampling
from forge.serving.faults import Cancelled, ModelFailed, PromptTooLong, ShuttingDown, TimedOut
from forge.serving.line import Line, Request
from forge.serving.loading import Loaded, batches
from forge.serving.service import Service

VOCAB = 29
PIECE = 4
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCAB,
}
MAMBA = {"state_size": 4, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 2}
LFM = {"norm_eps": 1e-6, "conv_bias": False, "conv_L_cache": 3, "block_dim": 32, "block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0}
GPT = {"n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64, "layer_norm_epsilon": 1e-5, "vocab_size": VOCAB}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {**SIZES, "head_dim": 8, "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": True},
    "mistral": {**SIZES, "head_dim": 8, "max_position_embeddings": 64, "rope_theta": 1e6, "tie_word_embeddings": False},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 6, "sliding_window_pattern": 2},  # attention to 6 positions in two blocks
    "mamba": {**MAMBA, "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3},
    "lfm2": {**SIZES, **LFM, "block_auto_adjust_ff_dim": False, "max_position_embeddings": 64, "full_attn_idxs": [1]},
    "gpt2": GPT,
    "gpt_bigcode": {**GPT, "n_inner": 64, "num_key_value_heads": 1, "multi_query": True, "attention_bias": True, "mlp_bias": True},
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8], [2, 7, 1, 8], [1, 6, 1, 8, 0, 3, 3, 9, 8, 8, 7, 4, 9], [5, 7]]


class Words:
    """Token 7 is the word " 7"."""

    has_thinking = False

    def __len__(self) -> int:
        return VOCAB

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split()] if text != "a" else [0]

    def convert_ids_to_tokens(self, id: int) -> None:
        return None

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(f" {id}" for id in ids)


def make_model(name: str, seed: int = 0) -> Any:
    """Weights large enough for the likeliest token to change with the context."""
    from mlx.utils import tree_map

    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")
    args = module.ModelArgs.from_dict({"model_type": name, **SHAPES[name]})
    mx.random.seed(seed)
    model = module.Model(args)
    model.update(tree_map(lambda weight: weight + 0.3 * mx.random.normal(weight.shape), model.parameters()))
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> Any:
    return make_model(request.param)


@pytest.fixture(scope="module")
def mistral() -> Any:
    return make_model("mistral")


def loaded(model: Any, **changes: Any) -> Loaded:
    found = {"model": model, "tokenizer": Words(), "ends": frozenset(), "vocabulary": VOCAB, "context": None, "piece": PIECE}
    together = changes.pop("batches") if "batches" in changes else batches(model, VOCAB)
    return Loaded(**{**found, "batches": together, **changes})


class Told(list):
    """A listener that remembers."""

    def __init__(self, then: Any = None):
        super().__init__()
        self.then = then

    def __call__(self, event: Any) -> None:
        self.append(event)
        if self.then:
            self.then(event)


def ask(prompt: Any, listener: Any = None, deadline: float | None = None, **sampling: Any) -> Request:
    return Request(prompt, Sampling(**{"max_tokens": 9, "temperature": 0, "logprobs": 0} | sampling), deadline, listener)


def serve(what: Any, requests: list[Request], slots: int = 8, cache_gb: float = 1.0) -> Line:
    """Answers all of them and what their listeners put behind them."""
    line = Line()
    for request in (*requests, None):
        line.inbox.put(request)
    Service(what, line, slots, cache_gb).run()
    assert all(request.future.done() for request in requests)
    return line


def ids_of(request: Request) -> list[int]:
    return [token.id for token in request.future.result().tokens]


def greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(mx.argmax(model(mx.array([ids]))[0, -1]).item()))
    return ids[len(prompt) :]


def log_softmax(model: Any, ids: list[int]) -> np.ndarray:
    """(T, V), in double precision."""
    logits = np.array(model(mx.array([ids]))[0].astype(mx.float32)).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_together_as_alone(model) -> None:
    """Prompts of five lengths, three at a time, that join and leave at different tokens."""
    requests = [ask(prompt, max_tokens=most) for prompt, most in zip(PROMPTS, (12, 5, 20, 1, 9), strict=True)]
    serve(loaded(model), requests, slots=3)
    for request, prompt in zip(requests, PROMPTS, strict=True):
        ids = ids_of(request)
        assert ids == greedy(model, prompt, request.sampling.max_tokens)
        expected = log_softmax(model, prompt + ids)[len(prompt) - 1 : -1]
        scores = [token.logprob for token in request.future.result().tokens]
        assert scores == pytest.approx(expected[range(len(ids)), ids], abs=1e-4)


def test_a_request_joins_a_running_batch(model) -> None:
    line, late = Line(), [ask(PROMPTS[0]), ask(PROMPTS[4])]

    def then(event: Any) -> None:
        if len(told) == 7 and late:
            for request in late:
                line.inbox.put(request)
            line.inbox.put(None)

    told = Told(then)
    first = ask(PROMPTS[3], told, max_tokens=20)
    line.inbox.put(first)
    Service(loaded(model), line, 8, 0.0).run()
    for request, prompt in ((first, PROMPTS[3]), (late[0], PROMPTS[0]), (late[1], PROMPTS[4])):
        assert ids_of(request) == greedy(model, prompt, request.sampling.max_tokens)


def test_which_architectures_batch() -> None:
    """mlx-lm's GPT-BigCode takes the positions of a single row."""
    assert {name for name in SHAPES if batches(make_model(name), VOCAB)} == set(SHAPES) - {"gpt_bigcode"}


def test_an_architecture_that_batches_wrongly_is_found_out() -> None:
    """It takes the length of the padded cache for the row's."""
    from mlx_lm.models.cache import KVCache

    class Toy:
        def make_cache(self) -> list[Any]:
            return [KVCache()]

        def __call__(self, ids_BT: mx.array, cache: list[Any]) -> mx.array:
            nothing = mx.zeros((ids_BT.shape[0], 1, ids_BT.shape[1], 1))
            cache[0].update_and_fetch(nothing, nothing)
            return 9.0 * (mx.arange(VOCAB) == (ids_BT[..., None] + cache[0].size()) % VOCAB)

    assert not batches(Toy(), VOCAB)


def test_one_after_the_other_where_rows_can_not_be_computed_together(mistral) -> None:
    order, what = Told(), loaded(mistral, batches=False)
    assert Service(what, Line(), 8, 0.0).slots == 1
    requests = [ask(prompt, lambda event, n=n: order((n, event))) for n, prompt in enumerate(PROMPTS)]
    serve(what, requests)
    assert [n for n, _ in order] == sorted(n for n, _ in order)


def test_text_does_not_depend_on_the_neighbours(mistral) -> None:
    mine = {"prompt": PROMPTS[2], "temperature": 1.0, "top_p": 0.9, "seed": 11, "max_tokens": 15}
    alone, beside = ask(**mine), ask(**mine)
    serve(loaded(mistral), [alone])
    serve(loaded(mistral), [*(ask(prompt, temperature=2, seed=n, max_tokens=6) for n, prompt in enumerate(PROMPTS)), beside])
    assert ids_of(alone) == ids_of(beside) != greedy(mistral, PROMPTS[2], 15)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.7, "top_k": 5, "seed": 3, "repetition_penalty": 1.5, "presence_penalty": 1.0}])
def test_logprobs_are_the_models_own(mistral, sampling) -> None:
    """Against a log-softmax in double precision, whatever the sampling makes of it; beside a request that wants others and one that wants
    none."""
    request, other = ask(PROMPTS[0], logprobs=3, max_tokens=6, **sampling), ask(PROMPTS[2], logprobs=1)
    serve(loaded(mistral), [other, ask(PROMPTS[1], logprobs=None), request])
    done = request.future.result()
    expected = log_softmax(mistral, PROMPTS[0] + ids_of(request))[len(PROMPTS[0]) - 1 :]
    assert len(done.tokens) == 6
    for row, token in zip(expected, done.tokens, strict=False):
        best = np.argsort(-row)[:3]
        assert token.text == f" {token.id}"
        assert token.logprob == pytest.approx(row[token.id], abs=1e-4)
        assert [text for text, _ in token.top] == [f" {id}" for id in best]
        assert [value for _, value in token.top] == pytest.approx(row[best], abs=1e-4)
    assert all(len(token.top) == 1 and token.top[0][1] == token.logprob for token in other.future.result().tokens), "equal, to the bit"


@pytest.mark.parametrize("most", [0, 1])
def test_echo_scores_the_prompt(mistral, most) -> None:
    request = ask(PROMPTS[3], echo=True, logprobs=2, max_tokens=most)
    serve(loaded(mistral), [request, ask(PROMPTS[0])])
    done, expected = request.future.result(), log_softmax(mistral, PROMPTS[3])
    assert (done.completion_tokens, len(done.tokens), done.finish_reason) == (most, most, "length")
    assert [token.id for token in done.prompt] == PROMPTS[3]
    assert (done.prompt[0].logprob, done.prompt[0].top) == (None, ())
    for row, token in zip(expected, done.prompt[1:], strict=False):
        assert token.logprob == pytest.approx(row[token.id], abs=1e-4)
        assert [value for _, value in token.top] == pytest.approx(np.sort(row)[::-1][:2], abs=1e-4)


def test_echo_without_logprobs_costs_nothing(mistral) -> None:
    request = ask(PROMPTS[0], echo=True, logprobs=None, max_tokens=0)
    model = SimpleNamespace(layers=[])  # can't be called
    serve(loaded(model, batches=True), [request])
    assert [token.id for token in request.future.result().prompt] == PROMPTS[0]


def test_pieces_are_the_text(mistral) -> None:
    told = Told()
    request = ask(PROMPTS[0], told)
    serve(loaded(mistral), [request])
    *pieces, done = told
    assert done is request.future.result()
    assert "".join(piece.text for piece in pieces) == done.text
    assert sum((piece.tokens for piece in pieces), ()) == done.tokens
    assert len(pieces) == 9, "each as soon as its token"


def test_cancel_frees_the_slot_before_the_next_token(mistral) -> None:
    """The second waits for the only slot. The tokens that were counted are those that were told."""
    told = Told(lambda event: setattr(first, "cancelled", len(told) == 5))
    first, second = ask(PROMPTS[0], told, max_tokens=10**6), ask(PROMPTS[2], max_tokens=3)
    line = serve(loaded(mistral), [first, second], slots=1)
    with pytest.raises(Cancelled):
        first.future.result()
    assert [type(event) for event in told] == [Piece] * 5 + [Cancelled]
    assert ids_of(second) == greedy(mistral, PROMPTS[2], 3)
    assert (line.stats.completion_tokens, line.stats.active, line.stats.requests) == (8, 0, 2)


def test_a_deadline_ends_the_waiting_and_the_working(mistral) -> None:
    waiting = ask(PROMPTS[0], deadline=0.0)
    told = Told(lambda event: setattr(working, "deadline", 0.0 if len(told) == 3 else None))
    working = ask(PROMPTS[0], told, max_tokens=10**6)
    neighbour = ask(PROMPTS[2])
    serve(loaded(mistral), [working, waiting, neighbour])
    for late in (waiting, working):
        with pytest.raises(TimedOut):
            late.future.result()
    assert len(told) == 4
    assert ids_of(neighbour) == greedy(mistral, PROMPTS[2], 9)


def test_a_long_prompt_holds_nobody_up(mistral) -> None:
    """It is 10 pieces and a token, so its neighbour draws at least 9 tokens meanwhile. And it can be cancelled in between."""
    events, line = Told(), Line()
    long = ask([n % VOCAB for n in range(10 * PIECE + 1)], lambda event: events("long"))
    given_up = ask(list(reversed(long.prompt)), lambda event: events("given up"))

    def then(event: Any) -> None:
        events("short")
        if len(events) == 2:
            for request in (long, given_up, None):
                line.inbox.put(request)
        given_up.cancelled = given_up.cancelled or (events.count("long") > 0 and len(events) > 20)

    line.inbox.put(ask(PROMPTS[2], then, max_tokens=60))
    Service(loaded(mistral), line, 8, 0.0).run()
    assert events.index("long") - 2 >= 9
    assert ids_of(long) == greedy(mistral, long.prompt, 9)
    assert isinstance(given_up.future.exception(), Cancelled)
    assert "short" in events[events.index("given up") :]


def test_a_prompt_is_read_no_further_than_to_its_cancel(mistral) -> None:
    """That comes within its third piece."""
    request = ask(list(range(28)))

    class Cancelling(Counting):
        def __call__(self, ids_BT: mx.array, cache: Any = None) -> mx.array:
            request.cancelled = self.tokens >= 2 * PIECE
            return super().__call__(ids_BT, cache)

    counting = Cancelling(mistral)
    serve(loaded(counting, batches=True), [request])
    assert isinstance(request.future.exception(), Cancelled)
    assert counting.tokens == 3 * PIECE


def test_one_that_fails_leaves_its_neighbours_alone() -> None:
    """Token 7's embedding is not a number; a listener raises; a prompt is no prompt; one is too long."""
    model = make_model("mistral")
    model.model.embed_tokens.weight[7] = mx.nan

    def broken(event: Any) -> None:
        raise RuntimeError("the listener's own")

    bad = [ask([1, 7]), ask([1, 7], echo=True), ask(PROMPTS[0], broken), ask(f"1 {VOCAB}"), ask([]), ask([1] * 30)]
    good = [ask([3, 1, 4], max_tokens=5), ask([1, 5], max_tokens=5)]
    serve(loaded(model, context=30, batches=True), [good[0], *bad, good[1]])
    sound = make_model("mistral")
    assert [ids_of(each) for each in good] == [greedy(sound, each.prompt, 5) for each in good]
    errors = [each.future.exception() for each in bad]
    assert [type(error) for error in errors] == [ModelFailed, ModelFailed, RuntimeError, ServingError, ServingError, PromptTooLong]
    assert "not finite" in str(errors[0]) and "not finite" in str(errors[1])
    assert all(error.__traceback__ is None or not isinstance(error, ServingError) for error in errors)


def test_what_the_model_raises_ends_those_in_the_batch_and_no_others(mistral) -> None:
    calls = SimpleNamespace(number=0)

    class Failing:
        def make_cache(self) -> list[Any]:
            from mlx_lm.models.cache import KVCache

            return [KVCache() for _ in mistral.layers]

        def __call__(self, ids_BT: mx.array, cache: list[Any]) -> mx.array:
            calls.number += 1
            assert len(ids_BT) == 1, "the one that failed is gone"
            if calls.number == 6:
                raise RuntimeError("out of memory")
            return mistral(ids_BT, cache=cache)

    first, second = ask(PROMPTS[1], max_tokens=10), ask(PROMPTS[2], max_tokens=4)
    serve(loaded(Failing(), batches=True), [first, second], slots=1)
    with pytest.raises(ModelFailed, match="the model failed at a token: out of memory"):
        first.future.result()
    assert ids_of(second) == greedy(mistral, PROMPTS[2], 4)


def test_what_the_model_raises_at_a_prompt_is_the_models_failure(mistral) -> None:
    class Failing(Counting):
        def __call__(self, ids_BT: mx.array, cache: Any = None) -> mx.array:
            if ids_BT.size > 1:
                raise RuntimeError("out of memory")
            return super().__call__(ids_BT, cache)

    first, second = ask(PROMPTS[0]), ask(PROMPTS[1])
    serve(loaded(Failing(mistral), batches=True), [first, second])
    with pytest.raises(ModelFailed, match="the model failed at the prompt: out of memory"):
        first.future.result()
    assert ids_of(second) == greedy(mistral, PROMPTS[1], 9)


def test_prompts_that_are_taken_back_when_the_first_fails_are_not_encoded(mistral) -> None:
    """As those of one request that asks for several choices of too long a prompt."""
    encoded = []

    class Noting(Words):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            encoded.append(text)
            return super().encode(text)

    def take_back(event: Any) -> None:
        for request in requests:
            request.cancelled = True

    requests = [ask("3 " * 70, take_back) for _ in range(5)]
    serve(loaded(mistral, tokenizer=Noting(), context=64), requests)
    assert encoded.count("3 " * 70) == 1
    assert [type(each.future.exception()) for each in requests] == [PromptTooLong] + [Cancelled] * 4


def test_answers_without_a_token_keep_nobody_waiting(mistral) -> None:
    """One of them a step of the others."""
    order = Told()
    talking = ask(PROMPTS[0], lambda event: order("token" if isinstance(event, Piece) else "end"), max_tokens=12)
    echoes = [ask(PROMPTS[2], order, echo=True, logprobs=None, max_tokens=0) for _ in range(5)]
    serve(loaded(mistral), [talking, *echoes])
    places = [n for n, event in enumerate(order) if isinstance(event, Completion)]
    assert len(places) == 5 and all("token" in order[one:next] for one, next in pairwise(places[1:]))


def test_a_device_that_fails_at_the_end_leaves_nobody_waiting(mistral, monkeypatch) -> None:
    def synchronize() -> None:
        raise RuntimeError("the device is gone")

    line, request = Line(), ask(PROMPTS[0])
    request.listener = lambda event: line.stop.set()
    monkeypatch.setattr(mx, "synchronize", synchronize)
    line.inbox.put(request)
    with pytest.raises(RuntimeError, match="the device is gone"):
        Service(loaded(mistral), line, 2, 0.0).run()
    assert isinstance(request.future.exception(timeout=0), ShuttingDown)


def test_a_stop_fails_all_that_is_not_done(mistral) -> None:
    line = Line()
    requests = [ask(PROMPTS[0], lambda event: line.stop.set(), max_tokens=10**6), *(ask(prompt) for prompt in PROMPTS)]
    for request in requests:
        line.inbox.put(request)
    Service(loaded(mistral), line, 2, 1.0).run()
    assert all(isinstance(request.future.exception(), ShuttingDown) for request in requests)


class Counting:
    """A model that knows how many tokens it was given."""

    def __init__(self, model: Any):
        self.model, self.tokens = model, 0
        if hasattr(model, "make_cache"):
            self.make_cache = model.make_cache
        self.layers = model.layers

    def __call__(self, ids_BT: mx.array, cache: Any = None) -> mx.array:
        self.tokens += ids_BT.size
        return self.model(ids_BT, cache=cache)


def test_prefixes_that_come_again_are_not_read_again(model) -> None:
    """The first prompt's 11 tokens before the last are two pieces and three. The second shares 10 of them; the third goes on from it."""
    first = [*range(1, 12), 20]
    prompts = [first, [*first[:10], 25, 26, 27], [*first, 21, 22, 23, 24, 25], first]
    done: dict[float, list[Completion]] = {}
    fed: dict[float, int] = {}
    for cache_gb in (0.0, 1.0):
        counting, line = Counting(model), Line()
        service_of = loaded(counting, batches=False)
        requests = [ask(prompt, logprobs=2) for prompt in prompts]
        for request in (*requests, None):
            line.inbox.put(request)
        Service(service_of, line, 8, cache_gb).run()
        done[cache_gb] = [request.future.result() for request in requests]
        fed[cache_gb] = counting.tokens
        assert line.stats.cached_tokens == sum(each.cached_tokens for each in done[cache_gb])
    assert [each.cached_tokens for each in done[0.0]] == [0, 0, 0, 0]
    assert [each.cached_tokens for each in done[1.0]] == [0, 8, 8, 8]
    assert fed[0.0] - fed[1.0] == 24
    assert [each.tokens for each in done[1.0]] == [each.tokens for each in done[0.0]], "log-probabilities equal to the bit"


def test_no_step_for_nothing(mistral) -> None:
    """The model is given the prompt and each new token but the last."""
    counting = Counting(mistral)
    serve(loaded(counting, batches=True), [ask(PROMPTS[0], max_tokens=4)])
    assert counting.tokens == len(PROMPTS[0]) + 3


def test_thoughts_that_the_prompt_opened(mistral) -> None:
    """The template ends with the mark, which is token 5."""

    class Thinking(Words):
        has_thinking = has_chat_template = True
        think_start, think_end, chat_template = " 5", " 6", None

        def apply_chat_template(self, *_: Any, **__: Any) -> list[int]:
            return [1, 2, 5]

    told = Told()
    chat, text = ask(({"role": "user", "content": "1"},), told), ask([1, 2, 5])
    serve(loaded(mistral, tokenizer=Thinking()), [chat, text])
    assert [event.thinking for event in told] == [True] * 10
    assert not text.future.result().thinking


def test_stats_tell_who_works_and_who_waits(mistral) -> None:
    seen = []
    line = Line()
    requests = [ask(prompt, lambda event: seen.append(line.stats)) for prompt in PROMPTS]
    for request in (*requests, None):
        line.inbox.put(request)
    Service(loaded(mistral), line, 2, 1.0).run()
    assert {(stats.active, stats.queued) for stats in seen} >= {(2, 3)}
    end = line.stats
    assert (end.active, end.queued, end.requests) == (0, 0, 5)
    assert (end.prompt_tokens, end.completion_tokens) == (sum(map(len, PROMPTS)), 9 * 5)
    assert end.peak_memory_gib >= end.memory_gib > 0
    assert end.prompt_cache_gib > 0


def test_who_comes_when_nobody_serves_any_more_is_told_why() -> None:
    """Also who was queued between the service's last look and its end."""
    line, late = Line(), [ask(PROMPTS[0]), ask(PROMPTS[1])]
    for request in late:
        line.put(request)
    line.end(ShuttingDown("closed"))
    errors = [request.future.exception(timeout=0) for request in late]
    assert [(type(error), str(error)) for error in errors] == [(ShuttingDown, "closed")] * 2 and errors[0] is not errors[1]
    with pytest.raises(ShuttingDown, match="closed"):
        line.put(ask(PROMPTS[2]))
