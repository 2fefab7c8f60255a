"""A request's answer, growing token by token: its text, what of it may be shown already, and when it ends."""

from collections.abc import Sequence
from typing import Any

from forge.serving.batch import Score
from forge.serving.contract import Completion, Piece, Reason, Sampling, Token
from forge.serving.decode import Names, Text

_LEAST = -9999.0  # for minus infinity, which JSON can't hold; OpenAI's value


class Reply:
    """`most`: tokens. `ends`: the tokens that end a text. `prompt`, `cached` and `thinking` are for whoever reads the completion."""

    def __init__(self, tokenizer: Any, names: Names, ends: frozenset[int], ids: Sequence[int], sampling: Sampling, most: int):
        self.reason: Reason | None = "length" if most == 0 else None
        self.prompt: tuple[Token, ...] = ()
        self.cached = 0
        self.thinking = False
        self.generated = 0
        self._names, self._ends, self._sampling, self._most = names, ends, sampling, most
        self._prompt_tokens = len(ids)
        self._text = Text(tokenizer, ids)
        self._given = 0  # characters
        self._tokens: list[tuple[int, Token]] = []  # with where each begins in the text
        self._released = 0

    def add(self, token: int, score: Score | None) -> Piece | None:
        """Sets `reason` where this token ends the answer. Returns what can be shown now."""
        text, stops = self._text, self._sampling.stop
        self.generated += 1
        ended, last = token in self._ends, self.generated >= self._most
        if score is not None:
            self._tokens.append((len(text.text), named(self._names, token, score)))
        if not ended:
            text.add(token)
        if ended or last:
            text.finish()
        cut = text.find(stops)
        if cut is not None or ended:
            self.reason = "stop"
        elif last:
            self.reason = "length"
        if cut is not None:
            text.text = text.text[:cut]
            self._tokens = [(at, token) for at, token in self._tokens if at < cut]
        return self._release(len(text.text) - (0 if self.reason else text.undecided(stops)))

    def completion(self) -> Completion:
        return Completion(
            text=self._text.text,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self.generated,
            finish_reason=self.reason or "length",
            tokens=tuple(token for _, token in self._tokens),
            prompt=self.prompt,
            cached_tokens=self.cached,
            thinking=self.thinking,
        )

    def _release(self, upto: int) -> Piece | None:
        shown = self._text.text[self._given : upto]
        until = len(self._tokens)
        if not self.reason:
            until = next((i for i in range(self._released, until) if self._tokens[i][0] >= upto), until)
        tokens = tuple(token for _, token in self._tokens[self._released : until])
        self._given, self._released = upto, until
        return Piece(shown, tokens, self.thinking) if shown or tokens else None


def named(names: Names, token: int, score: Score | None) -> Token:
    """With the texts that go with the ids."""
    if score is None:
        return Token(token, names(token))
    top = tuple((names(other), max(logprob, _LEAST)) for other, logprob in score.top)
    return Token(token, names(token), max(score.logprob, _LEAST), top)
