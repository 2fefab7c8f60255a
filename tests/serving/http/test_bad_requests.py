"""What a client can do wrong, each answered by a 4xx with one sentence in OpenAI's form: no 500, no stack trace, no hang."""

import json
import time
from typing import Any

import pytest

from tests.serving.http.conftest import until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def say(**body: Any) -> bytes:
    return json.dumps({"prompt": "hi", "max_tokens": 2} | body).encode()


def talk(**body: Any) -> bytes:
    return json.dumps({"messages": HI, "max_tokens": 2} | body).encode()


def deep(levels: int) -> bytes:
    return b'{"prompt": ' + b"[" * levels + b"]" * levels + b"}"


# status, route, body, a word of the sentence
BAD = {
    "an empty body": (400, TEXT, b"", "JSON"),
    "no JSON": (400, TEXT, b"prompt=hi", "JSON"),
    "half of an object": (400, TEXT, b'{"prompt": "hi"', "JSON"),
    "a comma too many": (400, TEXT, b'{"prompt": "hi",}', "JSON"),
    "fifty thousand mistakes": (400, CHAT, talk(messages=[{"rôle": n} for n in range(50_000)]), "role"),
    "two objects": (400, TEXT, b"{} {}", "JSON"),
    "NaN": (400, TEXT, b'{"prompt": "hi", "temperature": NaN}', "JSON"),
    "Infinity": (400, TEXT, b'{"prompt": "hi", "temperature": Infinity}', "JSON"),
    "a number beyond floats": (400, TEXT, b'{"prompt": "hi", "temperature": 1e999}', "temperature"),
    "a number of 5000 digits": (400, TEXT, b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}", "JSON"),
    "a byte that is no UTF-8": (400, TEXT, b'{"prompt": "\xff"}', "UTF-8"),
    "UTF-8 cut short": (400, TEXT, b'{"prompt": "\xe2\x82"}', "UTF-8"),
    "UTF-16": (400, TEXT, '{"prompt": "hi"}'.encode("utf-16"), "UTF-8"),
    "half of a surrogate pair": (400, TEXT, b'{"prompt": "\\ud800"}', "JSON"),
    "a byte order mark": (400, TEXT, b"\xef\xbb\xbf{}", "JSON"),
    "an array": (400, TEXT, b"[1]", "object"),
    "a text": (400, TEXT, b'"hi"', "object"),
    "null": (400, TEXT, b"null", "object"),
    "300 levels": (400, TEXT, deep(300), "deep"),
    "90,000 levels": (400, TEXT, deep(90_000), "deep"),
    "100 levels": (400, TEXT, deep(100), "prompt"),
    "objects in objects, never closed": (400, TEXT, b'{"a":' * 90_000, "deep"),
    "half a million lists": (400, TEXT, b"[" + b"[]," * 500_000 + b"1]", "brackets"),
    "no prompt": (400, TEXT, b"{}", "prompt"),
    "an empty prompt list": (400, TEXT, say(prompt=[]), "prompt"),
    "a prompt that is a number": (400, TEXT, say(prompt=3), "prompt"),
    "a prompt that is an object": (400, TEXT, say(prompt={"text": "hi"}), "prompt"),
    "text and token ids in one prompt": (400, TEXT, say(prompt=["hi", 3]), "prompt"),
    "negative token ids": (400, TEXT, say(prompt=[1, -5]), "prompt"),
    "token ids beyond the vocabulary": (400, TEXT, say(prompt=[1, 10**6]), "token"),
    "token ids beyond 64 bits": (400, TEXT, say(prompt=[1, 2**70]), "prompt"),
    "token ids with a fraction": (400, TEXT, say(prompt=[1.5]), "prompt"),
    "a prompt beyond the context": (400, TEXT, say(prompt="z" * 200), "context"),
    "ids beyond the context": (400, TEXT, say(prompt=[5] * 200), "context"),
    "a misspelt key": (400, TEXT, say(temprature=1), "temperature"),
    "an unknown key": (400, TEXT, say(colour="red"), "colour"),
    "messages to the completion route": (400, TEXT, b'{"messages": [{"role": "user", "content": "hi"}]}', "messages"),
    "a prompt to the chat route": (400, CHAT, say(), "prompt"),
    "no messages": (400, CHAT, b"{}", "messages"),
    "empty messages": (400, CHAT, talk(messages=[]), "messages"),
    "messages that are text": (400, CHAT, talk(messages="hi"), "messages"),
    "a message that is text": (400, CHAT, talk(messages=["hi"]), "messages"),
    "a message without a role": (400, CHAT, talk(messages=[{"content": "hi"}]), "role"),
    "a message without content": (400, CHAT, talk(messages=[{"role": "user"}]), "content"),
    "an unknown role": (400, CHAT, talk(messages=[{"role": "wizard", "content": "hi"}]), "role"),
    "content that is a number": (400, CHAT, talk(messages=[{"role": "user", "content": 3}]), "content"),
    "an image": (400, CHAT, talk(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "messages"),
    "a chat beyond the context": (400, CHAT, talk(messages=[{"role": "user", "content": "z" * 200}]), "context"),
    "negative max_tokens": (400, TEXT, say(max_tokens=-1), "max_tokens"),
    "max_tokens of nothing": (400, CHAT, talk(max_tokens=0), "max_tokens"),
    "max_tokens in text": (400, TEXT, say(max_tokens="5"), "max_tokens"),
    "max_tokens with a fraction": (400, TEXT, say(max_tokens=1.5), "max_tokens"),
    "a temperature below zero": (400, TEXT, say(temperature=-0.1), "temperature"),
    "a temperature above two": (400, TEXT, say(temperature=2.1), "temperature"),
    "a temperature that is true": (400, TEXT, say(temperature=True), "temperature"),
    "top_p above one": (400, TEXT, say(top_p=1.1), "top_p"),
    "top_k below zero": (400, TEXT, say(top_k=-1), "top_k"),
    "a repetition penalty of zero": (400, TEXT, say(repetition_penalty=0), "repetition_penalty"),
    "a seed below zero": (400, TEXT, say(seed=-1), "seed"),
    "a seed in text": (400, TEXT, say(seed="1"), "seed"),
    "n below one": (400, TEXT, say(n=0), "n"),
    "a million choices": (400, TEXT, say(n=10**6), "n"),
    "a stop that is a number": (400, TEXT, say(stop=3), "stop"),
    "an empty stop": (400, TEXT, say(stop=""), "stop"),
    "logprobs below zero": (400, TEXT, say(logprobs=-1), "logprobs"),
    "stream in text": (400, TEXT, say(stream="yes"), "stream"),
    "tools that are text": (400, CHAT, talk(tools="hammer"), "tools"),
    "a model that is a number": (400, TEXT, say(model=3), "model"),
    "an unknown model": (404, TEXT, say(model="big"), "tiny"),
    "a model that is a path": (404, TEXT, say(model="../../etc/passwd"), "tiny"),
    "an unknown route": (404, "/v1/chat", say(), "/v1/chat/completions"),
    "a route that climbs": (404, "/v1/models/../../etc/passwd", None, "tiny"),
    "loading where nothing may be": (403, "/v1/models/load", b'{"source": "/etc"}', "allow"),
    "loading without a source": (400, "/v1/models/load", b"{}", "source"),
    "loading with an unknown key": (400, "/v1/models/load", b'{"source": "x", "path": "y"}', "path"),
    "unloading an unknown model": (404, "/v1/models/unload", b'{"name": "big"}', "tiny"),
}


def complaint(status: int, answer: Any) -> str:
    """The sentence of an error in OpenAI's form."""
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    sentence = answer["error"]["message"]
    assert 400 <= status < 500 and 10 < len(sentence) < 600 and "\n" not in sentence
    assert "Traceback" not in sentence and ".py" not in sentence
    return sentence


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused_with_a_sentence(real, name) -> None:
    status, path, body, word = BAD[name]
    began = time.monotonic()
    found, _, answer = real.ask("GET" if body is None else "POST", path, body)
    assert found == status, answer
    assert word in complaint(found, answer)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("status", "method", "path", "headers", "word"),
    [
        (415, "POST", TEXT, {"Content_Type": "text/plain"}, "application/json"),
        (415, "POST", TEXT, {"Content_Type": "multipart/form-data; boundary=x"}, "application/json"),
        (415, "POST", TEXT, {"Content_Type": ""}, "application/json"),
        (415, "POST", TEXT, {"Content_Type": "application/json; charset=latin-1"}, "UTF-8"),
        (415, "POST", TEXT, {"Content_Encoding": "gzip"}, "Content-Encoding"),
        (403, "POST", TEXT, {"Host": "evil.example"}, "localhost"),
        (403, "POST", TEXT, {"Host": "127.evil.example"}, "localhost"),
        (405, "GET", TEXT, {}, "POST"),
        (405, "DELETE", "/v1/models", {}, "GET"),
        (405, "PUT", CHAT, {}, "POST"),
        (404, "POST", "/", {}, "/v1/completions"),
        (404, "GET", "/v1/" + "x" * 5000, {}, "/v1/models"),
    ],
)
def test_a_bad_request_line_or_header_is_refused_with_a_sentence(real, status, method, path, headers, word) -> None:
    found, told, answer = real.ask(method, path, say(), **headers)
    assert found == status, answer
    assert word in complaint(found, answer)
    assert (found != 405) or told["allow"]


def test_the_server_is_well_after_all_of_them(real) -> None:
    status, _, answer = real.ask("POST", TEXT, say())
    assert (status, answer["usage"]["completion_tokens"]) == (200, 2)
    until(lambda: real.service.models.find("tiny").engine.stats().active == 0, 1)
