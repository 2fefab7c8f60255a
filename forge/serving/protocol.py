"""Requests and answers in the form of the OpenAI API: /v1/chat/completions, /v1/completions, and MLflow's /invocations for either.

parse checks a body; the engine completes Request.jobs; answer puts the completions together, and Chunks does so as they come.
Beyond OpenAI's form, a chat's answer has what the model thought in `reasoning_content`.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from forge.serving import logprobs
from forge.serving.contract import Completion, Piece, Token
from forge.serving.parts import Format, Part, Splitter, split
from forge.serving.request import Request, Route, parse

__all__ = ["Chunks", "Request", "Route", "answer", "parse"]

_PLAIN = Format()


def answer(request: Request, completions: Sequence[Completion], model: str, format: Format | None = None) -> dict[str, Any]:
    """The chat.completion or text_completion object. `completions`: one for each of Request.jobs, in order.

    model: named where the request names none. format: what the model marks its thoughts and calls with; None: nothing.
    """
    choices = [_choice(request, index, each, format or _PLAIN) for index, each in enumerate(completions)]
    kind = "chat.completion" if request.is_chat else "text_completion"
    return {**_frame(request, kind, model), "choices": choices, "usage": usage(request, completions)}


def usage(request: Request, completions: Sequence[Completion]) -> dict[str, Any]:
    """A prompt counts once, however many choices it has."""
    firsts = completions[:: request.n]
    prompt, generated = (sum(each.prompt_tokens for each in firsts), sum(each.completion_tokens for each in completions))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in firsts)},
    }


class Chunks:
    """The objects of a stream. `index` counts Request.jobs.

    The pieces of an index have to come in order and before its end. The last end brings the counts too, where they were asked for.
    """

    def __init__(self, request: Request, model: str, format: Format | None = None):
        self._request = request
        self._frame = _frame(request, "chat.completion.chunk" if request.is_chat else "text_completion", model)
        make = _ChatStream if request.is_chat else _TextStream
        self._streams = [make(request, format or _PLAIN) for _ in request.jobs]
        self._ended: dict[int, Completion] = {}

    def add(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        return [self._object(index, change) for change in self._streams[index].add(piece)]

    def end(self, index: int, completion: Completion) -> list[dict[str, Any]]:
        objects = [self._object(index, change) for change in self._streams[index].end(completion)]
        self._ended[index] = completion
        if self._request.include_usage and len(self._ended) == len(self._streams):
            in_order = [self._ended[n] for n in range(len(self._streams))]
            objects.append({**self._frame, "choices": [], "usage": usage(self._request, in_order)})
        return objects

    def _object(self, index: int, change: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "logprobs": None, "finish_reason": None, **change}
        return {**self._frame, "choices": [choice], **({"usage": None} if self._request.include_usage else {})}


class _ChatStream:
    """One choice of a chat."""

    def __init__(self, request: Request, format: Format):
        self._request, self._format = request, format
        self._splitter: Splitter | None = None
        self._waiting: list[Token] = []  # whose text is held back
        self._calls = 0

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        begun = self._begin(piece)
        self._waiting += piece.tokens
        assert self._splitter
        return begun + self._changes(self._splitter.add(piece.text))

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        begun = self._begin(completion)
        assert self._splitter
        rest = self._changes(self._splitter.end(completion.finish_reason == "stop"))
        return [*begun, *rest, {"delta": {}, "finish_reason": _reason(completion, self._calls > 0), **self._logprobs()}]

    def _begin(self, said: Piece | Completion) -> list[dict[str, Any]]:
        if self._splitter is not None:
            return []
        self._splitter = Splitter(self._format, self._request.tools, said.thinking)
        return [{"delta": {"role": "assistant", "content": ""}}]

    def _changes(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        return [{"delta": self._delta(part), **self._logprobs()} for part in parts]

    def _delta(self, part: Part) -> dict[str, Any]:
        if part.kind != "call":
            return {"content": part.text} if part.kind == "content" else {"reasoning_content": part.text}
        self._calls += 1
        return {"tool_calls": [{"index": self._calls - 1, **_called(part)}]}

    def _logprobs(self) -> dict[str, Any]:
        """Those of the tokens up to here, on the first object that can carry them."""
        tokens, self._waiting = self._waiting, []
        return {"logprobs": logprobs.of_chat(tokens)} if tokens else {}


class _TextStream:
    """One choice of a completion."""

    def __init__(self, request: Request, format: Format):
        self._scored = request.sampling.logprobs is not None
        self._given = 0  # characters

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        change: dict[str, Any] = {"text": piece.text}
        if self._scored and piece.tokens:
            change["logprobs"] = logprobs.of_completion(piece.tokens, piece.text, self._given)
        self._given += len(piece.text)
        return [change]

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        return [{"text": "", "finish_reason": completion.finish_reason}]


def _frame(request: Request, kind: str, model: str) -> dict[str, Any]:
    id = f"{'chatcmpl' if request.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
    return {"id": id, "object": kind, "created": int(time.time()), "model": request.model or model}


def _choice(request: Request, index: int, completion: Completion, format: Format) -> dict[str, Any]:
    scored = request.sampling.logprobs is not None
    if not request.is_chat:
        text, tokens = _echoed(request, index, completion) + completion.text, (*completion.prompt, *completion.tokens)
        told = logprobs.of_completion(tokens, text) if scored else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": completion.finish_reason}
    parts = split(format, completion.text, request.tools, completion.thinking, completion.finish_reason == "stop")
    told = logprobs.of_chat(completion.tokens) if scored else None
    reason = _reason(completion, any(part.kind == "call" for part in parts))
    return {"index": index, "message": _message(parts), "logprobs": told, "finish_reason": reason}


def _message(parts: Sequence[Part]) -> dict[str, Any]:
    """Without content, which is null, only where a call takes its place."""
    content, thoughts = ("".join(part.text for part in parts if part.kind == kind) for kind in ("content", "reasoning"))
    calls = [_called(part) for part in parts if part.kind == "call"]
    message: dict[str, Any] = {"role": "assistant", "content": None if calls and not content else content}
    return message | ({"reasoning_content": thoughts} if thoughts else {}) | ({"tool_calls": calls} if calls else {})


def _called(part: Part) -> dict[str, Any]:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.text}}


def _reason(completion: Completion, called: bool) -> str:
    return "tool_calls" if called and completion.finish_reason == "stop" else completion.finish_reason


def _echoed(request: Request, index: int, completion: Completion) -> str:
    if not request.sampling.echo:
        return ""
    prompt = request.jobs[index][0]
    return prompt if isinstance(prompt, str) else "".join(token.text for token in completion.prompt)
