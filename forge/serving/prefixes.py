"""Keeps what the model made of the prompts' beginnings, so that a prompt that begins the same way reads only its rest.

A prefix is kept and used in whole pieces, those that prompts are read in: the rest is then computed in the same pieces, on the same
numbers, as without, and the text is the same to the bit. Answers are not kept: they were computed a token at a time, which rounds
otherwise, and in the next turn of a chat they are the short part.

A cache that can be cut short serves every prompt that shares some pieces with it. One that can't, of a recurrent layer or a sliding
window that is full, serves those that begin with all of it, so it is kept at 1, 2, 4, 8, … pieces too.

mlx_lm's LRUPromptCache is not used: its search copies lists quadratically (0.16 s at 16,000 tokens), and it cuts anywhere.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache


@dataclass(frozen=True)
class _Kept:
    ids: np.ndarray
    cache: list[Any]
    nbytes: int
    trims: bool

    def serves(self, ids: np.ndarray, piece: int) -> int:
        """How many tokens of these."""
        length = min(len(self.ids), len(ids))
        differing = np.flatnonzero(self.ids[:length] != ids[:length])
        common = int(differing[0]) if len(differing) else length
        if self.trims:
            return common // piece * piece
        return common if common == len(self.ids) else 0


class Prefixes:
    """At most `limit` bytes; beyond it the one goes that was used longest ago. `piece`: tokens."""

    def __init__(self, limit: int, piece: int):
        self._limit = limit
        self._piece = piece
        self._kept: list[_Kept] = []  # the last used at the end

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def find(self, ids: Sequence[int]) -> tuple[list[Any] | None, int]:
        """A copy of the cache of the longest kept beginning of `ids`, and how many tokens that is."""
        wanted = np.array(ids, dtype=np.int64)
        found = [kept.serves(wanted, self._piece) for kept in self._kept]
        length = max(found, default=0)
        if length == 0:
            return None, 0
        kept = self._kept.pop(found.index(length))
        self._kept.append(kept)
        cache = copy.deepcopy(kept.cache)  # shares the memory until one is written to
        if length < len(kept.ids):
            trim_prompt_cache(cache, len(kept.ids) - length)
        return cache, length

    def offer(self, ids: Sequence[int], done: int, cache: list[Any]) -> None:
        """`cache` has read the first `done` of `ids`, a prompt without its last token. Keeps a copy where that may be of use."""
        pieces, rest = divmod(done, self._piece)
        trims = can_trim_prompt_cache(cache)
        last = len(ids) - done < self._piece
        if rest or not pieces or not (last or (not trims and pieces.bit_count() == 1)):
            return
        kept = _Kept(np.array(ids[:done], dtype=np.int64), copy.deepcopy(cache), sum(each.nbytes for each in cache), trims)
        if kept.nbytes > self._limit:
            return
        self._kept = [old for old in self._kept if not _covers(kept, old)] + [kept]
        while self.nbytes > self._limit:
            del self._kept[0]


def _covers(new: _Kept, old: _Kept) -> bool:
    """Whether `new` serves all that `old` does."""
    begins = len(old.ids) <= len(new.ids) and bool(np.array_equal(new.ids[: len(old.ids)], old.ids))
    return begins and (new.trims or len(old.ids) == len(new.ids))
