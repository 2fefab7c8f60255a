"""Which tokens of a conversation are targets, under chat templates in the manner of the common families. DAT-9."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from forge.data.encode import Encoded, Encoder
from forge.spec import BadRow, Conversation

Message = dict[str, Any]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str | None, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


def call(arguments: Any) -> Message:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


ASKED = [user("Weather?"), assistant(None, tool_calls=[call({"city": "Paris"})]), {"role": "tool", "content": '{"sky": "clear"}'}]
EASY, HARD = "<think>\nEasy.\n</think>\n\nParis.", "<think>\nHm.\n</think>\n\nNo."
ROME = [user("Rome?"), assistant("Rain.")]
CHATS: dict[str, list[Message]] = {
    "one": [user("Capital of France?"), assistant("Paris.")],
    "three": [user("France?"), assistant("Paris."), user("Italy?"), assistant("Rome."), user("Switzerland?"), assistant("Bern.")],
    "system": [{"role": "system", "content": "Be brief."}, user("France?"), assistant("Paris.")],
    "spaces": [user("France?"), assistant("  Paris. \n")],
    "scripts": [user("法国?"), assistant("巴黎 🗼é")],
    "thinking": [user("France?"), assistant("Paris.", reasoning_content="Easy."), user("Rome?"), assistant("No.", reasoning_content="Hm.")],
    "thinking inline": [
        user("France?"),
        assistant("<think>\nEasy.\n</think>\n\nParis."),
        user("Rome?"),
        assistant("<think>\nHm.\n</think>\n\nNo."),
    ],
    "tool": [*ASKED, assistant("Clear.")],
    "two tools": [user("Weather?"), assistant("Let me look.", tool_calls=[call({"city": "Paris"}), call({"city": "Rome"})])],
    "tools before": [ASKED[0], {**ASKED[1], "reasoning_content": "Look."}, ASKED[2], *ASKED[1:], assistant("Clear."), *ROME],
}


def common(end: str, front: str = "") -> dict[str, list[str]]:
    """What templates say that add nothing but `front` and `end` to an answer, and leave thinking out that stands beside the content."""
    return {
        "one": [f"{front}Paris.{end}"],
        "three": [f"{front}Paris.{end}", f"{front}Rome.{end}", f"{front}Bern.{end}"],
        "system": [f"{front}Paris.{end}"],
        "spaces": [f"{front}  Paris. \n{end}"],
        "scripts": [f"{front}巴黎 🗼é{end}"],
        "thinking": [f"{front}Paris.{end}", f"{front}No.{end}"],
        "thinking inline": [f"{front}{EASY}{end}", f"{front}{HARD}{end}"],
    }


NOTHING = "<think>\n\n</think>\n\n"
QWEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>'
PHI_CALL = '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|><|end|>'
# This tokenizer writes one more space in front of what follows a special token, as Llama's first did.
MISTRAL_CALL = '[TOOL_CALLS]  [{"name": "weather", "arguments": {"city": "Paris"}}]</s>'

EXPECTED: dict[str, dict[str, list[str]]] = {
    "chatml": common("<|im_end|>"),
    "generation": common("<|im_end|>"),
    "llama3": common("<|eot_id|>")
    | {
        "spaces": ["Paris.<|eot_id|>"],
        "tool": [LLAMA_CALL, "Clear.<|eot_id|>"],
        "tools before": [LLAMA_CALL, LLAMA_CALL, "Clear.<|eot_id|>", "Rain.<|eot_id|>"],
    },
    "qwen3": {
        "one": [f"{NOTHING}Paris.<|im_end|>"],
        "three": ["Paris.<|im_end|>", "Rome.<|im_end|>", f"{NOTHING}Bern.<|im_end|>"],
        "system": [f"{NOTHING}Paris.<|im_end|>"],
        "spaces": [f"{NOTHING}  Paris. \n<|im_end|>"],
        "scripts": [f"{NOTHING}巴黎 🗼é<|im_end|>"],
        "thinking": ["Paris.<|im_end|>", "<think>\nHm.\n</think>\n\nNo.<|im_end|>"],
        "thinking inline": ["Paris.<|im_end|>", "<think>\nHm.\n</think>\n\nNo.<|im_end|>"],
        "tool": [QWEN_CALL, f"{NOTHING}Clear.<|im_end|>"],
        "two tools": [f"{NOTHING}Let me look.\n{QWEN_CALL[:-10]}\n{QWEN_CALL.replace('Paris', 'Rome')}"],
        "tools before": [QWEN_CALL, QWEN_CALL, "Clear.<|im_end|>", f"{NOTHING}Rain.<|im_end|>"],
    },
    "gemma": common("<end_of_turn>") | {"spaces": ["Paris.<end_of_turn>"]},
    "gemma_strict": common("<end_of_turn>") | {"spaces": ["Paris.<end_of_turn>"]},
    "mistral": common("</s>", " ")
    | {"tool": [MISTRAL_CALL, " Clear.</s>"], "tools before": [MISTRAL_CALL, MISTRAL_CALL, " Clear.</s>", " Rain.</s>"]},
    # Its <|assistant|> takes all white space behind it into the token itself.
    "phi": common("<|end|>")
    | {
        "spaces": ["Paris. \n<|end|>"],
        "tool": [PHI_CALL, "Clear.<|end|>"],
        "tools before": [PHI_CALL, PHI_CALL, "Clear.<|end|>", "Rain.<|end|>"],
    },
}
CASES = [(template, chat) for template, chats in EXPECTED.items() for chat in chats]
WITHOUT_DATE = [(template, chat) for template, chat in CASES if template != "llama3" and chat != "system"]


def encoded(encoder: Encoder, messages: list[Message]) -> Encoded:
    (result,) = encoder.encode([Conversation("a", tuple(messages), "chats.jsonl:1")])
    assert isinstance(result, Encoded), result
    return result


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "bare"])
@pytest.mark.parametrize(("template", "chat"), CASES)
def test_targets_are_what_the_assistant_says_with_the_token_that_ends_the_turn(
    template: str, chat: str, wrapped: bool, chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]]
) -> None:
    """Metaspace-like tokenizers (mistral) decode the first space of a run away, and write one more than the text has."""
    encoder = Encoder(chat_tokenizer(template, wrapped))
    assert target_runs(encoder, encoded(encoder, CHATS[chat])) == EXPECTED[template][chat]


@pytest.mark.parametrize(("template", "chat"), CASES)
def test_last_is_the_last_turn_alone(
    template: str, chat: str, chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]]
) -> None:
    encoder = Encoder(chat_tokenizer(template), mask="last")
    assert target_runs(encoder, encoded(encoder, CHATS[chat])) == EXPECTED[template][chat][-1:]


@pytest.mark.parametrize(("template", "chat"), WITHOUT_DATE)
def test_all_is_every_token_but_the_first_and_ids_are_those_that_transformers_gives(
    template: str, chat: str, chat_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = chat_tokenizer(template)
    result = encoded(Encoder(tokenizer, mask="all"), CHATS[chat])
    assert result.ids.tolist() == tokenizer.apply_chat_template(CHATS[chat])
    assert result.ids.dtype == np.int32 and result.targets is not None
    assert result.targets.tolist() == [False] + [True] * (len(result.ids) - 1)


@pytest.mark.parametrize(
    ("template", "mask", "chat", "expected"),
    [
        ("chatml", "assistant", "three", 6 + 5 + 5),  # Paris. Rome. Bern.; <|im_end|> is no text
        ("chatml", "last", "three", 5),
        ("chatml", "last", "scripts", 6 + 1 + 4 + 2),  # 巴黎 is 6 bytes, 🗼 4, é 2
        # user\n 5, the question 18, \n 1, assistant\n 10, the answer 6, \n 1
        ("chatml", "all", "one", 5 + 18 + 1 + 10 + 6 + 1),
    ],
)
def test_target_bytes_are_those_of_the_targets(
    template: str, mask: Any, chat: str, expected: int, chat_tokenizer: Callable[..., Any]
) -> None:
    assert encoded(Encoder(chat_tokenizer(template), mask=mask), CHATS[chat]).target_bytes == expected


def test_arguments_of_a_call_are_the_same_as_text_and_as_object(chat_tokenizer: Callable[..., Any]) -> None:
    encoder = Encoder(chat_tokenizer("llama3"))
    as_text = [ASKED[0], {**ASKED[1], "tool_calls": [call('{"city":"Paris"}')]}, ASKED[2], assistant("Clear.")]
    assert encoded(encoder, as_text).ids.tolist() == encoded(encoder, CHATS["tool"]).ids.tolist()


PLAIN = "{% for m in messages %}{{ {'user': 'User', 'assistant': 'Bot'}[m.role] + ': ' + m.content }}"
ENDED = PLAIN + "{{ eos_token if m.role == 'assistant' }}\n{% endfor %}{% if add_generation_prompt %}{{ 'Bot: ' }}{% endif %}"
R1 = "{% for m in messages %}{{ '<|user|>' + m.content if m.role == 'user' else '<|bot|>' + m.content + eos_token }}{% endfor %}"
SHARED = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
ASKS = "{{ '<|assistant|>' if add_generation_prompt }}"
WHOLE = "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content + eos_token }}\n{% endgeneration %}{{ eos_token }}{% endfor %}"
END = "<|endoftext|>"


def answers(*contents: str) -> list[Message]:
    return [message for content in contents for message in (user("France?"), assistant(content))]


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        pytest.param(
            ENDED,
            CHATS["three"],
            [f" Paris.{END}", f" Rome.{END}", f" Bern.{END}"],
            id="a space of the header in the content's first token",
        ),
        pytest.param(ENDED, answers("🗼"), [f"🗼{END}"], id="a space of the header that is a token"),
        pytest.param(
            PLAIN + "{{ '\n' }}{% endfor %}{{ 'Bot:' if add_generation_prompt else eos_token }}",
            CHATS["three"],
            [" Paris.", " Rome.", f" Bern.\n{END}"],
            id="an end token behind the last turn only",
        ),
        pytest.param(
            PLAIN + "{{ '\n' }}{% endfor %}{{ 'Bot:' if add_generation_prompt else eos_token }}",
            answers("Paris. ", "Rome."),
            [" Paris. ", f" Rome.\n{END}"],
            id="a turn that ends with a space and no token",
        ),
        pytest.param(
            R1 + "{{ '<|bot|><think>\n' if add_generation_prompt }}",
            CHATS["three"],
            [f"Paris.{END}", f"Rome.{END}", f"Bern.{END}"],
            id="a prompt that no turn shows",
        ),
        pytest.param(
            R1.replace("'<|bot|>'", "'<|bot|>' + ('<think>' if loop.index == 2 else '')")
            + "{{ '<|bot|><think>' if add_generation_prompt }}",
            CHATS["three"],
            [f"Paris.{END}", f"Rome.{END}", f"Bern.{END}"],
            id="a prompt that the first turn shows",
        ),
        pytest.param(
            SHARED,
            answers("Paris.", "Rome."),
            [f"<|assistant|>Paris.{END}", f"<|assistant|>Rome.{END}"],
            id="no prompt, so the model says its header itself",
        ),
        pytest.param(
            SHARED.replace("m.content", "(m.content | length | string)") + ASKS,
            CHATS["three"],
            [f"6{END}", f"5{END}", f"5{END}"],
            id="content that can't be marked",
        ),
        pytest.param(SHARED.replace("m.content", "m.content * 2") + ASKS, answers("Rom"), [f"RomRom{END}"], id="content twice"),
        pytest.param(
            SHARED.replace("m.content", "m.content * (2 if loop.index == 2 else 1)") + ASKS,
            answers("Rom", "Ulm"),
            [f"RomRom{END}", f"Ulm{END}"],
            id="one content of two twice",
        ),
        pytest.param(
            SHARED.replace("m.content", "('*' + m.content + '*' if m.content else '*')") + ASKS,
            answers("", "Rom"),
            [f"*{END}", f"*Rom*{END}"],
            id="nothing said",
        ),
        pytest.param(WHOLE, answers("Rom")[1:], [f"Rom{END}\n"], id="a generation block that holds the end token"),
    ],
)
def test_templates_that_are_harder_to_read(
    template: str, messages: list[Message], expected: list[str], chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]]
) -> None:
    encoder = Encoder(chat_tokenizer("base"), template)
    assert target_runs(encoder, encoded(encoder, messages)) == expected


def test_white_space_in_front_of_the_end_is_no_end_even_where_it_is_an_added_token(
    chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]]
) -> None:
    """Gemma has added tokens for runs of line ends."""
    template = "{% for m in messages %}{{ '<start_of_turn>' + m.content + '\n\n<end_of_turn>' }}{% endfor %}{{ '<start_of_turn>' }}"
    encoder = Encoder(chat_tokenizer("gemma"), template)
    assert target_runs(encoder, encoded(encoder, answers("Rom"))) == ["Rom\n\n<end_of_turn>"]


CALLS = "{% for m in messages %}{{ '<|bot|>' + (m.tool_calls | tojson) + END if m.tool_calls else '<|user|>' + m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "what"),
    [
        ("{% for m in messages %}{{ m.content | length }}{% endfor %}", CHATS["one"], "where turn 2 begins and ends"),
        (
            CALLS.replace("END", "eos_token") + "{{ '<|bot|><think>' if add_generation_prompt }}",
            ASKED[:2],
            "where turn 2, which calls a tool, begins",
        ),
        (CALLS.replace("END", "''"), ASKED[:2], "where turn 2, which calls a tool, ends"),
    ],
)
def test_turns_that_can_not_be_told_apart_are_a_bad_row(
    template: str, messages: list[Message], what: str, chat_tokenizer: Callable[..., Any]
) -> None:
    (result,) = Encoder(chat_tokenizer("base"), template).encode([Conversation("a", tuple(messages), "chats.jsonl:1")])
    assert isinstance(result, BadRow) and (result.origin, result.reason) == ("chats.jsonl:1", "template_mask")
    assert what in result.detail and "data.mask=all" in result.detail


def test_a_call_may_end_with_another_of_the_tokens_that_end_generation(
    chat_tokenizer: Callable[..., Any], target_runs: Callable[..., list[str]]
) -> None:
    """As Llama 3.1 does with <|eom_id|>; mlx-lm's wrapper knows them all."""
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    bare = chat_tokenizer("qwen3", False)
    tokenizer = TokenizerWrapper(bare, eos_token_ids=[bare.convert_tokens_to_ids("<|endoftext|>")])
    turn = "{{ m.tool_calls[0].function.name + '<|endoftext|>' if m.tool_calls else m.content + '<|im_end|>' }}"
    encoder = Encoder(tokenizer, "{% for m in messages %}<|im_start|>" + turn + "{% endfor %}{{ '<|im_start|>' if add_generation_prompt }}")
    assert target_runs(encoder, encoded(encoder, CHATS["tool"])) == ["weather<|endoftext|>", "Clear.<|im_end|>"]
