"""Log-probabilities of tokens in the two forms that the OpenAI API has for them."""

from collections.abc import Sequence
from typing import Any

from forge.serving.contract import Token


def of_chat(tokens: Sequence[Token]) -> dict[str, Any]:
    """{"content": one entry a token, with the likeliest in its place}."""
    return {"content": [{**_entry(token.text, token.logprob), "top_logprobs": [_entry(*each) for each in token.top]} for token in tokens]}


def of_completion(tokens: Sequence[Token], text: str, offset: int = 0) -> dict[str, Any]:
    """Lists as long as `tokens`, which spell `text`; `offset` is where that begins in the whole.

    A token that `text` doesn't show, such as one that begins a text or is a part of a character, has the place where it would be.
    Where two of the likeliest are spelt alike the likelier one is named.
    """
    offsets: list[int] = []
    at = 0
    for token in tokens:
        offsets.append(offset + at)
        at += len(token.text) if token.text and text.startswith(token.text, at) else 0
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [None if token.logprob is None else _likelier(token) for token in tokens],
        "text_offset": offsets,
    }


def _likelier(token: Token) -> dict[str, float]:
    likeliest: dict[str, float] = {}
    for text, logprob in token.top:  # best first
        likeliest.setdefault(text, logprob)
    return likeliest


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
