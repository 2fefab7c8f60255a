"""Bodies: what they ask for, and one sentence for each mistake in them."""

import json
import random
import string
from typing import Any

import pytest

from forge.errors import ServingError
from forge.serving.contract import Sampling
from forge.serving.prompt import Chat
from forge.serving.protocol import parse

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}}


# ---- what a body asks for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, {}),
        ({"max_tokens": 3, "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1}, {"temperature": 0.0}),
        ({"repetition_penalty": 1.1, "presence_penalty": -2, "frequency_penalty": 2}, {}),
        ({"seed": 2**63 - 1, "stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"max_tokens": None, "stop": None, "seed": None, "n": None, "user": None}, "defaults"),
        ({"max_tokens": 5, "max_completion_tokens": 3}, {"max_tokens": 3, "max_completion_tokens": ...}),
        ({"user": "me", "metadata": {"a": 1}, "store": True, "service_tier": "auto", "logit_bias": {}}, "defaults"),
    ],
)
@pytest.mark.parametrize("what", [{"prompt": "a"}, CHAT], ids=["completion", "chat"])
def test_sampling_is_as_the_body_says(what: dict[str, Any], body: dict[str, Any], expected: Any) -> None:
    wanted = {} if expected == "defaults" else {key: value for key, value in (body | expected).items() if value is not ...}
    assert parse({**what, **body}).sampling == Sampling(**wanted)


@pytest.mark.parametrize(
    ("body", "logprobs"),
    [
        ({**CHAT, "logprobs": True, "top_logprobs": 3}, 3),
        ({**CHAT, "logprobs": True}, 0),
        ({**CHAT, "logprobs": False}, None),
        ({"prompt": "a", "logprobs": 1}, 1),
        ({"prompt": "a", "logprobs": 0}, 0),
        ({"prompt": "a"}, None),
    ],
)
def test_log_probabilities_are_asked_for_in_two_ways(body: dict[str, Any], logprobs: int | None) -> None:
    assert parse(body).sampling.logprobs == logprobs


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ([1, 2],)), ([[1, 2], [3]], ([1, 2], [3])), (["a", [1]], ("a", [1]))],
)
def test_a_completion_may_have_several_prompts(prompt: Any, prompts: Any) -> None:
    request = parse({"prompt": prompt}, "completion")
    assert request.prompts == prompts and not request.is_chat


def test_choices_are_jobs_with_seeds_that_follow() -> None:
    jobs = parse({"prompt": ["a", "b"], "n": 2, "seed": 2**63 - 1}).jobs
    assert [(prompt, sampling.seed) for prompt, sampling in jobs] == [("a", 2**63 - 1), ("a", 0), ("b", 2**63 - 1), ("b", 0)]
    assert [sampling.seed for _, sampling in parse({**CHAT, "n": 2}).jobs] == [None, None]


def test_a_chat_is_what_the_template_will_see() -> None:
    body = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "hi", "name": "Eve"},
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "x", "content": "1"},
        ],
        "tools": [TOOL],
        "reasoning_effort": "none",
        "chat_template_kwargs": {"date_string": "today"},
    }
    (chat,) = parse(body, "chat", "instruct").prompts
    assert isinstance(chat, Chat)
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "tool"]
    assert chat.messages[0]["content"] == "Be brief." and chat.messages[1]["name"] == "Eve" and "content" not in chat.messages[2]
    assert chat.tools == (TOOL,) and chat.mode == "instruct" and chat.continues is None
    assert chat.variables == {"reasoning_effort": "none", "enable_thinking": False, "date_string": "today"}


def test_no_tools_may_be_called_where_none_is_the_choice() -> None:
    request = parse({**CHAT, "tools": [TOOL], "tool_choice": "none"})
    assert request.tools == () == request.prompts[0].tools  # type: ignore[union-attr]


# ---- what is wrong with a body ----------------------------------------------------------------------------------------------


def chat(**message: Any) -> dict[str, Any]:
    return {"messages": [message]}


def prompt(**more: Any) -> dict[str, Any]:
    return {"prompt": "a", **more}


DEEP: Any = []
for _ in range(9999):
    DEEP = [DEEP]

WRONG: list[tuple[Any, str]] = [
    ([], "the body has to be a JSON object with `prompt` or `messages`, got list"),
    ({}, "send `prompt` or `messages`"),
    ({"prompt": "a", **CHAT}, "send `prompt` or `messages`, not both"),
    ({"prompt": ""}, "`prompt`: an empty prompt holds nothing to go on from"),
    ({"prompt": []}, "`prompt`: 1 to 256 prompts a request, got 0"),
    ({"prompt": [[]]}, "`prompt`: an empty prompt holds nothing to go on from"),
    ({"prompt": ["a"] * 257}, "`prompt`: 1 to 256 prompts a request, got 257"),
    ({"prompt": ["a"] * 200, "n": 2}, "`n`: 200 prompts with 2 choices each are more than 256 texts: send several requests"),
    ({"prompt": 3}, "`prompt`: text, token ids, or a list of either has to be sent, got 3"),
    ({"prompt": {"a": 1}}, "`prompt`: text, token ids, or a list of either has to be sent, got {'a': 1}"),
    ({"prompt": [1, True]}, "`prompt`: a token id is a whole number from 0 to 2147483647, got True"),
    ({"prompt": [1, -1]}, "`prompt`: a token id is a whole number from 0 to 2147483647, got -1"),
    ({"prompt": [[1], [2**31]]}, "`prompt`: a token id is a whole number from 0 to 2147483647, got 2147483648"),
    ({"prompt": [1, None]}, "`prompt`: a token id is a whole number from 0 to 2147483647, got None"),
    ({"prompt": ["a", 1]}, "`prompt`: a prompt is a text or a list of token ids, got 1"),
    ({"prompt": "a\ud800"}, "`prompt`: it holds half of a UTF-16 pair (\\ud800 to \\udfff), which is no text"),
    (prompt(max_tokens=-3), "`max_tokens`: Input should be greater than or equal to 0, got -3"),
    (prompt(max_tokens=0), "`max_tokens`: 0 goes with `echo`: true only, else there is nothing to answer"),
    (prompt(max_tokens=2**31), "`max_tokens`: Input should be less than 2147483648, got 2147483648"),
    (prompt(max_tokens=10**30), "`max_tokens`: a whole number of more than 64 bits"),
    (prompt(max_tokens=2.5), "`max_tokens`: Input should be a valid integer, got 2.5"),
    (prompt(max_tokens=True), "`max_tokens`: Input should be a valid integer, got True"),
    (prompt(max_tokens="3"), "`max_tokens`: Input should be a valid integer, got '3'"),
    (prompt(temperature=float("nan")), "`temperature`: a number has to be finite, got nan"),
    (prompt(temperature=float("inf")), "`temperature`: a number has to be finite, got inf"),
    (prompt(temperature=-0.5), "`temperature`: Input should be greater than or equal to 0, got -0.5"),
    (prompt(top_p=0), "`top_p`: Input should be greater than 0, got 0"),
    (prompt(presence_penalty=3), "`presence_penalty`: Input should be less than or equal to 2, got 3"),
    (prompt(seed=-1), "`seed`: Input should be greater than or equal to 0, got -1"),
    (prompt(n=0), "`n`: Input should be greater than or equal to 1, got 0"),
    (prompt(n=17), "`n`: Input should be less than or equal to 16, got 17"),
    (prompt(stop=[""]), "`stop.0`: String should have at least 1 character, got ''"),
    (prompt(stop=["x"] * 17), "`stop`: List should have at most 16 items, got ['x', 'x', 'x', 'x', 'x', 'x', ...]"),
    (prompt(stop=3), "`stop`: Input should be a valid list, got 3"),
    (prompt(logprobs=True), "`logprobs`: Input should be a valid integer, got True"),
    (prompt(logprobs=21), "`logprobs`: Input should be less than or equal to 20, got 21"),
    (prompt(suffix="b"), "`suffix`: text can't be filled in before a suffix here, leave it out"),
    (prompt(best_of=2), "`best_of`: choices aren't ranked here, send `n` for several, got 2"),
    (prompt(echo=True, stream=True), "`echo` can't be streamed: leave out one of the two"),
    (prompt(logit_bias={"5": 1}), "`logit_bias`: logits can't be changed here, leave it out"),
    (prompt(temprature=1), "unknown key `temprature`, did you mean `temperature`?"),
    (prompt(tools=[TOOL]), "`tools` goes with `messages` only"),
    (prompt(stream_options={"include_usag": True}), "unknown key `stream_options.include_usag`, did you mean `include_usage`?"),
    (prompt(user=DEEP), "`user.0.0.0.0.0.0.0.0.0.0.0.....0.0.0.0.0.0.0.0.0.0.0.0.0.0`: nested deeper than 64 levels"),
    ({**CHAT, "echo": True}, "`echo` goes with `prompt` only"),
    ({**CHAT, "logprobs": 2}, "`logprobs`: Input should be a valid boolean, got 2"),
    ({**CHAT, "top_logprobs": 2}, "`top_logprobs` goes with `logprobs`: true"),
    ({**CHAT, "tool_choice": "required"}, "`tool_choice`: a call can't be forced, 'auto' and 'none' are what can be asked for"),
    ({**CHAT, "response_format": {"type": "json_object"}}, '`response_format`: only {"type": "text"} can be kept to'),
    ({**CHAT, "modalities": ["text", "audio"]}, "`modalities`: this server answers with text"),
    ({**CHAT, "functions": [{"name": "f"}]}, "`functions`: send them as `tools`"),
    ({**CHAT, "tools": [{"type": "function"}]}, "`tools.0.function` is missing"),
    ({**CHAT, "tools": [{"type": "web"}]}, "`tools.0.type`: Input should be 'function', got 'web'"),
    (
        {**CHAT, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        "`chat_template_kwargs`: `chat_template` is not for the template to be told",
    ),
    ({**CHAT, "continue_final_message": True}, "`continue_final_message`: the last message is not the assistant's, its role is 'user'"),
    ({"messages": []}, "`messages`: List should have at least 1 item, got []"),
    ({"messages": "hi"}, "`messages`: Input should be a valid list, got 'hi'"),
    ({"messages": [3]}, "`messages.0`: Input should be an object, got 3"),
    (chat(role="usr", content="a"), "`messages.0.role`: Input should be 'system', 'developer', 'user', 'assistant' or 'tool', got 'usr'"),
    (chat(role="user"), "`messages.0.content` is missing"),
    (chat(role="user", content=None), "`messages.0.content` is missing"),
    (chat(role="user", content=3), "`messages.0.content`: Input should be a valid string, got 3"),
    (chat(role="user", content=[]), "`messages.0.content`: at least one part has to be in the list"),
    (chat(role="user", content=["a"]), '`messages.0.content`: part 0 has to be {"type": "text", "text": …}'),
    (
        chat(role="user", content=[{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "a"}}]),
        "`messages.0.content`: part 1 is of type 'image_url': this model takes text only",
    ),
    (chat(role="user", content="a", contnt="b"), "unknown key `messages.0.contnt`, did you mean `content`?"),
    (
        chat(role="user", content="a", tool_calls=[{"function": {"name": "f"}}]),
        "`messages.0`: only the assistant calls tools, not the role user",
    ),
    (chat(role="assistant", tool_calls=[{"function": {}}]), "`messages.0.tool_calls.0.function.name` is missing"),
]


@pytest.mark.parametrize(("body", "sentence"), WRONG, ids=[sentence[:60] for _, sentence in WRONG])
def test_a_mistake_is_one_sentence(body: Any, sentence: str) -> None:
    with pytest.raises(ServingError) as raised:
        parse(body)
    assert str(raised.value).startswith(sentence) and "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def test_a_base_model_takes_no_messages() -> None:
    with pytest.raises(ServingError, match="is served as a base model"):
        parse(CHAT, "chat", "base")
    assert parse({"prompt": "a"}, "completion", "base").prompts == ("a",)


@pytest.mark.parametrize(
    ("body", "route", "words"),
    [
        ({"prompt": "a"}, "chat", "`prompt`: this route takes `messages`"),
        (CHAT, "completion", "`messages`: this route takes `prompt`"),
        ({}, "chat", "`messages` is missing"),
        ({}, "completion", "`prompt` is missing"),
    ],
)
def test_a_route_takes_its_own_bodies(body: Any, route: Any, words: str) -> None:
    with pytest.raises(ServingError, match=words):
        parse(body, route)


def test_a_long_value_is_shown_short() -> None:
    with pytest.raises(ServingError) as raised:
        parse({"prompt": "a", "seed": "x" * 10**6, "y" * 10**6: 1})
    assert len(str(raised.value)) < 900


@pytest.mark.parametrize("seed", range(6))
def test_any_body_is_parsed_or_refused_with_one_sentence(seed: int) -> None:
    """Bodies that are nearly right, with values of any kind planted in them."""
    random_ = random.Random(seed)
    keys = [*parse_keys(), "messages", "prompt", "functions", "suffix", "zz\n", ""]
    parsed = 0
    for _ in range(1500):
        body: Any = json.loads(
            json.dumps(random_.choice([CHAT, {"prompt": "a"}, {**CHAT, "tools": [TOOL]}, {"prompt": [[1]], "echo": True}]))
        )
        for _ in range(random_.randint(0, 3)):
            plant(random_, body, random_.choice(keys))
        try:
            parsed += parse(body, random_.choice([None, None, "chat", "completion"])) is not None
        except ServingError as error:
            assert str(error) and str(error).isprintable() and len(str(error)) < 3000
    assert parsed > 100


def parse_keys() -> list[str]:
    from forge.serving.body import ChatBody, CompletionBody

    return sorted({*ChatBody.model_fields, *CompletionBody.model_fields})


def plant(random_: random.Random, body: dict[str, Any], key: str) -> None:
    """At the top, or inside of a message."""
    place: Any = body
    if random_.random() < 0.5 and isinstance(body.get("messages"), list) and body["messages"] and isinstance(body["messages"][0], dict):
        place, key = body["messages"][0], random_.choice(["role", "content", "name", "tool_calls", "reasoning_content", key])
    place[key] = anything(random_)


def anything(random_: random.Random, depth: int = 0) -> Any:
    scalars = [
        None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**40, -(10**400), 0.5, -0.0, 1e308, float("nan"), float("-inf"),
        "", "a", "user", "tool", "none", "\ud800", "\x00", "{}", "é" * 99, "".join(random_.choices(string.printable, k=9)),
    ]  # fmt: skip
    kind = random_.random() if depth < 3 else 0
    if kind < 0.6:
        return random_.choice(scalars)
    inner = [anything(random_, depth + 1) for _ in range(random_.randint(0, 3))]
    names = [random_.choice(["type", "text", "function", "name", "arguments", "include_usage", "id", "x"]) for _ in inner]
    return inner if kind < 0.8 else dict(zip(names, inner, strict=True))
