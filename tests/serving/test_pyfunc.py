"""Requests through the saved and loaded pyfunc, parsed by MLflow's own scoring server."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas
import pytest
from mlflow.exceptions import MlflowException

from forge.serving.pyfunc import ForgeModel

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def text_of(answer: dict) -> str:
    return answer["choices"][0]["text"]


def test_chat(invoke, tokenizer) -> None:
    answer = invoke({**CHAT, "max_tokens": 5, "temperature": 0})
    prompt = len(tokenizer.encode(RENDERED, add_special_tokens=False))
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "tiny-chat"
    usage = {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}
    assert answer["usage"].items() >= usage.items()
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"


def test_chat_is_the_template_around_the_messages(invoke) -> None:
    """The hand-rendered text as a prompt differs from the chat by its BOS alone, so a model that ignores neither tells them apart."""
    chat = invoke({**CHAT, "max_tokens": 5, "temperature": 0})
    text = invoke({"prompt": RENDERED, "max_tokens": 5, "temperature": 0})
    assert text["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"] + 1


def test_completion(invoke, tokenizer) -> None:
    """The prompt is the tokens BOS, "the" and " cat"."""
    answer = invoke({"prompt": "the cat", "max_tokens": 4, "temperature": 0, "model": "mine"})
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the cat")) == ["<|endoftext|>", "the", "Ġcat"]
    assert (answer["object"], answer["model"]) == ("text_completion", "mine")
    assert answer["usage"].items() >= {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}.items()


@pytest.mark.parametrize(
    "data",
    [
        {"inputs": {"prompt": ["the cat", "a dog"]}},
        {"inputs": ["the cat", "a dog"]},
        {"instances": [{"prompt": "the cat"}, {"prompt": "a dog"}]},
        {"dataframe_split": {"columns": ["prompt"], "data": [["the cat"], ["a dog"]]}},
        {"dataframe_records": [{"prompt": "the cat"}, {"prompt": "a dog"}]},
    ],
    ids=lambda data: next(iter(data)),
)
def test_mlflow_forms(invoke, data) -> None:
    """A row gives what the same prompt and seed give alone."""
    params = {"max_tokens": 6, "seed": 7, "stop": ["zz"]}
    expected = [text_of(invoke({"prompt": prompt, **params})) for prompt in ("the cat", "a dog")]
    assert [text_of(each) for each in invoke({**data, "params": params})["predictions"]] == expected
    assert expected[0] != expected[1]


def test_eight_threads(invoke) -> None:
    """Each thread gets the text that its seed gives a single caller."""
    bodies = [{**CHAT, "max_tokens": 12, "seed": seed} for seed in range(4)] * 4
    expected = [invoke(body)["choices"] for body in bodies[:4]] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(invoke, bodies))
    assert [answer["choices"] for answer in answers] == expected
    assert expected[0] != expected[1]
    assert len({answer["id"] for answer in answers}) == 16


def test_rows_with_their_own_settings(invoke) -> None:
    records = [{"prompt": "the cat", "max_tokens": 2}, {"prompt": "the cat", "max_tokens": 5}]
    rows = invoke({"dataframe_records": records, "params": {"temperature": 0}})
    assert [row["usage"]["completion_tokens"] for row in rows["predictions"]] == [2, 5]


def test_direct_calls(model) -> None:
    greedy = {"max_tokens": 4, "temperature": 0.0}
    one = text_of(model.predict({"prompt": "the cat", **greedy}))
    assert text_of(model.predict("the cat", params=greedy)) == one
    assert [text_of(row) for row in model.predict(pandas.DataFrame({"prompt": ["the cat"]}), params=greedy)] == [one]


def test_stop_and_null(invoke) -> None:
    whole = text_of(invoke({"prompt": "the cat", "seed": 1, "max_tokens": 30}))
    stop = whole[6:10]
    answer = invoke({"prompt": "the cat", "seed": 1, "max_tokens": 30, "stop": [stop], "top_p": None, "model": None})
    assert text_of(answer) == whole[: whole.find(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"


BAD = [
    ({"prompt": ""}, "`prompt`: "),
    ({"prompt": "a", "max_tokens": -3}, "`max_tokens`: Input should be greater than or equal to 0, got -3"),
    ({"prompt": "a", "temperature": -0.5}, "`temperature`: Input should be greater than or equal to 0, got -0.5"),
    ({"prompt": "a", "frequency_penalty": 3.0}, "`frequency_penalty`: Input should be less than or equal to 2, got 3.0"),
    ({"prompt": "a", "temprature": 1}, "unknown key `temprature`, did you mean `temperature`?"),
    ({"prompt": "a", "stream": True}, "`stream`: this route can't stream, leave it out"),
    ({"prompt": "a", "logprobs": "many"}, "`logprobs`: "),
    ({"prompt": "a", **CHAT}, "send `prompt` or `messages`, not both"),
    ({"prompt": None}, "send `prompt` or `messages`"),
    ({"messages": []}, "`messages`: List should have at least 1 item"),
    ({"messages": [{"role": "user", "content": "a", "contnt": "b"}]}, "unknown key `messages.0.contnt`, did you mean `content`?"),
    ({"inputs": {"prompt": ["a"], "top_k": [1, 2]}}, "`top_k` has 2 values, but `prompt` has 1: send one for each row"),
    ({"inputs": 3}, "the input has to be an object with `prompt` or `messages`, got int"),
    (
        {"prompt": "z" * 63},
        "the prompt has 64 tokens, but the model's context holds 64, prompt and completion together: shorten the prompt",
    ),
    ({"prompt": [1, 10**6]}, "token id 1000000 is not in this model's vocabulary"),
    ({"inputs": {"prompt": ["the cat", "z" * 63]}}, "the prompt has 64 tokens"),
]


@pytest.mark.parametrize(("body", "sentence"), BAD, ids=[sentence[:40] for _, sentence in BAD])
def test_bad_request(invoke, body, sentence) -> None:
    """The beginning of the sentence; the rest is the protocol's, or there is none."""
    with pytest.raises(MlflowException) as raised:
        invoke(body)
    assert raised.value.get_http_status_code() == 400
    sent = json.loads(raised.value.serialize_as_json())
    assert sent["message"].startswith(sentence)
    assert "\n" not in sent["message"]
    assert "stack_trace" not in sent


def test_a_request_out_of_time_stops(make_folder, tmp_path, monkeypatch) -> None:
    """MLflow's server has answered 504 by then. The thread is free for others, those of its rows included."""
    thread = ForgeModel()
    folder = make_folder(tmp_path, None, context=10**9, endless=True)
    thread.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0.3")
    with pytest.raises(MlflowException, match="time limit") as raised:
        thread.predict(None, [{"prompt": "the cat", "max_tokens": 10**9}] * 3)
    assert raised.value.get_http_status_code() == 503
    monkeypatch.delenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT")
    assert thread.predict(None, {"prompt": "the cat", "max_tokens": 2})["usage"]["completion_tokens"] == 2
    assert thread.thread.stats().active == 0
    thread.thread.close()


def test_requests_that_come_together_are_computed_together(make_folder, tmp_path) -> None:
    thread = ForgeModel()
    folder = make_folder(tmp_path, None, context=10**9, endless=True)
    thread.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(thread.predict, None, {"prompt": "the cat", "max_tokens": 400, "seed": seed}) for seed in range(4)]
        most = 0
        while not all(answer.done() for answer in answers):
            most = max(most, thread.thread.stats().active)
            time.sleep(0.001)
    assert most == 4
    assert len({text_of(answer.result()) for answer in answers}) == 4
    thread.thread.close()


def test_logprobs_and_choices(invoke) -> None:
    answer = invoke({"prompt": "the cat", "logprobs": 2, "echo": True, "max_tokens": 1, "n": 2, "temperature": 0})
    assert [len(choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]] == [4, 4]
    assert answer["choices"][0]["logprobs"]["token_logprobs"][0] is None
    chat = invoke({**CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 3})
    assert len(chat["choices"][0]["logprobs"]["content"]) <= 3


def test_penalties_are_parameters(invoke) -> None:
    """Below the least logit, a token that was there comes no more."""
    rows = {"inputs": {"prompt": ["the cat"]}, "params": {"temperature": 0, "max_tokens": 10, "frequency_penalty": 2.0}}
    plain = invoke({**rows, "params": {"temperature": 0, "max_tokens": 10}})
    assert text_of(invoke(rows)["predictions"][0]) != text_of(plain["predictions"][0])


@pytest.mark.parametrize(("name", "value"), [("max_tokens", "many"), ("temperature", "hot"), ("stop", "x")])
def test_parameter_of_a_wrong_type(invoke, name, value) -> None:
    """MLflow's own check comes first: its sentence, but a 400 that names the key and has no stack trace."""
    with pytest.raises(MlflowException, match=name) as raised:
        invoke({"prompt": "a", name: value})
    assert raised.value.get_http_status_code() == 400
    assert "stack_trace" not in json.loads(raised.value.serialize_as_json())


def test_no_pickle(saved: Path, model) -> None:
    """The fixtures run with MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false, so that loading alone would have failed."""
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert not [path.name for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".bin", ".joblib"}]
    pickled = [path.name for path in files if path.read_bytes()[:1] == b"\x80"]  # the PROTO opcode, with which each pickle begins
    assert not pickled
    assert "python_model" not in mlflow.models.Model.load(str(saved)).flavors["python_function"]
