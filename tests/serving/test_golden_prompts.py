"""Prompts in the formats that the makers of model families publish, worked out by hand."""

from typing import Any

import pytest

from forge.serving.prompt import Chat, encode
from tests.serving.families import AGAIN, ANSWER, ASKED, CALL, RESULT, SYSTEM, TOOL, model, text_of

JSON_TOOL = '{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}'
JSON_CALL = '{"name": "weather", "arguments": {"city": "Paris"}'
LLAMA_HEAD = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
LLAMA_ASKED = "<|start_header_id|>user<|end_header_id|>\n\nWhat is the capital of France?<|eot_id|>"
LLAMA_ANSWERS = "<|start_header_id|>assistant<|end_header_id|>\n\n"
LLAMA_TOOLS = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    '{\n    "type": "function",\n    "function": {\n        "name": "weather",\n        "parameters": {\n            "type": "object"\n'
    "        }\n    }\n}\n\nThe weather?<|eot_id|>"
    f'{LLAMA_ANSWERS}{{"name": "weather", "parameters": {{"city": "Paris"}}}}<|eot_id|>'
    f'<|start_header_id|>ipython<|end_header_id|>\n\n"clear"<|eot_id|>{LLAMA_ANSWERS}'
)
QWEN_TOOLS = (
    f"<|im_start|>system\nBe brief.\n\n# Tools\n\n<tools>\n{JSON_TOOL}\n</tools><|im_end|>\n<|im_start|>user\nThe weather?<|im_end|>\n"
    f"<|im_start|>assistant\n<tool_call>\n{JSON_CALL}}}\n</tool_call><|im_end|>\n"
    "<|im_start|>user\n<tool_response>\nclear\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)
MISTRAL_TOOLS = (
    f"<s>[AVAILABLE_TOOLS] [{JSON_TOOL}][/AVAILABLE_TOOLS][INST] The weather?[/INST]"
    f'[TOOL_CALLS] [{JSON_CALL}, "id": "abcdefghi"}}]</s>[TOOL_RESULTS] {{"content": "clear", "call_id": "abcdefghi"}}[/TOOL_RESULTS]'
)

GOLDEN = [
    ("llama3", (ASKED,), {}, f"{LLAMA_HEAD}<|eot_id|>{LLAMA_ASKED}{LLAMA_ANSWERS}"),
    (
        "llama3",
        (SYSTEM, ASKED, ANSWER, AGAIN),
        {},
        f"{LLAMA_HEAD}Be brief.<|eot_id|>{LLAMA_ASKED}{LLAMA_ANSWERS}Paris.<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\nThe weather?<|eot_id|>{LLAMA_ANSWERS}",
    ),
    ("llama3", (AGAIN, CALL, RESULT), {"tools": (TOOL,)}, LLAMA_TOOLS),
    ("qwen3", (ASKED,), {}, "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"),
    (
        "qwen3",
        (ASKED,),
        {"variables": {"enable_thinking": False}},
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    (
        "qwen3",
        (SYSTEM, ASKED, {**ANSWER, "content": "<think>\nEasy.\n</think>\n\nParis."}, AGAIN),
        {},
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nParis.<|im_end|>\n<|im_start|>user\nThe weather?<|im_end|>\n<|im_start|>assistant\n",
    ),
    ("qwen3", (SYSTEM, AGAIN, CALL, RESULT), {"tools": (TOOL,)}, QWEN_TOOLS),
    ("mistral", (ASKED,), {}, "<s>[INST] What is the capital of France?[/INST]"),
    (
        "mistral",  # its own would show the system text at the last question; training puts it in front of the first
        (SYSTEM, ASKED, ANSWER, AGAIN),
        {},
        "<s>[INST] Be brief.\n\nWhat is the capital of France?[/INST] Paris.</s>[INST] The weather?[/INST]",
    ),
    ("mistral", (AGAIN, CALL, RESULT), {"tools": (TOOL,)}, MISTRAL_TOOLS),
    (
        "gemma3",
        (SYSTEM, ASKED, ANSWER, AGAIN),
        {},
        "<bos><start_of_turn>user\nBe brief.\n\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nParis.<end_of_turn>\n"
        "<start_of_turn>user\nThe weather?<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "gemma2",
        (SYSTEM, ASKED),
        {},
        "<bos><start_of_turn>user\nBe brief.\n\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "phi4_mini",
        (SYSTEM, ASKED, ANSWER, AGAIN),
        {"tools": (TOOL,)},
        f"<|system|>Be brief.<|tool|>[{JSON_TOOL}]<|/tool|><|end|><|user|>What is the capital of France?<|end|>"
        "<|assistant|>Paris.<|end|><|user|>The weather?<|end|><|assistant|>",
    ),
    ("phi4_mini", (ASKED,), {}, "<|user|>What is the capital of France?<|end|><|assistant|>"),
]


@pytest.mark.parametrize(("name", "messages", "more", "expected"), GOLDEN)
def test_a_prompt_is_as_the_format_says(name: str, messages: Any, more: Any, expected: str) -> None:
    assert text_of(name, *messages, **more) == expected


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma3"])
def test_a_start_token_that_template_and_tokenizer_both_know_comes_once(name: str) -> None:
    known = model(name)
    for prompt in ("France", Chat((ASKED,)), Chat((ASKED, ANSWER))):
        ids = encode(known, prompt)
        assert ids[0] == known.bos_token_id and ids.count(known.bos_token_id) == 1
