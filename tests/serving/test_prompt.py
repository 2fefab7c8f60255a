"""Prompts: equal to what training renders, token for token, and what else is asked of them."""

from pathlib import Path
from typing import Any

import pytest

from forge.data.encode import Encoded, Encoder
from forge.data.templates import Template, named
from forge.errors import ServingError
from forge.serving import prompt as serving
from forge.serving.prompt import Chat, encode, opens_thought
from forge.spec import Conversation
from tests.serving.families import AGAIN, ANSWER, ASKED, CALL, FAMILIES, RESULT, SYSTEM, TOOL, model, template, text_of, tokenizer

DATA_TEMPLATES = Path(__file__).parents[1] / "data" / "chat_templates"


# ---- equal to training -----------------------------------------------------------------------------------------------------

TURNS = [
    (ASKED, ANSWER),
    (SYSTEM, ASKED, ANSWER),
    (SYSTEM, ASKED, ANSWER, AGAIN, {"role": "assistant", "content": "Clear."}),
    ({"role": "system", "content": "  é\n"}, {"role": "user", "content": " a\n\nb "}, ANSWER),
]
TEMPLATES = [
    *((family, template(name)) for name, family in FAMILIES.items()),
    *(("base", named(name)) for name in ("simple", "chatml")),
    *(("started", named(name)) for name in ("simple", "chatml")),
    *(("base", file.read_text(encoding="utf-8")) for file in sorted(DATA_TEMPLATES.glob("*.jinja"))),
]
NAMES = [
    *FAMILIES,
    "simple",
    "chatml",
    "simple+bos",
    "chatml+bos",
    *(f"data/{file.stem}" for file in sorted(DATA_TEMPLATES.glob("*.jinja"))),
]


@pytest.mark.parametrize(("family", "source"), TEMPLATES, ids=NAMES)
@pytest.mark.parametrize("turns", TURNS, ids=["one", "system", "two", "spaces"])
def test_a_served_chat_begins_as_training_rendered_it(family: str, source: str, turns: Any) -> None:
    """What is asked of the model is the trained row up to its last answer; then comes that answer."""
    known = tokenizer(family, source)
    (trained,) = Encoder(known).encode([Conversation("a", turns, "chats.jsonl:1")])
    assert isinstance(trained, Encoded), trained
    served = encode(known, Chat(turns[:-1]))
    assert trained.ids[: len(served)].tolist() == served
    assert known.decode(trained.ids[len(served) :]).lstrip().removeprefix("<think>\n\n</think>\n\n").startswith(turns[-1]["content"])
    opened = known.decode(encode(known, Chat(turns, continues=True)))
    assert known.decode(trained.ids).startswith(opened) and opened.endswith(turns[-1]["content"])


@pytest.mark.parametrize("name", ["llama3", "qwen3", "mistral"])
def test_a_served_tool_call_is_rendered_as_training_renders_it(name: str) -> None:
    """Arguments come as text from a client, and may be objects in a row."""
    known, turns = model(name), (AGAIN, CALL, RESULT, ANSWER)
    (trained,) = Encoder(known).encode([Conversation("a", turns, "chats.jsonl:1", (TOOL,))])
    assert isinstance(trained, Encoded), trained
    served = encode(known, Chat(turns[:-1], (TOOL,)))
    assert trained.ids[: len(served)].tolist() == served


@pytest.mark.parametrize(("family", "source"), TEMPLATES, ids=NAMES)
def test_both_agree_on_what_takes_system_text(family: str, source: str) -> None:
    known = tokenizer(family, source)
    assert serving._Template(known, Chat((ASKED,)))._takes_system() == Template(source, known.special_tokens_map, {}, []).takes_system


# ---- the day ---------------------------------------------------------------------------------------------------------------


def test_a_template_that_writes_the_date_gets_the_day_that_training_gave_it_unless_told_another() -> None:
    assert "Today Date: 26 Jul 2024" in text_of("llama3", ASKED)
    assert "Today Date: 1 May 2031" in text_of("llama3", ASKED, variables={"date_string": "1 May 2031"})


# ---- base or instruct ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "source", "mode", "expected"),
    [
        ("base", None, "auto", "has no chat template, so `messages` can't be used: send the text as `prompt`"),
        ("base", None, "base", "is served as a base model, so `messages` can't be used"),
        ("base", None, "instruct", "<|system|>\nBe brief.\n<|user|>\nWhat is the capital of France?\n<|assistant|>\n"),
        ("started", None, "instruct", "<s><|system|>\nBe brief.\n<|user|>\nWhat is the capital of France?\n<|assistant|>\n"),
        ("qwen3", template("qwen3"), "base", "is served as a base model"),
        ("phi", template("phi4_mini"), "instruct", "<|system|>Be brief.<|end|><|user|>What is the capital of France?<|end|><|assistant|>"),
    ],
)
def test_the_mode_decides_where_the_template_may_not(family: str, source: str | None, mode: Any, expected: str) -> None:
    known, chat = tokenizer(family, source), Chat((SYSTEM, ASKED), mode=mode)
    if expected.startswith("<"):
        assert known.decode(encode(known, chat)) == expected
    else:
        with pytest.raises(ServingError, match=expected):
            encode(known, chat)


def test_messages_alone_are_a_chat() -> None:
    assert encode(model("qwen3"), (ASKED,)) == encode(model("qwen3"), Chat((ASKED,)))


# ---- going on with the assistant's words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "begun", "end"),
    [
        ("llama3", "Par", "<|start_header_id|>assistant<|end_header_id|>\n\nPar"),
        ("mistral", "Par", "[/INST] Par"),
        ("gemma3", "Par", "<start_of_turn>model\nPar"),
        ("phi4_mini", "Par", "<|assistant|>Par"),
        ("qwen3", "Par", "<|im_start|>assistant\n<think>\n\n</think>\n\nPar"),
        ("phi4_mini", "", "<|end|><|assistant|>"),
    ],
)
def test_what_the_assistant_began_is_gone_on_with(name: str, begun: str, end: str) -> None:
    assert text_of(name, ASKED, {"role": "assistant", "content": begun}).endswith(end)


def test_a_new_turn_instead_of_going_on_is_to_be_asked_for() -> None:
    assert text_of("phi4_mini", ASKED, ANSWER, continues=False).endswith("<|assistant|>Paris.<|end|><|assistant|>")


@pytest.mark.parametrize(
    ("name", "messages", "words"),
    [
        ("mistral", (ASKED, ASKED), "refuses these messages: after the system message, user and assistant have to alternate"),
        ("mistral", (ASKED, {**CALL, "tool_calls": [{"function": {"name": "f"}}]}, RESULT), "the id of a call has nine characters"),
        ("gemma2", (SYSTEM,), "no system role: let a user message follow"),
        ("gemma2", (SYSTEM, ANSWER), "no system role: let a user message follow"),
        ("qwen3", (ASKED, CALL), "the last message calls a tool: add a message with the role `tool`"),
        ("phi4_mini", ({"role": "assistant", "content": ""},), "refuses these messages: Cannot apply chat template to an empty"),
    ],
)
def test_messages_that_can_not_be_rendered_say_why(name: str, messages: Any, words: str) -> None:
    with pytest.raises(ServingError, match=words):
        text_of(name, *messages)


@pytest.mark.parametrize("source", ["{% for m in %}", "{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ messages.x.y }}"])
def test_a_broken_template_is_a_sentence(source: str) -> None:
    with pytest.raises(ServingError, match="the model's chat template refuses these messages: "):
        encode(tokenizer("base", source), Chat((ASKED,)))


def test_a_template_that_is_a_function_gets_the_same_messages() -> None:
    """As some of mlx_lm's are."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    def simple(messages: Any, add_generation_prompt: bool = False, **more: Any) -> str:
        return "".join(f"{message['role']}: {sorted(message)} " for message in messages) + "answer:" * add_generation_prompt

    known = TokenizerWrapper(tokenizer("base")._tokenizer, chat_template=simple)
    empty = {"role": "assistant", "content": None, "tool_calls": None}
    text = known.decode(encode(known, Chat((SYSTEM, ASKED, empty, AGAIN))))
    assert text == "user: ['content', 'role'] assistant: ['role'] user: ['content', 'role'] answer:"


# ---- ids and thoughts ------------------------------------------------------------------------------------------------------


def test_token_ids_are_taken_as_they_are_where_the_model_has_them() -> None:
    known = model("llama3")
    assert encode(known, [5, 6]) == [5, 6]
    for wrong in (-1, len(known), 2**31 - 1):
        with pytest.raises(ServingError, match=f"token id {wrong} is not in this model's vocabulary of {len(known)} tokens"):
            encode(known, [5, wrong])
    with pytest.raises(ServingError, match="holds no token"):
        encode(known, [])


OPENING = (
    "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "prompt", "opens"),
    [
        (OPENING, Chat((ASKED,)), True),
        (OPENING, Chat((ASKED, {"role": "assistant", "content": "<think>\nHm"})), True),
        (OPENING, Chat((ASKED, {"role": "assistant", "content": "<think>Hm</think>So"})), False),
        (OPENING, "<think>\n", False),
        (template("qwen3"), Chat((ASKED,)), False),
        (template("qwen3"), Chat(({"role": "user", "content": "What does <think> mean?"},)), False),
        (template("qwen3"), Chat((ASKED,), variables={"enable_thinking": False}), False),
    ],
)
def test_a_prompt_that_ends_inside_a_thought_is_known(source: str, prompt: Any, opens: bool) -> None:
    known = tokenizer("qwen3", source)
    assert opens_thought(known, prompt, encode(known, prompt)) is opens
