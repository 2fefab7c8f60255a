"""Chat templates: by name or from files for tokenizers that come without one, rendered as transformers renders them.

What a template does (its header, how it ends a turn, whether it has a system role) is found out by rendering once, then kept.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from forge import paths
from forge.chat_template import MARK, SIMPLE, dated
from forge.errors import DataError
from forge.spec import Message

Span = tuple[int, int]  # first character and the one behind the last

RAISED = (TemplateError, TypeError, ValueError, LookupError)  # what a template can raise over a row

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

_NAMED = {"simple": SIMPLE, "chatml": _CHATML}
_DEFAULT = "simple"
_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


def named(template: str | None) -> str | None:
    """The jinja text of "simple", "chatml" or a .jinja file; None, the tokenizer's own template, for None. Raises DataError."""
    if template is None or template in _NAMED:
        return None if template is None else _NAMED[template]
    if not template.endswith(".jinja"):
        known = ", ".join(_NAMED)
        raise DataError(f"data.template={template}: no such template; take {known}, a .jinja file, or null for the tokenizer's own")
    try:
        return paths.given("data.template", template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"data.template={template}: can't be read ({what}); give the path of a jinja chat template") from error


def default(tokenizer: Any) -> str | None:
    """The template for a tokenizer that comes without one, said in one line; None where it has its own."""
    own = getattr(tokenizer, "chat_template", None)
    if own or getattr(tokenizer, "has_chat_template", False):  # mlx-lm's wrapper renders some models' chats in code
        return None
    print(f"forge: this tokenizer has no chat template, so it gets {_DEFAULT!r}, which ends turns with {tokenizer.eos_token}", flush=True)
    return _NAMED[_DEFAULT]


class Template:
    """A chat template. It sees `variables` (special tokens and switches).

    added: the tokenizer's added tokens, and whether each is special. ends: those that end generation. Raises DataError for what is
    no jinja. Not thread-safe.
    """

    def __init__(self, source: str, variables: Mapping[str, Any], added: Mapping[str, bool], ends: Sequence[str]):
        self._source = dated(source)
        self._variables, self._ends = dict(variables), ends
        self._blocks = bool(_GENERATION.search(source))
        self.added = any_of(token for token in added if token.strip())
        self.special = any_of(token for token, special in added.items() if special and token.strip())
        try:
            self.attempt([{"role": "user", "content": "x"}])
        except TemplateSyntaxError as error:
            raise DataError(f"the chat template is no jinja: line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[Message], tools: Sequence[Message] = (), prompt: bool = False) -> tuple[str, list[Span]]:
        """The text and its {% generation %} blocks. `prompt`: with the header that asks for an answer behind it. Raises one of RAISED."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            [[dict(message) for message in messages]],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=self._source,
            return_assistant_tokens_mask=self._blocks,
            add_generation_prompt=prompt,
            **self._variables,
        )
        (text,), blocks = rendered
        return text, blocks[0] if blocks else []

    def attempt(self, messages: Sequence[Message], tools: Sequence[Message] = (), prompt: bool = False) -> str | None:
        """The text, or None where the template raises."""
        try:
            return self.render(messages, tools, prompt)[0]
        except TemplateSyntaxError:
            raise
        except RAISED:
            return None

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message is rendered, and neither refused nor left out. Says so once where it is not.

        Some templates (Mistral's) show it only while the last turn is the user's.
        """
        asked, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
        texts = (self.attempt([{"role": "system", "content": MARK}, *turns]) for turns in ([asked], [asked, answer], [asked, answer] * 2))
        takes = all(text is not None and MARK in text for text in texts)
        if not takes:
            print("forge: the chat template has no system role, so system text goes in front of the first user turn", flush=True)
        return takes

    @cached_property
    def header(self) -> str:
        """What asks for an answer, or the end of it; empty for templates that ask with nothing of their own."""
        asked = [{"role": "user", "content": "x"}]
        plain, prompt = self.attempt(asked), self.attempt(asked, prompt=True)
        return prompt[common(plain, prompt) :] if plain is not None and prompt is not None else ""

    @cached_property
    def tail(self) -> str:
        """What follows an answer, up to and with the token that ends the turn. Says so once where there is no such token."""
        text = self.attempt([{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}]) or ""
        rest = text.partition(MARK)[2]
        if token := self.added.search(rest):
            return rest[: token.end()]
        print(
            f"forge: the chat template ends a turn with {rest.rstrip()!r}, which is no token of this tokenizer, so answers may not stop; "
            "data.template=simple ends turns with one that is",
            flush=True,
        )
        return rest.rstrip()

    @cached_property
    def turn_end(self) -> re.Pattern[str]:
        return any_of({self.tail.strip(), *self._ends} - {""})


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the words; nothing where there are none."""
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))) or "(?!)")


def common(one: str, other: str) -> int:
    """How many characters are the same in front."""
    return bisect_left(range(min(len(one), len(other))), True, key=lambda n: one[: n + 1] != other[: n + 1])
