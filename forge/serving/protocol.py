"""The request body and the answers, in the form of the OpenAI API.

Over OpenAI's: top_k, min_p, repetition_penalty. Not taken: streaming, several choices, tools, images, log-probabilities.
A null counts as not given.
"""

import difflib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from forge.errors import ServingError
from forge.serving.engine import Completion, Sampling
from forge.serving.prompt import Prompt

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_DEFAULT = Sampling()


class _Message(BaseModel):
    model_config = _STRICT
    role: Literal["system", "user", "assistant"]
    content: str


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class _Body(BaseModel):
    """What each name means is said at engine.Sampling."""

    model_config = _STRICT
    prompt: Annotated[str, Field(min_length=1)] | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    model: str | None = None
    stream: bool = False
    n: int = 1
    max_tokens: Annotated[int, Field(ge=1)] = _DEFAULT.max_tokens
    temperature: Annotated[float, Field(ge=0, le=2)] = _DEFAULT.temperature
    top_p: Annotated[float, Field(gt=0, le=1)] = _DEFAULT.top_p
    top_k: Annotated[int, Field(ge=0)] = _DEFAULT.top_k
    min_p: Annotated[float, Field(ge=0, le=1)] = _DEFAULT.min_p
    repetition_penalty: Annotated[float, Field(gt=0)] = _DEFAULT.repetition_penalty
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = _DEFAULT.seed
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_listed)] = []


@dataclass(frozen=True)
class Request:
    """A checked body. `model` is the name the caller gave the model, to be repeated in the answer."""

    prompt: Prompt
    sampling: Sampling
    model: str | None

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)


def parse(body: Mapping[str, Any]) -> Request:
    """Check a body. Raises ServingError with one sentence that names each key at fault, its value and what would do."""
    try:
        checked = _Body.model_validate({key: value for key, value in body.items() if value is not None})
    except ValidationError as error:
        raise ServingError("; ".join(_complaint(dict(each)) for each in error.errors(include_url=False))) from error
    if checked.stream:
        raise ServingError("`stream`: this route can't stream, leave it out")
    if checked.n != 1:
        raise ServingError(f"`n`: one choice a request, got {checked.n}: send the request again for another")
    sampling = Sampling(**checked.model_dump(include=set(Sampling.__dataclass_fields__) - {"stop"}), stop=tuple(checked.stop))
    return Request(_prompt(checked), sampling, checked.model)


def answer(request: Request, completion: Completion, model: str) -> dict[str, Any]:
    """The chat.completion or text_completion object. `model` is named where the request names none."""
    total = completion.prompt_tokens + completion.completion_tokens
    content: dict[str, Any] = (
        {"message": {"role": "assistant", "content": completion.text}} if request.is_chat else {"text": completion.text}
    )
    return {
        "id": f"{'chatcmpl' if request.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if request.is_chat else "text_completion",
        "created": int(time.time()),
        "model": request.model or model,
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": completion.finish_reason}],
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": total,
        },
    }


def _prompt(body: _Body) -> Prompt:
    if (body.prompt is None) == (body.messages is None):
        raise ServingError("send `prompt` or `messages`" + (", not both" if body.prompt is not None else ""))
    return body.prompt if body.prompt is not None else tuple(message.model_dump() for message in body.messages or [])


def _complaint(error: dict[str, Any]) -> str:
    *parents, name = error["loc"]
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        valid = list(_Message.model_fields if parents else _Body.model_fields)
        near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.62)
        return f"unknown key `{path}`, " + (f"did you mean `{near[0]}`?" if near else f"valid are {', '.join(valid)}")
    if error["type"] == "missing":
        return f"`{path}` is missing"
    shown = repr(error["input"])
    said = error["msg"].replace(" after validation, not 0", "")
    return f"`{path}`: {said}, got {shown if len(shown) <= 60 else shown[:57] + '...'}"
