"""Small tokenizers with chat templates in the published formats of model families."""

from functools import cache
from pathlib import Path
from typing import Any

import forge  # noqa: F401  (before mlx)
from forge.serving.prompt import Chat, encode

HERE = Path(__file__).parent

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
AGAIN = {"role": "user", "content": "The weather?"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": "clear"}

# The family whose tokens a template is written in.
FAMILIES = {"llama3": "llama3", "qwen3": "qwen3", "mistral": "mistral", "gemma3": "gemma", "gemma2": "gemma", "phi4_mini": "phi"}

# Start token, end of text, then the other special tokens; those behind the bar are added but not special.
_TOKENS = {
    "llama3": "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> |",
    "qwen3": "- <|im_end|> <|im_start|> <|endoftext|> | <think> </think> <tool_call> </tool_call>",
    "mistral": "<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] |",
    "gemma": "<bos> <eos> <start_of_turn> <end_of_turn> |",
    "phi": "- <|endoftext|> <|system|> <|user|> <|assistant|> <|tool|> <|/tool|> <|end|> |",
    "base": "- <|endoftext|> |",
    "started": "<s> </s> |",
}


def template(name: str) -> str:
    return (HERE / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def tokenizer(family: str, chat_template: str | None = None) -> Any:
    """In mlx_lm's wrapper, with all that mlx_lm infers. A start token is put in front of plain text by the tokenizer itself."""
    from mlx_lm import tokenizer_utils
    from transformers import PreTrainedTokenizerFast

    special, added = (names.split() for names in _TOKENS[family].split(" |"))
    start = {} if special[0] == "-" else {"bos_token": special[0]}
    backend = _byte_level([token for token in special if token != "-"], added, start.get("bos_token"))
    bare = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[1], chat_template=chat_template, **start)
    parser = tokenizer_utils._infer_tool_parser(bare)
    calling = {} if parser is None else _calling(parser)
    return tokenizer_utils.TokenizerWrapper(bare, **calling)


def model(name: str) -> Any:
    """The tokenizer of the family whose template has that name."""
    return tokenizer(FAMILIES[name], template(name))


def text_of(name: str, *messages: Any, **more: Any) -> str:
    """The prompt of a chat."""
    known = model(name)
    return str(known.decode(encode(known, Chat(messages, **more))))


def _calling(parser: str) -> dict[str, Any]:
    import importlib

    module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
    return {"tool_parser": module.parse_tool_call, "tool_call_start": module.tool_call_start, "tool_call_end": module.tool_call_end}


def _byte_level(special: list[str], added: list[str], start: str | None) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    sentences = ("The capital of France is Paris. What is the capital?", "Be brief. The weather in Paris is clear.")
    backend.train_from_iterator(sentences, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if start:
        front = (start, backend.token_to_id(start))
        backend.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[front])
    return backend
