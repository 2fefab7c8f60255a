"""Text, token ids or a chat -> the token ids that a model is given.

A chat is rendered as training renders it (forge.data), token for token: by the tokenizer's own template, without empty fields, with
the arguments of calls as objects, system text in front of the first user turn where the template has no system role, and one fixed
day for templates that write today's date, since a model answers best in the words it was trained on. Cost: a millisecond or so; chats
that begin with system text are rendered up to three times more, two turns long, to see whether the template takes it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from forge.chat_template import MARK, SIMPLE, dated
from forge.errors import ServingError

Message = Mapping[str, Any]  # role, content and what else the OpenAI API knows; the content is text
Mode = Literal["auto", "instruct", "base"]

_TAIL = 16  # tokens at the end of a prompt among which a thought is opened


@dataclass(frozen=True)
class Chat:
    """Messages, and how the template is to show them.

    tools      functions that the model may call, in the OpenAI form
    variables  what else the template sees, such as enable_thinking
    continues  the answer goes on with the last message rather than with a new turn; None: where that message is the assistant's
    mode       "auto": the tokenizer's template; "instruct": that, or the "simple" one where it has none; "base": no chat at all
    """

    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    continues: bool | None = None
    mode: Mode = "auto"


Prompt = str | Chat | tuple[Message, ...]  # text to go on from, or a chat; messages alone are a Chat of nothing else


def encode(tokenizer: Any, prompt: Prompt | list[int]) -> list[int]:
    """The ids of `prompt`, at least one. `tokenizer` is mlx_lm's wrapper. Raises ServingError where it can't be encoded.

    Text is given the special tokens (BOS) that the tokenizer itself adds; in a chat they are the template's to write.
    """
    if isinstance(prompt, str):
        ids = list(tokenizer.encode(prompt))
    elif isinstance(prompt, list):
        ids = _known(tokenizer, prompt)
    else:
        ids = _encode_chat(tokenizer, _chat(prompt))
    if not ids:
        raise ServingError("the prompt holds no token: send some text")
    return ids


def opens_thought(tokenizer: Any, prompt: Prompt | list[int], ids: Sequence[int]) -> bool:
    """Whether the prompt, encoded as `ids`, leaves the assistant in the middle of a thought, so that its answer goes on there.

    Only what the template or the assistant wrote at the end counts: what users say about such marks doesn't.
    """
    if isinstance(prompt, str | list) or not tokenizer.has_thinking:
        return False
    chat = _chat(prompt)
    said = chat.messages[-1].get("content") or "" if _continues(chat) else ""
    if said:
        return bool(said.rfind(tokenizer.think_start) > said.rfind(tokenizer.think_end))
    return bool(tokenizer.decode(list(ids[-_TAIL:])).rstrip().endswith(tokenizer.think_start))


def _chat(prompt: Chat | tuple[Message, ...]) -> Chat:
    return prompt if isinstance(prompt, Chat) else Chat(prompt)


def _known(tokenizer: Any, ids: list[int]) -> list[int]:
    """MLX reads whatever lies behind the embedding for an id beyond it."""
    size = len(tokenizer)
    for id in ids:
        if id < 0 or (id >= size and tokenizer.convert_ids_to_tokens(id) is None):
            raise ServingError(
                f"token id {id} is not in this model's vocabulary of {size} tokens: encode the prompt with its own tokenizer"
            )
    return list(ids)


def _encode_chat(tokenizer: Any, chat: Chat) -> list[int]:
    from jinja2 import TemplateError  # here, because transformers takes it only when a template is used

    _check_mode(tokenizer, chat.mode)
    try:
        template = _Template(tokenizer, chat)
        messages = template.folded([_plain(message) for message in chat.messages])
        if not _continues(chat):
            return list(template.render(messages, add_generation_prompt=True))
        return list(template.render_open(messages))
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ServingError(f"the model's chat template refuses these messages: {why}") from error


def _check_mode(tokenizer: Any, mode: Mode) -> None:
    if mode == "base":
        raise ServingError("this model is served as a base model, so `messages` can't be used: send the text as `prompt`")
    if mode == "auto" and not tokenizer.has_chat_template:
        raise ServingError("this model's tokenizer has no chat template, so `messages` can't be used: send the text as `prompt`")


def _continues(chat: Chat) -> bool:
    """Whether the last message is to be gone on with."""
    if not chat.messages or chat.messages[-1]["role"] != "assistant":
        return False
    return chat.continues is not False


class _Template:
    """The chat template of one request."""

    def __init__(self, tokenizer: Any, chat: Chat):
        self._tokenizer, self._chat = tokenizer, chat
        self._source: dict[str, str] = {}  # only where it isn't the tokenizer's own: some models' own is a function
        if not tokenizer.has_chat_template:
            self._source = {"chat_template": SIMPLE}  # as training gives one that has none
        elif tokenizer.chat_template is not None:
            own = tokenizer.get_chat_template(tools=list(chat.tools) or None)
            self._source = {"chat_template": dated(own)} if dated(own) != own else {}

    def render(self, messages: Sequence[Message], **how: Any) -> Any:
        """The ids, or with tokenize=False the text."""
        chat = self._chat
        return self._tokenizer.apply_chat_template(
            list(messages), tools=list(chat.tools) or None, **{**chat.variables, **self._source, **how}
        )

    def render_open(self, messages: Sequence[Message]) -> Any:
        """Up to the end of what the last message says."""
        last = messages[-1]
        if last.get("tool_calls"):
            raise ServingError("the last message calls a tool: add a message with the role `tool` that holds the result")
        if not last.get("content"):
            return self.render(messages[:-1], add_generation_prompt=True)
        return self.render(messages, continue_final_message=True)

    def folded(self, messages: list[Message]) -> list[Message]:
        """With system text in front of the first user turn, where the template has no system role."""
        if messages[0]["role"] != "system" or self._takes_system():
            return messages
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise ServingError("the model's chat template has no system role: let a user message follow the system message")
        return [{**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:]]

    def _takes_system(self) -> bool:
        """Whether a system message is rendered, and neither refused nor left out.

        Some templates (Mistral's) show it only while the last turn is the user's.
        """
        asked, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
        return all(
            self._shows_mark([{"role": "system", "content": MARK}, *turns]) for turns in ([asked], [asked, answer], [asked, answer] * 2)
        )

    def _shows_mark(self, messages: list[Message]) -> bool:
        from jinja2 import TemplateError

        try:
            return MARK in self._tokenizer.apply_chat_template(messages, tokenize=False, **self._source)
        except (TemplateError, TypeError, ValueError, LookupError):  # as in training
            return False


def _plain(message: Message) -> Message:
    """Without empty fields, and with the arguments of calls as objects: templates write them as JSON, and text would be quoted twice."""
    plain = {key: value for key, value in message.items() if value is not None}
    if calls := plain.get("tool_calls"):
        plain["tool_calls"] = [_with_objects(call) for call in calls]
    return plain


def _with_objects(call: Message) -> Message:
    function = call.get("function") or call
    changed = {**function, "arguments": _parsed(function.get("arguments", {}))}
    return {**call, "function": changed} if call.get("function") else changed


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
