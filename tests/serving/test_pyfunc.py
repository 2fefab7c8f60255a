"""Requests through the saved and loaded pyfunc, parsed by MLflow's own scoring server."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pandas
import pytest
from mlflow.exceptions import MlflowException

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
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}
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
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


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
    ({"prompt": ""}, "`prompt`: String should have at least 1 character, got ''"),
    ({"prompt": 3}, "`prompt`: Input should be a valid string, got 3"),
    ({"prompt": "a", "max_tokens": -3}, "`max_tokens`: Input should be greater than or equal to 1, got -3"),
    ({"prompt": "a", "temperature": -0.5}, "`temperature`: Input should be greater than or equal to 0, got -0.5"),
    ({"prompt": "a", "top_p": 0}, "`top_p`: Input should be greater than 0, got 0.0"),
    ({"prompt": "a", "seed": -1}, "`seed`: Input should be greater than or equal to 0, got -1"),
    ({"prompt": "a", "temprature": 1}, "unknown key `temprature`, did you mean `temperature`?"),
    ({"prompt": "a", "max_completion_tokens": 1}, "unknown key `max_completion_tokens`, did you mean `max_tokens`?"),
    ({"prompt": "a", "stream": True}, "`stream`: this route can't stream, leave it out"),
    ({"prompt": "a", "n": 2}, "`n`: one choice a request, got 2: send the request again for another"),
    ({"prompt": "a", "stop": [""]}, "`stop.0`: String should have at least 1 character, got ''"),
    ({"prompt": "a", **CHAT}, "send `prompt` or `messages`, not both"),
    ({"prompt": None}, "send `prompt` or `messages`"),
    ({"messages": []}, "`messages`: List should have at least 1 item, got []"),
    ({"messages": "hi"}, "`messages`: Input should be a valid list, got 'hi'"),
    ({"messages": [{"role": "usr", "content": "hi"}]}, "`messages.0.role`: Input should be 'system', 'user' or 'assistant', got 'usr'"),
    ({"messages": [{"role": "user"}]}, "`messages.0.content` is missing"),
    ({"messages": [{"role": "user", "content": "a", "contnt": "b"}]}, "unknown key `messages.0.contnt`, did you mean `content`?"),
    ({"inputs": {"prompt": ["a"], "top_k": [1, 2]}}, "`top_k` has 2 values, but `prompt` has 1: send one for each row"),
    ({"inputs": 3}, "the input has to be an object with `prompt` or `messages`, got int"),
    (
        {"prompt": "z" * 63},
        "the prompt has 64 tokens, but the model's context holds 64, prompt and completion together: shorten the prompt",
    ),
]


@pytest.mark.parametrize(("body", "sentence"), BAD, ids=[sentence[:40] for _, sentence in BAD])
def test_bad_request(invoke, body, sentence) -> None:
    with pytest.raises(MlflowException) as raised:
        invoke(body)
    assert raised.value.get_http_status_code() == 400
    sent = json.loads(raised.value.serialize_as_json())
    assert sent["message"] == sentence
    assert "stack_trace" not in sent


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
