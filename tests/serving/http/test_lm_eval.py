"""lm-evaluation-harness as a client: its `local-completions` gets from the server what the model gives in process."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

PAIRS = [
    ("the cat", " sat on the mat"),
    ("a dog ran over the hill", " and sat"),
    ("hi there, how is", " the cat?"),
    ("", "the hill is over there"),
    ("the hill", " is"),
    ("zzz", " zzz zzz"),
]


@pytest.fixture(scope="module")
def model(chat_folder: Path):
    return mlx_lm.load(str(chat_folder))


@pytest.fixture(params=[1, 4], ids=["one prompt a request", "four"])
def client(request, real, chat_folder: Path):
    with warnings.catch_warnings():  # its own
        warnings.simplefilter("ignore")
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        arguments = {"tokenizer_backend": "huggingface", "tokenizer": str(chat_folder), "batch_size": request.param, "max_retries": 1}
        yield LocalCompletionsAPI(base_url=f"{real.url}/completions", model="tiny", max_length=64, **arguments)


def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def score(model: Any, ids: list[int], begin: int) -> tuple[float, bool]:
    """Of the tokens from `begin` on: the sum of their log-softmax in one pass without a cache, and whether each is the argmax."""
    logits = model(mx.array([ids]))[0, :-1].astype(mx.float32)
    chosen = mx.array(ids[1:])
    each = mx.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
    return each[begin - 1 :].sum().item(), bool((logits.argmax(axis=-1) == chosen)[begin - 1 :].all().item())


def test_log_likelihoods_equal_those_in_process(client, model, tokenizer) -> None:
    found = client.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    for (context, continuation), (sum_found, greedy_found) in zip(PAIRS, found, strict=True):
        before = tokenizer.encode(context, add_special_tokens=False) or [client.prefix_token_id]
        ids = before + tokenizer.encode(continuation, add_special_tokens=False)
        expected, greedy = score(model[0], ids, len(before))
        assert sum_found == pytest.approx(expected, abs=1e-3)
        assert greedy_found == greedy


def test_what_the_model_says_itself_is_greedy(client, model, tokenizer) -> None:
    """The flag can be true: the argmax, taken five times over, is continued with."""
    ids = tokenizer.encode("the cat", add_special_tokens=False)
    prompt = len(ids)
    for _ in range(5):
        ids.append(mx.argmax(model[0](mx.array([ids]))[0, -1]).item())
    ((_, greedy),) = client._loglikelihood_tokens([(("", ""), ids[:prompt], ids[prompt:])])
    assert greedy


def test_rolling_log_likelihood_equals_that_in_process(client, model, tokenizer) -> None:
    text = "the cat sat on the mat, and a dog ran over the hill"
    (found,) = client.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]), disable_tqdm=True)
    ids = [client.prefix_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    assert found == pytest.approx(score(model[0], ids, 1)[0], abs=1e-3)


def test_greedy_text_equals_that_in_process(client, model, tokenizer) -> None:
    contexts = ["the cat", "a dog ran"]
    settings = {"until": ["never said"], "max_gen_toks": 8, "do_sample": False}
    found = client.generate_until(requests("generate_until", [(each, settings) for each in contexts]), disable_tqdm=True)
    for context, text in zip(contexts, found, strict=True):
        ids = tokenizer.encode(context, add_special_tokens=False)
        prompt = len(ids)
        while len(ids) < prompt + 8 and ids[-1] != tokenizer.eos_token_id:
            ids.append(mx.argmax(model[0](mx.array([ids]))[0, -1]).item())
        expected = tokenizer.decode(ids[prompt:], skip_special_tokens=True)
        assert text == expected
