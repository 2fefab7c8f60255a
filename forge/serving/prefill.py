"""Reading a prompt, a piece at a time, so that the requests beside it wait for no more than a piece.

Each prompt is read by itself: prompts of several lengths in one batch would have to be padded, and not every architecture ignores
padding. The last token is left to the batch that the row then joins, whose first step draws the first new token.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from forge.serving.batch import Score, landed
from forge.serving.faults import ModelFailed
from forge.serving.prefixes import Prefixes
from forge.serving.sample import scores

NOT_FINITE = (
    "the model computed numbers that are not finite (NaN or infinity): its weights are damaged, or too large for their number format; "
    "check the folder, or serve a model in fp32 or bf16"
)


class Prefill:
    """`logprobs`: score the prompt's own tokens too, with so many likeliest each; it then has to be read as a whole."""

    def __init__(self, model: Any, ids: Sequence[int], piece: int, prefixes: Prefixes, logprobs: int | None):
        self.scores: list[Score] = []  # of ids[1:]
        self._model, self._ids, self._piece = model, ids, piece
        self._prefixes, self._logprobs = prefixes, logprobs
        cache, self.cached = (None, 0) if logprobs is not None else prefixes.find(ids[:-1])
        self.cache: list[Any] = make_prompt_cache(model) if cache is None else cache
        self._done = self.cached

    @property
    def finished(self) -> bool:
        return self._done >= len(self._ids) - 1

    def step(self) -> int:
        """Reads the next piece; returns its number of tokens. Raises ModelFailed where scores are not finite."""
        end = min(self._done + self._piece, len(self._ids) - 1)
        logits_1TV = self._model(mx.array([list(self._ids[self._done : end])], dtype=mx.uint32), cache=self.cache)
        if self._logprobs is not None:
            self._score(logits_1TV[0], self._ids[self._done + 1 : end + 1], self._logprobs)
        mx.eval([each.state for each in self.cache])
        read, self._done = end - self._done, end
        self._prefixes.offer(self._ids[:-1], end, self.cache)
        mx.clear_cache()
        return read

    def _score(self, logits_TV: mx.array, targets: Sequence[int], most: int) -> None:
        logits_TV = logits_TV.astype(mx.float32)
        norms_T1 = mx.logsumexp(logits_TV, axis=-1, keepdims=True)
        if not mx.all(mx.isfinite(norms_T1)).item():
            raise ModelFailed(NOT_FINITE)
        self.scores += landed(*scores(logits_TV - norms_T1, mx.array(list(targets)), most))
