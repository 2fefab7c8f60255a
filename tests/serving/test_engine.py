"""The generation thread by itself, on a base model without a chat template."""

import gc
import threading

import mlx.core as mx
import mlx_lm
import pytest

from forge.errors import ServingError
from forge.serving.engine import GenerationThread, Sampling

CONTEXT = 64


def complete(engine, prompt, **sampling):
    return engine.submit(prompt, Sampling(**sampling)).result(timeout=60)


def test_greedy_is_the_argmax_of_the_model(base_engine, base_folder) -> None:
    """Expected: the likeliest token of the whole text so far, again and again, without a cache. Equals the run with a cache."""
    model, tokenizer = mlx_lm.load(str(base_folder))
    ids = tokenizer.encode("the cat")
    prompt = len(ids)
    for _ in range(10):
        ids.append(mx.argmax(model(mx.array([ids]))[0, -1]).item())
    assert tokenizer.eos_token_id not in ids[prompt:]
    done = complete(base_engine, "the cat", temperature=0, max_tokens=10)
    assert done.text == tokenizer.decode(ids)[len(tokenizer.decode(ids[:prompt])) :]
    assert (done.prompt_tokens, done.completion_tokens, done.finish_reason) == (prompt, 10, "length")


@pytest.mark.parametrize("knob", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_narrowest_sampling_is_greedy(base_engine, knob) -> None:
    """Each of them at its limit leaves the likeliest token alone, whatever the seed."""
    greedy = complete(base_engine, "the cat", temperature=0, max_tokens=10).text
    assert complete(base_engine, "the cat", seed=5, max_tokens=10, **knob).text == greedy
    assert complete(base_engine, "the cat", seed=5, temperature=2, max_tokens=10).text != greedy


def test_repetition_penalty_forbids(base_engine, tokenizer) -> None:
    """An enormous penalty lets no token of the last 20 come again: 10 new tokens, all different, none from the prompt."""
    done = complete(base_engine, "the cat", temperature=0, max_tokens=10, repetition_penalty=1e6)
    pieces = tokenizer.encode(done.text, add_special_tokens=False)
    plain = complete(base_engine, "the cat", temperature=0, max_tokens=10)
    assert done.text != plain.text
    assert not set(pieces) & set(tokenizer.encode("the cat"))


def test_a_k_beyond_the_vocabulary_restricts_nothing(base_engine) -> None:
    free = complete(base_engine, "the cat", seed=3, max_tokens=10)
    assert complete(base_engine, "the cat", seed=3, max_tokens=10, top_k=10**6) == free


def test_seed(base_engine) -> None:
    first = complete(base_engine, "the cat", seed=1, temperature=2)
    assert complete(base_engine, "the cat", seed=1, temperature=2) == first
    assert complete(base_engine, "the cat", seed=2, temperature=2) != first


def test_no_seed_is_another_text_each_time(base_engine) -> None:
    """Also right after a seeded request, where going on with its random numbers would give the same text again.

    Two of eight may be equal by chance, short as some are; all eight are not.
    """
    texts = []
    for _ in range(8):
        complete(base_engine, "the cat", seed=1, temperature=2)
        texts.append(complete(base_engine, "the cat", temperature=2).text)
    assert len(set(texts)) > 1


def test_end_token(base_engine, tokenizer) -> None:
    """The end token is counted but not shown: a run that may be one token shorter has the same text and no end."""
    runs = ((seed, complete(base_engine, "the cat", seed=seed, temperature=2)) for seed in range(200))
    seed, ended = next((seed, run) for seed, run in runs if run.finish_reason == "stop" and run.completion_tokens > 3)
    assert tokenizer.eos_token not in ended.text
    shorter = complete(base_engine, "the cat", seed=seed, temperature=2, max_tokens=ended.completion_tokens - 1)
    assert (shorter.text, shorter.finish_reason) == (ended.text, "length")


def test_stop_string_across_tokens(base_engine) -> None:
    """From the same run without stop: a piece of its text that begins inside one token and ends inside another."""
    whole = complete(base_engine, "the cat", seed=1, max_tokens=30).text
    texts = [complete(base_engine, "the cat", seed=1, max_tokens=n).text for n in range(1, 31)]
    edge = next(len(text) for text in texts if len(text) > 8)  # a token ends here
    stop = whole[edge - 2 : edge + 2]
    at = whole.find(stop)
    done = complete(base_engine, "the cat", seed=1, max_tokens=30, stop=("never there", stop))
    assert (done.text, done.finish_reason) == (whole[:at], "stop")
    needed = next(n for n, text in enumerate(texts, start=1) if stop in text)
    assert done.completion_tokens == needed, "the tokens up to the one that completes the stop string"


def test_completion_is_cut_to_the_context(base_engine, tokenizer) -> None:
    done = complete(base_engine, "the cat", temperature=0, max_tokens=10**6)
    assert (done.prompt_tokens + done.completion_tokens, done.finish_reason) == (CONTEXT, "length")


def test_prompt_too_long(base_engine, tokenizer) -> None:
    """A z was never seen with another, so each is a token, after the BOS: 62 leave room for one token more, 63 for none."""
    assert len(tokenizer.encode("z" * 62)) == CONTEXT - 1
    assert complete(base_engine, "z" * 62, temperature=0).completion_tokens == 1
    with pytest.raises(ServingError, match=r"has 64 tokens, but the model's context holds 64.*shorten the prompt"):
        complete(base_engine, "z" * 63)


def test_chat_needs_a_template(base_engine) -> None:
    with pytest.raises(ServingError, match=r"no chat template.*`prompt`"):
        complete(base_engine, ({"role": "user", "content": "hi"},))


def test_threads_get_what_a_single_caller_gets(base_engine) -> None:
    expected = [complete(base_engine, "the cat", seed=seed, max_tokens=12) for seed in range(8)]
    got: list = [None] * 8
    barrier = threading.Barrier(8)

    def call(seed: int) -> None:
        barrier.wait()
        got[seed] = complete(base_engine, "the cat", seed=seed, max_tokens=12)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert got == expected
    assert len({done.text for done in got}) > 1


def test_time_limit(make_folder, tmp_path) -> None:
    """It ends a completion that would take hours, frees the thread, and leaves nothing behind that another thread can't destroy."""
    engine = GenerationThread(make_folder(tmp_path, None, context=10**9, endless=True))
    late = engine.submit("the cat", Sampling(max_tokens=10**9, temperature=0), timeout_s=0.3)
    with pytest.raises(ServingError, match=r"time limit.*max_tokens"):
        late.result(timeout=60)
    assert complete(engine, "the cat", max_tokens=1).completion_tokens == 1
    engine.close()
    del late
    gc.collect()


def test_close(base_folder) -> None:
    engine = GenerationThread(base_folder)
    queued = engine.submit("the cat", Sampling(max_tokens=3, temperature=0))
    engine.close()
    assert queued.result(timeout=60).completion_tokens == 3
    with pytest.raises(ServingError, match=r"closed"):
        engine.submit("the cat", Sampling())


def test_folder_without_a_model(tmp_path) -> None:
    with pytest.raises(ServingError, match=r"config\.json is missing"):
        GenerationThread(tmp_path)


def test_broken_model(tmp_path) -> None:
    """What mlx_lm raises in its thread reaches the caller."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(FileNotFoundError):
        GenerationThread(tmp_path)
