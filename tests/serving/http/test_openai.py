"""The `openai` client, unchanged, against a real model: what it sends is understood, and it understands what comes back."""

import asyncio
from collections.abc import Iterator

import pytest

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "how is the cat?"}]


@pytest.fixture(scope="module")
def client(real) -> Iterator:
    with openai.OpenAI(base_url=real.url, api_key="none", max_retries=0, timeout=30) as found:
        yield found


def test_a_chat(client, tokenizer) -> None:
    done = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=6, temperature=0)
    (choice,) = done.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(prompt), 6)
    assert done.usage.total_tokens == len(prompt) + 6


@pytest.mark.parametrize("seed", [1, 2])
def test_a_chat_streamed_is_the_chat(client, seed) -> None:
    asked = {"model": "tiny", "messages": QUESTION, "max_tokens": 20, "seed": seed, "temperature": 1.5}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len(chunks) > 5, "it came bit by bit"


def test_a_completion_streamed_is_the_completion_for_each_prompt(client) -> None:
    """Two prompts with two choices each; each choice comes by its index, and equals that of the body in one."""
    asked = {"model": "tiny", "prompt": ["the cat", "a dog"], "n": 2, "max_tokens": 12, "seed": 3, "temperature": 2}
    whole = client.completions.create(**asked)
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] != texts[1], "choices of one prompt differ"
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]


def test_token_ids_are_a_prompt(client, tokenizer) -> None:
    asked = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    text = client.completions.create(prompt="the cat", **asked)
    ids = client.completions.create(prompt=tokenizer.encode("the cat"), **asked)
    assert (ids.choices[0].text, ids.usage) == (text.choices[0].text, text.usage)


def test_the_models(client) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "forge"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        ({"model": "big", "prompt": "hi"}, openai.NotFoundError, "tiny"),
        ({"model": "tiny", "prompt": "hi", "temperature": -1}, openai.BadRequestError, "temperature"),
        ({"model": "tiny", "prompt": "z" * 100}, openai.BadRequestError, "context"),
    ],
)
def test_mistakes_are_the_exceptions_of_the_client(client, asked, kind, says, stream) -> None:
    """Also where it streams: what is wrong with a prompt is known before the first token."""
    with pytest.raises(kind, match=says):
        list(client.completions.create(**asked, stream=stream))


def test_eight_at_once_get_what_each_gets_alone(client, real) -> None:
    asked = [{"model": "tiny", "prompt": "the cat", "seed": seed, "max_tokens": 16, "temperature": 2} for seed in range(8)]
    alone = [client.completions.create(**each) for each in asked]

    async def together() -> list:
        async with openai.AsyncOpenAI(base_url=real.url, api_key="none", max_retries=0, timeout=30) as several:
            return await asyncio.gather(*(several.completions.create(**each) for each in asked))

    found = asyncio.run(together())
    assert [done.choices[0].text for done in found] == [done.choices[0].text for done in alone]
    assert [done.usage.completion_tokens for done in found] == [done.usage.completion_tokens for done in alone]
