"""Where a user's turn stands in a chat that a template has rendered, so that the question alone can be read. Costs a rendering or two."""

from dataclasses import dataclass
from typing import Any

from forge.data.templates import RAISED, common

_WORDS = ("\U0010fff0", "\U0010fff1", "\U0010fff2", "\U0010fff3")  # private use, in no font and so in no template


@dataclass(frozen=True)
class Turns:
    """What a template writes before a user's words and behind them; both empty where that can't be told."""

    before: str
    behind: str

    @classmethod
    def of(cls, tokenizer: Any) -> "Turns":
        """Of mlx-lm's wrapper of a tokenizer: what stands in the same way around two users' words, but for white space.

        <|user|>\\nA\\n<|assistant|>\\nB<end>\\n<|user|>\\nC\\n<|assistant|>\\nD gives <|user|> and <|assistant|>.
        """
        if not tokenizer.has_chat_template:
            return cls("", "")
        roles = ("user", "assistant") * 2
        messages = [{"role": role, "content": word} for role, word in zip(roles, _WORDS, strict=True)]
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
            first, between, second, third, _ = _split(text)
        except RAISED:
            return cls("", "")
        same = common(first[::-1], second[::-1])
        return cls(second[len(second) - same :].strip(), between[: common(between, third)].strip())

    def last(self, prompt: str) -> str:
        """The last user's words in a prompt; empty where there are none to be told."""
        if not self.before or not self.behind:
            return ""
        _, found, rest = prompt.rpartition(self.before)
        return rest.rpartition(self.behind)[0].strip() if found else ""


def _split(text: str) -> list[str]:
    """What stands around the four words. Raises ValueError where one is missing or stands twice."""
    parts = []
    for word in _WORDS:
        part, text = text.split(word)
        parts.append(part)
    return [*parts, text]
