"""Token ids -> text, one token at a time, and the search for stop strings in it."""

from collections.abc import Sequence
from typing import Any

# Enough of the prompt for the tokenizer to decode a completion's first token as a continuation of it.
_CONTEXT = 8


class Text:
    """The text of a completion so far.

    mlx_lm's detokenizers drop a completion's leading space. This one decodes each token together with those before it, the
    end of the prompt included, and adds what is new; bytes of an incomplete character wait for the rest.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]):
        self.text = ""
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_CONTEXT:])
        self._start, self._done = 0, len(self._ids)  # decode from _start; the text of the ids before _done is out
        self._searched = 0

    def add(self, token: int) -> None:
        self._ids.append(token)
        fresh = self._fresh()
        if fresh and not fresh.endswith("\ufffd"):
            self._take(fresh)

    def finish(self) -> None:
        """Give out what still waits, incomplete characters as U+FFFD."""
        self._take(self._fresh())

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
        longest = min(max(map(len, stops), default=1) - 1, len(self.text))
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(self.text[-n:]) for stop in stops)), 0)

    def _fresh(self) -> str:
        before = self._decode(self._ids[self._start : self._done])
        return self._decode(self._ids[self._start :])[len(before) :]

    def _take(self, fresh: str) -> None:
        self.text += fresh
        self._start, self._done = self._done, len(self._ids)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


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
