"""Text or chat messages -> the token ids that a model is given."""

from collections.abc import Mapping
from typing import Any

from forge.errors import ServingError

Message = Mapping[str, str]  # role and content
Prompt = str | tuple[Message, ...]  # text to go on from, or a chat


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The ids of `prompt`, at least one. `tokenizer` is mlx_lm's wrapper. Raises ServingError where it can't be encoded."""
    ids = encode_text(tokenizer, prompt) if isinstance(prompt, str) else encode_chat(tokenizer, prompt)
    if not ids:
        raise ServingError("the prompt holds no token: send some text")
    return ids


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """As tokenizer.encode does it, with the special tokens (BOS) that the tokenizer itself adds."""
    return list(tokenizer.encode(text))


def encode_chat(tokenizer: Any, messages: tuple[Message, ...]) -> list[int]:
    """By the tokenizer's own chat template, up to where the assistant's answer begins."""
    from jinja2 import TemplateError  # here, because transformers takes it only when a template is used

    if not tokenizer.has_chat_template:
        raise ServingError("this model's tokenizer has no chat template, so `messages` can't be used: send the text as `prompt`")
    try:
        return list(tokenizer.apply_chat_template([dict(message) for message in messages], add_generation_prompt=True))
    except TemplateError as error:
        raise ServingError(f"the model's chat template refuses these messages: {error}") from error
