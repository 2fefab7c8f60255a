"""The shape of a request body in the form of the OpenAI API.

Over OpenAI's: top_k, min_p, repetition_penalty and, for chats, chat_template_kwargs and continue_final_message.
A null counts as not given. What would change nothing here (user, metadata, store, …) is passed over; what would ask for something
that can't be done is refused, never passed over.
"""

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, model_validator
from pydantic_core import PydanticCustomError

from forge.serving.contract import Sampling
from forge.serving.ranges import MaxTokens, MinP, Penalty, RepetitionPenalty, Seed, Temperature, TopK, TopP

MOST_CHOICES = 16  # of one prompt
MOST_JOBS = 256  # prompts times choices
_DEFAULT = Sampling()
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
# What the renderer's own parameters are called.
_NOT_FOR_TEMPLATES = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
    *("sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    "tokenizer_kwargs",
}


def _said(sentence: str, **values: Any) -> PydanticCustomError:
    """A mistake whose sentence needs no value behind it. The names of `values` in braces are replaced, nothing else is."""
    return PydanticCustomError("said", sentence, values)


class _Shape(BaseModel):
    model_config = _STRICT

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class _Open(_Shape):
    """Keys that aren't known here may mean something to the chat template."""

    model_config = _STRICT | ConfigDict(extra="allow")


class Called(_Open):
    name: Annotated[str, Field(min_length=1)]
    arguments: str | dict[str, Any] = ""


class Call(_Open):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Called


class Function(_Open):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Open):
    type: Literal["function"]
    function: Function


def _text_of(content: Any) -> Any:
    """A list of text parts as one text."""
    if not isinstance(content, list):
        return content
    if not content:
        raise _said("at least one part has to be in the list")
    for n, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" and isinstance(kind, str):
            raise _said("part {n} is of type {kind}: this model takes text only", n=n, kind=reprlib.repr(kind))
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _said('part {n} has to be {"type": "text", "text": …}', n=n)
    return "".join(part["text"] for part in content)


class Message(_Shape):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_text_of)] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[Call], Field(min_length=1, max_length=128)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise _said("only the assistant calls tools, not the role {role}", role=self.role)
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("no_content", "it is missing")
        return self


class StreamOptions(_Shape):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Common(_Shape):
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    max_completion_tokens: MaxTokens | None = None  # the newer name, which counts where both are there
    temperature: Temperature = _DEFAULT.temperature
    top_p: TopP = _DEFAULT.top_p
    top_k: TopK = _DEFAULT.top_k
    min_p: MinP = _DEFAULT.min_p
    repetition_penalty: RepetitionPenalty = _DEFAULT.repetition_penalty
    presence_penalty: Penalty = _DEFAULT.presence_penalty
    frequency_penalty: Penalty = _DEFAULT.frequency_penalty
    seed: Seed | None = _DEFAULT.seed
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]],
        FailFast(),
        Field(max_length=16),
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    ] = []
    # passed over
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


def _text_only(asked: Any) -> Any:
    if asked not in ({"type": "text"}, "text"):
        raise _said('only {"type": "text"} can be kept to: describe the form in a message')
    return asked


def _free_choice(asked: Any) -> Any:
    if asked not in ("auto", "none"):
        raise _said("a call can't be forced, 'auto' and 'none' are what can be asked for")
    return asked


def _for_template(variables: Any) -> Any:
    if taken := sorted(_NOT_FOR_TEMPLATES.intersection(variables) if isinstance(variables, dict) else ()):
        raise _said("{name} is not for the template to be told", name=f"`{taken[0]}`")
    return variables


class ChatBody(_Common):
    messages: Annotated[list[Message], FailFast(), Field(min_length=1)]
    max_tokens: MaxTokens = _DEFAULT.max_tokens
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], FailFast(), Field(max_length=128)] = []
    tool_choice: Annotated[Any, BeforeValidator(_free_choice)] = "auto"
    response_format: Annotated[Any, BeforeValidator(_text_only)] = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(_for_template)] = {}
    continue_final_message: bool | None = None


def _some_prompts(prompt: Any) -> Any:
    """A list of prompts, each a text or a list of token ids."""
    if isinstance(prompt, str):
        prompts: list[Any] = [prompt]
    elif isinstance(prompt, list) and prompt and not any(isinstance(each, str | list) for each in prompt):
        prompts = [prompt]
    elif isinstance(prompt, list):
        prompts = prompt
    else:
        raise _said("text, token ids, or a list of either has to be sent, got {got}", got=reprlib.repr(prompt))
    if not 0 < len(prompts) <= MOST_JOBS:
        raise _said("1 to {most} prompts a request, got {count}", most=MOST_JOBS, count=len(prompts))
    for each in prompts:
        _check_prompt(each)
    return prompts


def _check_prompt(prompt: Any) -> None:
    if prompt == "" or prompt == []:
        raise _said("an empty prompt holds nothing to go on from")
    if isinstance(prompt, list):
        wrong = next((id for id in prompt if type(id) is not int or not 0 <= id < 2**31), None)
        if wrong is not None or None in prompt:
            raise _said("a token id is a whole number from 0 to 2147483647, got {got}", got=reprlib.repr(wrong))
    elif not isinstance(prompt, str):
        raise _said("a prompt is a text or a list of token ids, got {got}", got=reprlib.repr(prompt))


class CompletionBody(_Common):
    prompt: Annotated[list[Any], BeforeValidator(_some_prompts)]
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] = _DEFAULT.max_tokens
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: int | None = None
