"""Answers, whole and streamed, read by the unchanged `openai` client: a transport in place of the network, and canned completions."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from forge.serving.contract import Completion, Piece, Token
from forge.serving.parts import Format
from forge.serving.protocol import Chunks, Request, answer, parse
from tests.serving.families import template, tokenizer

HI = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"messages": HI}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}}
WRITTEN = '<think>\nCall it.\n</think>\n\nLet me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


def done(text: str, reason: Any = "stop", **more: Any) -> Completion:
    return Completion(text, 7, 5, reason, **more)


def client(engine: Callable[[Request], list[Completion]], format: Format | None = None, cut: int = 3) -> openai.OpenAI:
    """Of a server whose engine is a function. Streams come `cut` characters at a time, the choices in turn."""

    def serve(sent: httpx2.Request) -> httpx2.Response:
        request = parse(json.loads(sent.content), "chat" if sent.url.path.endswith("/chat/completions") else "completion")
        completions = engine(request)
        if not request.stream:
            return httpx2.Response(200, json=answer(request, completions, "tiny", format))
        events = "".join(f"data: {json.dumps(each)}\n\n" for each in streamed(request, completions, format, cut))
        return httpx2.Response(200, text=f"{events}data: [DONE]\n\n", headers={"content-type": "text/event-stream"})

    return openai.OpenAI(api_key="none", base_url="http://test/v1", http_client=httpx2.Client(transport=httpx2.MockTransport(serve)))


def streamed(request: Request, completions: list[Completion], format: Format | None, cut: int) -> Iterator[dict[str, Any]]:
    chunks = Chunks(request, "tiny", format)
    for at in range(0, max(len(each.text) for each in completions), cut):
        for index, each in enumerate(completions):
            if each.text[at : at + cut]:
                yield from chunks.add(index, Piece(each.text[at : at + cut], each.tokens[at // cut : at // cut + 1]))
    for index, each in enumerate(completions):
        yield from chunks.end(index, each)


@pytest.fixture
def qwen() -> Format:
    return Format.of(tokenizer("qwen3", template("qwen3")))


def test_the_client_reads_a_chat(qwen: Format) -> None:
    with client(lambda request: [done("Hello.", cached_tokens=4), done("Hi", "length")], qwen) as openai_:
        read = openai_.chat.completions.create(model="mine", messages=[{"role": "user", "content": "hi"}], n=2, seed=1, user="me")
    ChatCompletion.model_validate(read.model_dump(exclude_unset=True), strict=True)
    assert [(c.index, c.message.content, c.finish_reason) for c in read.choices] == [(0, "Hello.", "stop"), (1, "Hi", "length")]
    assert read.choices[0].message.role == "assistant" and read.choices[0].message.tool_calls is None
    assert (read.model, read.object, read.id[:9]) == ("mine", "chat.completion", "chatcmpl-")
    assert read.usage and read.usage.prompt_tokens_details
    counted = (read.usage.prompt_tokens, read.usage.completion_tokens, read.usage.total_tokens)
    assert counted == (7, 10, 17) and read.usage.prompt_tokens_details.cached_tokens == 4  # one prompt, two choices


def test_the_client_reads_calls_and_thoughts_and_sends_them_back(qwen: Format) -> None:
    with client(lambda request: [done(WRITTEN)], qwen) as openai_:
        read = openai_.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], tools=[TOOL])  # type: ignore[list-item]
        (choice,) = read.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
        assert choice.message.reasoning_content == "Call it."  # type: ignore[attr-defined]
        (call,) = choice.message.tool_calls or []
        assert call.type == "function" and (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bern"})
        back = [*HI, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "clear"}]
        openai_.chat.completions.create(model="m", messages=back, tools=[TOOL])  # type: ignore[arg-type, list-item]
        openai_.chat.completions.create(model="m", messages=[*HI, choice.message.model_dump(), back[-1]])  # type: ignore[list-item]


def test_without_tools_a_call_is_text_and_a_call_cut_short_is_no_call(qwen: Format) -> None:
    (choice,) = answer(parse(CHAT), [done(WRITTEN)], "m", qwen)["choices"]
    assert "<tool_call>" in choice["message"]["content"] and choice["finish_reason"] == "stop"
    (choice,) = answer(parse({**CHAT, "tools": [TOOL]}), [done(WRITTEN[:-3], "length")], "m", qwen)["choices"]
    assert choice["message"]["content"].endswith("</tool_ca") and choice["finish_reason"] == "length"
    (choice,) = answer(parse({**CHAT, "tools": [TOOL]}), [done(WRITTEN + "And", "length")], "m", qwen)["choices"]
    assert len(choice["message"]["tool_calls"]) == 1 and choice["finish_reason"] == "length"
    (choice,) = answer(parse({**CHAT, "tools": [TOOL]}), [done(WRITTEN[WRITTEN.index("<tool") :])], "m", qwen)["choices"]
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 999])
@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_says_what_the_whole_answer_says(qwen: Format, cut: int, usage: bool) -> None:
    texts = [WRITTEN, "Hello.\n\n", "<think>Hm", ""]
    completions = [done(text, reason) for text, reason in zip(texts, ("stop", "stop", "length", "stop"), strict=True)]
    with client(lambda request: completions, qwen, cut) as openai_:
        options: Any = {"stream_options": {"include_usage": True}} if usage else {}
        asked: Any = {"model": "m", "messages": HI, "tools": [TOOL], "n": 4}
        chunks = list(openai_.chat.completions.create(**asked, stream=True, **options))
        whole = openai_.chat.completions.create(**asked)
    assert len({(chunk.id, chunk.created, chunk.object, chunk.model) for chunk in chunks}) == 1
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)
    assert [chunk.usage for chunk in chunks if chunk.usage] == ([whole.usage] if usage else [])
    assert all(len(chunk.choices) == 1 for chunk in chunks[: -1 if usage else None])
    for n, choice in enumerate(whole.choices):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == n]
        assert mine[0].delta.role == "assistant" and all(each.delta.role is None for each in mine[1:])
        assert [each.finish_reason for each in mine] == [None] * (len(mine) - 1) + [choice.finish_reason]
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        thoughts = "".join(getattr(each.delta, "reasoning_content", None) or "" for each in mine)
        assert thoughts == getattr(choice.message, "reasoning_content", "")
        calls = [call.function for each in mine for call in each.delta.tool_calls or []]
        assert [call and call.arguments for call in calls] == [call.function.arguments for call in choice.message.tool_calls or []]  # type: ignore[union-attr]


def test_an_answer_that_begins_inside_a_thought(qwen: Format) -> None:
    whole, request = done("Easy.\n</think>\n\nParis.", thinking=True), parse(CHAT)
    (choice,) = answer(request, [whole], "m", qwen)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Paris.", "reasoning_content": "Easy."}
    chunks = Chunks(request, "m", qwen)
    told = [*chunks.add(0, Piece(whole.text, thinking=True)), *chunks.end(0, whole)]
    deltas = [each["choices"][0]["delta"] for each in told]
    assert deltas == [{"role": "assistant", "content": ""}, {"reasoning_content": "Easy."}, {"content": "Paris."}, {}]


SCORED = (Token(1, "Pa", -0.5, (("Pa", -0.5), ("Lo", -2.0))), Token(2, "ris", -0.25, (("ris", -0.25), ("ris", -3.0))))


def test_the_client_reads_log_probabilities_of_a_chat_whole_and_streamed() -> None:
    with client(lambda request: [done("Paris", tokens=SCORED)], cut=3) as openai_:
        asked: Any = {"model": "m", "messages": HI, "logprobs": True, "top_logprobs": 2}
        (choice,) = openai_.chat.completions.create(**asked).choices
        assert choice.logprobs and choice.logprobs.content
        first = choice.logprobs.content[0]
        assert (first.token, first.logprob, first.bytes, [top.token for top in first.top_logprobs]) == ("Pa", -0.5, [80, 97], ["Pa", "Lo"])
        chunks = list(openai_.chat.completions.create(**asked, stream=True))
    told = [token for chunk in chunks if (logprobs := chunk.choices[0].logprobs) for token in logprobs.content or []]
    assert told == choice.logprobs.content


def test_tokens_whose_text_is_held_back_are_told_with_the_next_text(qwen: Format) -> None:
    chunks = Chunks(parse({**CHAT, "logprobs": True}), "m", qwen)
    assert [each["choices"][0]["logprobs"] for each in chunks.add(0, Piece("<thi", SCORED[:1]))] == [None]  # the role alone
    (told,) = chunks.add(0, Piece("ck", SCORED[1:]))
    assert [token["token"] for token in told["choices"][0]["logprobs"]["content"]] == ["Pa", "ris"]
    (held,) = [chunks.add(0, Piece("<", (Token(3, "<", -1.0),)))]
    rest, last = chunks.end(0, done("<thick<"))
    assert held == [] and rest["choices"][0]["logprobs"]["content"][0]["token"] == "<" and last["choices"][0]["logprobs"] is None


def test_the_client_reads_a_completion_with_its_prompt_and_log_probabilities() -> None:
    """As lm-eval asks for scores: token ids, the prompt said again, its first token without a score. <s> isn't in the text sent."""
    echoed = (Token(0, "<s>"), Token(5, "In ", -1.5, (("In ", -1.5),)))
    with client(lambda request: [done("Paris", tokens=SCORED, prompt=echoed)]) as openai_:
        asked: Any = {"model": "m", "logprobs": 1, "echo": True, "max_tokens": 2, "temperature": 0}
        (choice,) = openai_.completions.create(prompt="In ", **asked).choices
        read = openai_.completions.create(prompt=[0, 5], **asked)
    assert choice.text == "In Paris" and read.choices[0].text == "<s>In Paris"
    assert choice.logprobs
    assert choice.logprobs.tokens == ["<s>", "In ", "Pa", "ris"] and choice.logprobs.text_offset == [0, 0, 3, 5]
    assert choice.logprobs.token_logprobs == [None, -1.5, -0.5, -0.25]
    assert choice.logprobs.top_logprobs == [None, {"In ": -1.5}, {"Pa": -0.5, "Lo": -2.0}, {"ris": -0.25}]


def test_the_client_reads_a_stream_of_several_completions() -> None:
    texts = ["one two", "three\n", ""]
    with client(lambda request: [done(text) for text in texts]) as openai_:
        chunks = list(openai_.completions.create(model="m", prompt=["a", "b", "c"], stream=True, stream_options={"include_usage": True}))
    said = ["".join(chunk.choices[0].text for chunk in chunks if chunk.choices and chunk.choices[0].index == n) for n in range(3)]
    assert said == texts and chunks[-1].usage and chunks[-1].usage.prompt_tokens == 21 and chunks[-1].usage.completion_tokens == 15
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert ends.count("stop") == 3 and {chunk.object for chunk in chunks} == {"text_completion"}


def test_a_completion_is_text_whatever_marks_are_in_it(qwen: Format) -> None:
    assert answer(parse({"prompt": "a"}), [done(WRITTEN)], "m", qwen)["choices"][0]["text"] == WRITTEN
