"""Token ids -> text, one token at a time, and the search for stop strings in it."""

from collections.abc import Sequence
from typing import Any

# Enough of the prompt for the tokenizer to decode a completion's first token as a continuation of it.
_CONTEXT = 8

# Tokens that are decoded together at most, and those of them that are decoded once more after that. A character has four bytes, which are
# four tokens at most, and until they are whole they are one U+FFFD each or fewer: what stands before the last three is no beginning.
_MOST, _AGAIN = 64, 16
_UNSURE = 3


class Text:
    """The text of a completion so far.

    mlx_lm's detokenizers drop a completion's leading space. This one decodes each token together with those before it, the
    end of the prompt included, and adds what is new; bytes of an incomplete character wait for the rest. Costs the decoding of a few
    tokens each, and of 64 in a long run of bytes that are no text.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]):
        self.text = ""
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_CONTEXT:])
        self._given = len(self._decode(self._ids))  # characters of _ids that are out
        self._done = len(self._ids)  # ids that were there when text was last given out
        self._searched = 0

    def add(self, token: int) -> None:
        self._ids.append(token)
        fresh = self._decode(self._ids)[self._given :]
        if fresh and not fresh.endswith("\ufffd"):
            self._take(fresh, self._ids[self._done :])
        elif len(self._ids) >= _MOST:
            self._settle(fresh)

    def finish(self) -> None:
        """Give out what still waits, incomplete characters as U+FFFD."""
        self._take(self._decode(self._ids)[self._given :], self._ids[self._done :])

    def find(self, stops: Sequence[str]) -> int | None:
        """Where the first of the stop strings begins. Looks at text added since the last call, and at stop strings that end there."""
        if not stops:
            return None
        start = max(0, self._searched - max(map(len, stops)) + 1)
        self._searched = len(self.text)
        found = [at for stop in stops if (at := self.text.find(stop, start)) >= 0]
        return min(found, default=None)

    def undecided(self, stops: Sequence[str]) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        return max((_overlap(self.text, stop) for stop in stops), default=0)

    def _take(self, fresh: str, ids: list[int]) -> None:
        """`fresh` is out, and `ids` are to be decoded with the next token."""
        self.text += fresh
        self._ids, self._given, self._done = ids, len(self._decode(ids)), len(ids)

    def _settle(self, fresh: str) -> None:
        """Give out all but what may be the beginning of a character, and go on from the last tokens."""
        ids, unsure = self._ids[-_AGAIN:], fresh[-_UNSURE:]
        kept = len(unsure) if self._decode(ids).endswith(unsure) else 0  # some decoders judge a run of bytes as a whole
        self._take(fresh[: len(fresh) - kept], ids)
        self._given -= kept

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with, and goes on after."""
    at = max(0, len(text) - len(stop) + 1)
    while (at := text.find(stop[:1], at)) >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at += 1
    return 0


class Names:
    """The text of each token by itself, as it would stand within a text: with the space in front that many tokens hold."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        plain = tokenizer.encode("a", add_special_tokens=False)
        self._before = list(plain[-1:])
        self._skip = len(self._decode(self._before))

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._decode([*self._before, token])[self._skip :]
        return self._known[token]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
