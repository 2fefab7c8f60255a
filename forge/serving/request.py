"""A request body, checked, as what the engine is to do."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from forge.errors import ServingError
from forge.serving.body import MOST_JOBS, ChatBody, CompletionBody
from forge.serving.contract import Sampling
from forge.serving.mistakes import complaint, known, refused, unwholesome
from forge.serving.prompt import Chat, Mode, Prompt

Route = Literal["chat", "completion"]
Body = TypeVar("Body", ChatBody, CompletionBody)

_SAMPLED = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"}


@dataclass(frozen=True)
class Request:
    """A checked body.

    prompts        one for a chat; a completion may have several
    sampling       of each prompt's first choice
    n              choices of each prompt
    model          the name the caller gave the model, to be repeated in the answer
    include_usage  whether the stream ends with the counts
    tools          the functions that the model may call, in the OpenAI form
    """

    prompts: tuple[Prompt | list[int], ...]
    sampling: Sampling
    model: str | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    tools: tuple[Mapping[str, Any], ...] = ()
    is_chat: bool = False

    @cached_property
    def jobs(self) -> tuple[tuple[Prompt | list[int], Sampling], ...]:
        """What to complete, in the order of the answer's choices: all of the first prompt's, then the next one's.

        A prompt's choice i has the seed + i, so that equal prompts and seeds give equal texts whatever else is asked for.
        """
        return tuple((prompt, self._seeded(i)) for prompt in self.prompts for i in range(self.n))

    def _seeded(self, choice: int) -> Sampling:
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=(seed + choice) % 2**63)


def parse(body: Mapping[str, Any], route: Route | None = None, mode: Mode = "auto") -> Request:
    """Check a body. Raises ServingError with one sentence that names each key at fault, its value and what would do.

    route: what may be asked for; None: either. mode: see prompt.Chat.
    """
    if not isinstance(body, Mapping):
        raise ServingError(f"the body has to be a JSON object with `prompt` or `messages`, got {type(body).__name__}")
    given = {key: value for key, value in body.items() if value is not None}
    if wrong := unwholesome(given) or refused(given) or _misplaced(given, route):
        raise ServingError(wrong)
    if "messages" in given or route == "chat":
        return _chat(_checked(ChatBody, given), given, mode)
    return _completion(_checked(CompletionBody, given))


def _misplaced(given: Mapping[str, Any], route: Route | None) -> str | None:
    if route == "chat" and "prompt" in given:
        return "`prompt`: this route takes `messages`, send `prompt` to /v1/completions"
    if route == "completion" and "messages" in given:
        return "`messages`: this route takes `prompt`, send `messages` to /v1/chat/completions"
    if "prompt" in given and "messages" in given:
        return "send `prompt` or `messages`, not both"
    return "send `prompt` or `messages`" if route is None and "prompt" not in given and "messages" not in given else None


def _checked(shape: type[Body], given: Mapping[str, Any]) -> Body:
    try:
        return shape.model_validate(known(given))
    except ValidationError as error:
        raise ServingError(complaint(shape, error.errors(include_url=False, include_context=False))) from error


def _chat(checked: ChatBody, given: Mapping[str, Any], mode: Mode) -> Request:
    if mode == "base":
        raise ServingError("this model is served as a base model, so `messages` can't be used: send the text as `prompt`")
    if checked.top_logprobs is not None and not checked.logprobs:
        raise ServingError("`top_logprobs` goes with `logprobs`: true")
    if checked.continue_final_message and checked.messages[-1].role != "assistant":
        raise ServingError(f"`continue_final_message`: the last message is not the assistant's, its role is {checked.messages[-1].role!r}")
    tools = tuple(given.get("tools", ())) if checked.tool_choice == "auto" else ()
    messages = tuple(_message(raw, each.content) for raw, each in zip(given["messages"], checked.messages, strict=True))
    chat = Chat(messages, tools, _variables(checked), checked.continue_final_message, mode)
    sampling = _sampling(checked, logprobs=(checked.top_logprobs or 0) if checked.logprobs else None)
    return _request(checked, (chat,), sampling, tools=tools, is_chat=True)


def _completion(checked: CompletionBody) -> Request:
    if checked.max_tokens == 0 and checked.max_completion_tokens is None and not checked.echo:
        raise ServingError("`max_tokens`: 0 goes with `echo`: true only, else there is nothing to answer")
    if checked.echo and checked.stream:
        raise ServingError("`echo` can't be streamed: leave out one of the two")
    if checked.best_of not in (None, checked.n):
        raise ServingError(f"`best_of`: choices aren't ranked here, send `n` for several, got {checked.best_of}")
    sampling = _sampling(checked, logprobs=checked.logprobs, echo=checked.echo)
    return _request(checked, tuple(checked.prompt), sampling)


def _request(checked: ChatBody | CompletionBody, prompts: tuple[Any, ...], sampling: Sampling, **more: Any) -> Request:
    if len(prompts) * checked.n > MOST_JOBS:
        raise ServingError(
            f"`n`: {len(prompts)} prompts with {checked.n} choices each are more than {MOST_JOBS} texts: send several requests"
        )
    return Request(prompts, sampling, checked.model, checked.n, checked.stream, checked.stream_options.include_usage, **more)


def _sampling(checked: ChatBody | CompletionBody, **more: Any) -> Sampling:
    most = checked.max_tokens if checked.max_completion_tokens is None else checked.max_completion_tokens
    return Sampling(max_tokens=most, **checked.model_dump(include=_SAMPLED), stop=tuple(checked.stop), **more)


def _variables(checked: ChatBody) -> dict[str, Any]:
    effort = checked.reasoning_effort
    asked = {} if effort is None else {"reasoning_effort": effort, **({"enable_thinking": False} if effort == "none" else {})}
    return {**asked, **checked.chat_template_kwargs}


def _message(raw: Mapping[str, Any], content: str | None) -> dict[str, Any]:
    """As it was sent, since templates write calls out, but with its content as text, and "developer" by its older name."""
    message = {key: value for key, value in raw.items() if value is not None and key not in ("refusal", "annotations")}
    if content is not None:
        message["content"] = content
    return message | ({"role": "system"} if raw["role"] == "developer" else {})
