"""Chat templates: which one is taken, what it may refuse, and what is noted when a row is not rendered as it said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.data.encode import Encoded, Encoder
from forge.data.templates import named
from forge.errors import DataError
from forge.spec import BadRow, Conversation

CHAT = ({"role": "user", "content": "France?"}, {"role": "assistant", "content": "Paris."})
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}


WEATHER = ({"role": "user", "content": "the weather?"},)  # names the tool by chance


def encode(encoder: Encoder, *messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> Encoded | BadRow:
    (result,) = encoder.encode([Conversation("a", messages, "chats.jsonl:1", tools)])
    return result


def text_of(encoder: Encoder, *messages: dict[str, Any], **more: Any) -> str:
    result = encode(encoder, *messages, **more)
    assert isinstance(result, Encoded), result
    return encoder.decode(result.ids)


# ---- which template -------------------------------------------------------------------------------------------------------


def test_the_simple_template_needs_no_token_that_a_base_does_not_have(
    chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]]
) -> None:
    encoder = Encoder(chat_tokenizer("base"), named("simple"))
    result = encode(encoder, SYSTEM, *CHAT, *CHAT)
    turn = "<|user|>\nFrance?\n<|assistant|>\nParis.<|endoftext|>\n"
    assert isinstance(result, Encoded) and encoder.decode(result.ids) == "<|system|>\nBe brief.\n" + turn + turn
    assert target_runs(encoder, result) == ["Paris.<|endoftext|>"] * 2 and result.notes == ()


def test_the_simple_template_writes_tools_and_calls_as_json(
    chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]]
) -> None:
    tools = '<|tools|>\n[{"type": "function", "function": {"name": "weather", "parameters": {}}}]\n'
    encoder = Encoder(chat_tokenizer("base"), named("simple"))
    result = encode(encoder, CHAT[0], CALL, {"role": "tool", "content": "clear"}, CHAT[1], tools=(TOOL,))
    assert isinstance(result, Encoded) and result.notes == ()
    assert encoder.decode(result.ids).startswith(f"{tools}<|user|>\nFrance?\n")
    assert target_runs(encoder, result) == ['{"name": "weather", "arguments": {}}<|endoftext|>', "Paris.<|endoftext|>"]


def test_the_simple_template_starts_with_the_start_token_where_there_is_one(chat_tokenizer: Callable[..., Any]) -> None:
    text = text_of(Encoder(chat_tokenizer("llama3"), named("simple")), *CHAT)
    assert text == "<|begin_of_text|><|user|>\nFrance?\n<|assistant|>\nParis.<|end_of_text|>\n"


def test_chatml_by_name_is_the_same_as_from_a_tokenizer_that_has_it(chat_tokenizer: Callable[..., Any]) -> None:
    tokenizer = chat_tokenizer("chatml")
    own, other = Encoder(tokenizer), Encoder(tokenizer, named("chatml"))
    assert text_of(own, SYSTEM, *CHAT) == text_of(other, SYSTEM, *CHAT)
    assert own.template_digest != other.template_digest and own.digest == other.digest


def test_a_turn_that_ends_with_no_token_still_has_its_end_learnt_and_a_line_says_so(
    chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder(chat_tokenizer("base"), named("chatml"))
    for _ in range(2):
        result = encode(encoder, *CHAT)
        assert target_runs(encoder, result) == ["Paris.<|im_end|>"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "'<|im_end|>', which is no token of this tokenizer" in line and "data.template=simple" in line


def test_a_template_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages }} é", encoding="utf-8")
    assert named(str(file)) == "{{ messages }} é"
    assert named(None) is None


@pytest.mark.parametrize(
    ("template", "words"),
    [("missing.jinja", "No such file"), ("latin.jinja", "it is not UTF-8"), ("simpel", "take simple, chatml, a .jinja file")],
)
def test_a_template_that_is_not_there_is_an_error(template: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.jinja").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=f"data.template={template}: .*{words}"):
        named(template)


def test_a_tokenizer_without_a_template_takes_no_conversations(chat_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"this tokenizer has no chat template: set data\.template=simple"):
        encode(Encoder(chat_tokenizer("base")), *CHAT)


def test_what_is_no_jinja_is_an_error(chat_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="the chat template is no jinja: line 2: "):
        encode(Encoder(chat_tokenizer("base"), "{{ bos_token }}\n{% for m in %}"), *CHAT)


def test_templates_that_write_the_date_write_the_same_one_every_day(chat_tokenizer: Callable[..., Any]) -> None:
    assert "system<|end_header_id|>\n\nToday is 26 Jul 2024\nBe brief.<|eot_id|>" in text_of(
        Encoder(chat_tokenizer("llama3")), SYSTEM, *CHAT
    )


@pytest.mark.parametrize("family", ["qwen3", "chatml"])
def test_thinking_is_asked_for_as_when_serving(family: str, chat_tokenizer: Callable[..., Any]) -> None:
    tokenizer = chat_tokenizer(family)
    template = "{{ enable_thinking }}{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
    (result,) = Encoder(tokenizer, template).encode([Conversation("a", CHAT, "chats.jsonl:1")])
    assert isinstance(result, Encoded)
    assert result.ids.tolist() == tokenizer.apply_chat_template(CHAT, chat_template=template)


# ---- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "mask", "reason", "words"),
    [
        ("mistral", (CHAT[0], CHAT[0], CHAT[1]), "assistant", "template_refused", "refuses it: roles must alternate; mend the row"),
        ("gemma_strict", (CHAT[0], SYSTEM, CHAT[1]), "assistant", "template_refused", "System role not supported"),
        ("gemma_strict", (SYSTEM, CHAT[1]), "assistant", "template_refused", "no user turn follows"),
        ("chatml", (CHAT[0], CALL), "assistant", "template_refused", "leaves out the call of 'weather'"),
        ("chatml", (*WEATHER, CALL), "assistant", "template_refused", "leaves out the call of 'weather'"),
        ("chatml", (CHAT[0],), "assistant", "no_target", "no turn is the assistant's"),
        ("chatml", (CHAT[0],), "last", "no_target", "no turn is the assistant's"),
    ],
)
def test_a_row_that_can_not_be_used_says_why(
    template: str, messages: tuple[dict[str, Any], ...], mask: Any, reason: str, words: str, chat_tokenizer: Callable[..., Any]
) -> None:
    result = encode(Encoder(chat_tokenizer(template), mask=mask), *messages)
    assert isinstance(result, BadRow)
    assert (result.origin, result.reason) == ("chats.jsonl:1", reason)
    assert words in result.detail and "; " in result.detail


def test_a_row_without_answers_can_be_learnt_whole(chat_tokenizer: Callable[..., Any]) -> None:
    assert isinstance(encode(Encoder(chat_tokenizer("chatml"), mask="all"), CHAT[0]), Encoded)


# ---- what is noted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("gemma_strict", "<bos><start_of_turn>user\nBe brief.\n\nFrance?<end_of_turn>\n<start_of_turn>model\nParis.<end_of_turn>\n"),
        ("mistral", "<s>[INST]  Be brief.\n\nFrance?[/INST]  Paris.</s>"),  # one of the two spaces is the tokenizer's
    ],
    ids=["refused", "left out behind an answer"],
)
def test_system_text_without_a_role_goes_in_front_of_the_first_user_turn(
    template: str, expected: str, chat_tokenizer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder(chat_tokenizer(template))
    for _ in range(2):
        result = encode(encoder, SYSTEM, *CHAT)
        assert isinstance(result, Encoded) and encoder.decode(result.ids) == expected
        assert result.notes == ("system_folded",)
    assert capsys.readouterr().out.count("has no system role") == 1


def test_empty_fields_are_as_if_they_were_not_there(chat_tokenizer: Callable[..., Any]) -> None:
    """Written as they are, they would read "None"."""
    text = text_of(Encoder(chat_tokenizer("chatml")), CHAT[0], {"role": "assistant", "content": None, "tool_calls": None})
    assert text == "<|im_start|>user\nFrance?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"


def user(content: str) -> tuple[dict[str, Any], ...]:
    return {"role": "user", "content": content}, CHAT[1]


def answer(content: str, **more: Any) -> tuple[dict[str, Any], ...]:
    return CHAT[0], {"role": "assistant", "content": content, **more}, *CHAT


CENSORED = "{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content | replace('Paris', 'X')) + eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "tools", "notes"),
    [
        ("gemma", (SYSTEM, *CHAT), (), ()),
        ("gemma", user("  two\r\nlines \n"), (), ()),
        ("chatml", user("what is <|im_end|>?"), (), ("special_in_content",)),
        ("qwen3", user("what is <think>?"), (), ()),
        ("qwen3", answer("Paris.", reasoning_content="Easy."), (), ("thinking_dropped",)),
        ("qwen3", answer("<think>Easy.</think>Paris."), (), ("thinking_dropped",)),
        ("qwen3", (*CHAT, CHAT[0], {"role": "assistant", "content": "<think>Easy.</think>Paris."}), (), ()),
        ("llama3", (CHAT[0], CALL, {"role": "tool", "content": '"a"\nb'}, CHAT[1]), (), ()),
        ("llama3", CHAT, (TOOL,), ("tools_dropped",)),
        ("llama3", (*WEATHER, CHAT[1]), (TOOL,), ("tools_dropped",)),
        ("qwen3", CHAT, (TOOL,), ()),
        (CENSORED, CHAT, (), ("turn_changed",)),
    ],
)
def test_what_is_not_as_the_row_said_is_noted(
    template: str,
    messages: tuple[dict[str, Any], ...],
    tools: tuple[dict[str, Any], ...],
    notes: tuple[str, ...],
    chat_tokenizer: Callable[..., Any],
) -> None:
    own = template if "{" not in template else None
    result = encode(Encoder(chat_tokenizer(own or "chatml"), None if own else template), *messages, tools=tools)
    assert isinstance(result, Encoded), result
    assert result.notes == notes
