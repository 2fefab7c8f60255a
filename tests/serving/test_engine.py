"""The generation thread by itself, on a base model without a chat template."""

import atexit
import gc
import json
import shutil
import threading
from concurrent.futures import Future

import mlx.core as mx
import mlx_lm
import pytest

from forge.errors import ServingError
from forge.serving import thread as threads
from forge.serving.contract import Sampling
from forge.serving.engine import GenerationThread
from forge.serving.faults import Cancelled, ModelFailed, PromptTooLong, ShuttingDown, TimedOut
from forge.serving.parts import Format
from forge.serving.service import Service
from tests.serving.http.conftest import until

CONTEXT = 64


def complete(engine, prompt, **sampling):
    return engine.submit(prompt, Sampling(**sampling)).result()


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
    assert any(complete(base_engine, "the cat", seed=seed, temperature=2, max_tokens=10).text != greedy for seed in range(5))


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
    with pytest.raises(TimedOut, match=r"time limit.*max_tokens"):
        late.result()
    assert complete(engine, "the cat", max_tokens=1).completion_tokens == 1
    engine.close()
    del late
    gc.collect()


def test_close(base_folder) -> None:
    engine = GenerationThread(base_folder)
    queued = engine.submit("the cat", Sampling(max_tokens=3, temperature=0))
    engine.close()
    assert queued.result().completion_tokens == 3
    with pytest.raises(ShuttingDown, match=r"closed"):
        engine.submit("the cat", Sampling())


def test_folder_without_a_model(tmp_path) -> None:
    with pytest.raises(ServingError, match=r"config\.json is missing"):
        GenerationThread(tmp_path)


@pytest.mark.parametrize(
    "config", ['{"model_type": "qwen3"}', '{"model_type": "martian"}', "{}", "{"], ids=["no weights", "unknown", "no type", "no JSON"]
)
def test_broken_model(tmp_path, config) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ServingError, match=r"^the model .* can't be loaded: .+"):
        GenerationThread(tmp_path)


def test_equals_mlx_lm(base_engine, base_folder) -> None:
    model, tokenizer = mlx_lm.load(str(base_folder))
    ids = tokenizer.encode("a dog ran")
    expected = [response.token for response in mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=30)]
    done = complete(base_engine, "a dog ran", temperature=0, max_tokens=30, logprobs=0)
    assert [token.id for token in done.tokens] == expected


def test_token_ids_are_a_prompt(base_engine, tokenizer) -> None:
    sampling = {"temperature": 0, "max_tokens": 8}
    assert complete(base_engine, tokenizer.encode("the cat"), **sampling) == complete(base_engine, "the cat", **sampling)


def test_streamed_text_never_shows_what_a_stop_string_takes_back(base_engine) -> None:
    whole = complete(base_engine, "the cat", seed=1, max_tokens=30).text
    for start in range(2, 12):
        pieces: list = []
        stop = whole[start : start + 4]
        sampling = Sampling(seed=1, max_tokens=30, stop=("never there", stop), logprobs=0)
        done = base_engine.submit("the cat", sampling, listener=pieces.append).result()
        assert done.text == whole[: whole.find(stop)]
        assert pieces.pop() == done
        assert "".join(piece.text for piece in pieces) == done.text
        assert sum((piece.tokens for piece in pieces), ()) == done.tokens
        *before, last = (token.text for token in done.tokens)
        assert len("".join(before)) < len(done.text) <= len("".join(before) + last), "no token from the stop string on"


def test_the_end_token_has_a_score_but_no_text(base_engine, tokenizer) -> None:
    runs = (complete(base_engine, "the cat", seed=seed, temperature=2, logprobs=1) for seed in range(200))
    ended = next(run for run in runs if run.finish_reason == "stop")
    assert (ended.tokens[-1].id, ended.tokens[-1].text) == (tokenizer.eos_token_id, tokenizer.eos_token)
    assert len(ended.tokens) == ended.completion_tokens
    assert "".join(token.text for token in ended.tokens[:-1]) == ended.text


def test_cancel(make_folder, tmp_path) -> None:
    """Its slot is free at once: the next request has an answer long before the first would have ended."""
    engine = GenerationThread(make_folder(tmp_path, None, context=10**9, endless=True), slots=1)
    heard = threading.Event()
    endless = engine.submit("the cat", Sampling(max_tokens=10**9), listener=lambda event: heard.set())
    assert heard.wait(60)
    queued = engine.submit("the cat", Sampling(max_tokens=3, temperature=0))
    assert not queued.done()
    endless.cancel()
    assert queued.result().completion_tokens == 3
    with pytest.raises(Cancelled):
        endless.result()
    endless.cancel()
    queued.cancel()
    assert queued.result().completion_tokens == 3, "an answer that is there stays"
    engine.close()


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_adapter(base_folder, tmp_path, dora) -> None:
    """Against mlx_lm with the same adapter, whose factors are large enough to change the text."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    knobs = {"rank": 2, "scale": 4.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
    model, tokenizer = mlx_lm.load(str(base_folder))
    model.freeze()
    linear_to_lora_layers(model, 2, knobs, use_dora=dora)
    factors = {name: mx.random.normal(value.shape) for name, value in tree_flatten(model.trainable_parameters())}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), factors)
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2, "lora_parameters": knobs}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    engine = GenerationThread(base_folder, adapter=tmp_path)
    model, _ = mlx_lm.load(str(base_folder), adapter_path=str(tmp_path))
    expected = [r.token for r in mlx_lm.stream_generate(model, tokenizer, tokenizer.encode("the cat"), max_tokens=12)]
    done = complete(engine, "the cat", temperature=0, max_tokens=12, logprobs=0)
    engine.close()
    assert [token.id for token in done.tokens] == expected
    plain, _ = mlx_lm.load(str(base_folder))
    assert expected != [r.token for r in mlx_lm.stream_generate(plain, tokenizer, tokenizer.encode("the cat"), max_tokens=12)]


def test_adapter_that_is_none_or_another_models(base_folder, tmp_path) -> None:
    with pytest.raises(ServingError, match=r"no adapter in .*adapter_config\.json and adapters\.safetensors missing"):
        GenerationThread(base_folder, adapter=tmp_path)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {"model.layers.0.mlp.up_proj.lora_a": mx.zeros((3, 3))})
    parameters = {"rank": 2, "scale": 1.0, "dropout": 0.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"num_layers": 2, "lora_parameters": parameters}))
    with pytest.raises(ServingError, match=r"^the model .* with the adapter .* can't be loaded: .*lora_a"):
        GenerationThread(base_folder, adapter=tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_folder(base_folder, tmp_path, bits) -> None:
    """What the packed weights give, computed in fp32 on a CPU."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(base_folder)
    model, config = quantize_model(model, config, 32, bits)
    save_model(tmp_path, model)
    save_config(config, tmp_path / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_folder / name, tmp_path / name)
    packed, tokenizer = mlx_lm.load(str(tmp_path))
    ids = tokenizer.encode("the cat")
    engine = GenerationThread(tmp_path)
    done = complete(engine, ids, temperature=0, max_tokens=12, logprobs=0)
    engine.close()
    expected = [r.token for r in mlx_lm.stream_generate(packed, tokenizer, ids, max_tokens=12)]
    assert [token.id for token in done.tokens] == expected


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="a GPU multiplies packed weights fast")
def test_weights_on_a_cpu_are_fp32_where_there_is_room(make_folder, tmp_path, monkeypatch) -> None:
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    from forge.serving import loading

    folder = make_folder(tmp_path, None)
    model, config = load_model(folder)
    model.set_dtype(mx.bfloat16)
    model, config = quantize_model(model, config, 32, 4)
    save_model(folder, model)
    save_config(config, folder / "config.json")

    def types() -> set:
        return {array.dtype for _, array in tree_flatten(loading.load(folder, None).model.parameters())}

    assert types() == {mx.float32}
    weights = sum(array.size for _, array in tree_flatten(load_model(make_folder(tmp_path / "wide", None))[0].parameters()))
    monkeypatch.setattr(loading, "_memory", lambda: 8.0 * weights - 1)
    assert types() == {mx.bfloat16, mx.uint32}


def test_the_model_is_freed(make_folder, tmp_path) -> None:
    """Also where a request failed and its exception is kept."""
    folder = make_folder(tmp_path, None)
    gc.collect()
    before = mx.get_active_memory()
    for close in (True, False):
        engine = GenerationThread(folder)
        refused = engine.submit("z" * 63, Sampling())
        with pytest.raises(PromptTooLong) as kept:
            refused.result()
        complete(engine, "the cat", max_tokens=3)
        assert mx.get_active_memory() > before + 20_000
        ended = engine._ended
        if close:
            engine.close()
        del engine
        gc.collect()
        assert ended.wait(60)
        assert mx.get_active_memory() < before + 100, f"{kept}: a random state of a few bytes stays"


def test_loading_again_and_again_leaves_no_thread_and_no_callback(base_folder) -> None:
    """One thread serves one model after the other; each would else be kept, parked, to the end of the process."""
    kept = []
    for _ in range(5):
        engine = GenerationThread(base_folder)
        assert complete(engine, "the cat", max_tokens=1).completion_tokens == 1
        engine.close()
        assert engine._ended.wait(60)
        kept.append((sum(each.name == "forge-generation" for each in threading.enumerate()), atexit._ncallbacks()))
    assert len(set(kept)) == 1


def test_an_interrupted_load_keeps_no_model(base_folder, monkeypatch) -> None:
    """Ctrl-C raises where the caller waits."""

    def interrupted(future: Future, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    gc.collect()
    before, running = mx.get_active_memory(), len(threads._running)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Future, "result", interrupted)
        GenerationThread(base_folder)
    until(lambda: len(threads._running) == running, 60)
    gc.collect()
    assert mx.get_active_memory() < before + 100


def test_a_bug_in_the_thread_is_told_to_all_who_ask(base_folder, monkeypatch, capfd) -> None:
    engine = GenerationThread(base_folder)
    assert not engine.failed
    with monkeypatch.context() as patch:
        patch.setattr(Service, "_drop", lambda self: 1 / 0)
        with pytest.raises(ModelFailed, match="a bug"):
            complete(engine, "the cat")
        assert engine._ended.wait(60)
    assert engine.failed
    with pytest.raises(ModelFailed, match="load it again"):
        engine.submit("the cat", Sampling())
    engine.close()
    assert "ZeroDivisionError" in capfd.readouterr().err
    again = GenerationThread(base_folder)
    assert not again.failed and complete(again, "the cat", max_tokens=1).completion_tokens == 1
    again.close()
    assert again._ended.wait(60) and not again.failed


def test_a_tokenizer_that_can_not_be_asked_is_told_and_keeps_nobody_waiting(base_folder, monkeypatch) -> None:
    monkeypatch.setattr(Format, "of", lambda tokenizer: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        GenerationThread(base_folder)
