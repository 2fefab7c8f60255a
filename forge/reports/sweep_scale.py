"""Where the values of a swept key stand on an axis from 0 to 1: numbers evenly or by their logarithm, words one by one."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.ticker import MaxNLocator

from forge.reports import curves

UNSET = "–"  # where a child has no value for the key
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?) ?(%|[A-Za-z]*)")
_WORD = 0.1  # of the axis, for each word beside numbers


def number(text: str | None) -> tuple[float, str] | None:
    """The number and its unit: "3e-4", "10 %", "200steps"; None for all else."""
    found = _NUMBER.fullmatch(text.strip()) if text else None
    value = float(found[1].replace("_", "")) if found else math.inf
    return (value, found[2]) if found and math.isfinite(value) else None


@dataclass(frozen=True)
class Scale:
    """`typed`: each number with the text that it was first typed as, ascending. `words`: what is no number, below the numbers."""

    key: str
    typed: tuple[tuple[float, str], ...]
    words: tuple[str, ...]
    log: bool

    @classmethod
    def of(cls, values: Sequence[str | None], key: str) -> "Scale":
        """Numbers, when two or more differ, with one unit; next to them up to three words, such as null. Else all are words."""
        given = dict.fromkeys(UNSET if value is None else value for value in values)
        numbers = {text: found for text in given if (found := number(text))}
        words = [text for text in given if text not in numbers]
        typed: dict[float, str] = {}
        for text, (value, _) in numbers.items():
            typed.setdefault(value, text)
        if len(typed) < 2 or len({unit for _, unit in numbers.values()}) > 1 or len(words) > 3:
            return cls(key, (), tuple(given), False)
        return cls(key, tuple(sorted(typed.items())), tuple(words), _spans_decades(sorted(typed)))

    def place(self, value: str | None) -> float:
        text = UNSET if value is None else value
        found = number(text)
        if self.typed and text not in self.words and found:
            return self.place_of(found[0])
        if self.typed:
            return self.words.index(text) * _WORD
        return self.words.index(text) / (len(self.words) - 1) if len(self.words) > 1 else 0.5

    def place_of(self, value: float) -> float:
        floor = len(self.words) * _WORD
        low, high, at = (self._stretch(v) for v in (self.typed[0][0], self.typed[-1][0], value))
        return floor + (1 - floor) * (at - low) / (high - low)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """(place, label): the values themselves while they are few, else round numbers; at most about `most`, never crowded."""
        words = [(self.place(word), word) for word in self.words]
        if not self.typed:
            return _apart(words, 1 / most)
        if len(self.typed) <= most:
            return words + _apart([(self.place_of(value), text) for value, text in self.typed], 1 / most)
        low, high = self.typed[0][0], self.typed[-1][0]
        rounds = curves.log_ticks(low, high) if self.log else [v for v in MaxNLocator(5).tick_values(low, high) if low <= v <= high]
        return words + [(self.place_of(value), say(value)) for value in rounds]

    def groups(self, values: Sequence[str | None], most: int) -> tuple[list[str], list[int]]:
        """Labels in the axis's order, and each value's group: one a value while they are `most`, else equal ranges of the numbers."""
        texts = [UNSET if value is None else value for value in values]
        if len(self.typed) <= most:
            labels = [*self.words, *(text for _, text in self.typed)]
            rank = {word: i for i, word in enumerate(self.words)}
            at = {value: len(self.words) + i for i, (value, _) in enumerate(self.typed)}
            return labels, [rank[text] if text in rank else at[number(text)[0]] for text in texts]  # type: ignore[index]
        ends = np.linspace(self._stretch(self.typed[0][0]), self._stretch(self.typed[-1][0]), most + 1)
        edges = 10**ends if self.log else ends
        labels = [*self.words, *(f"{say(float(f'{a:.2g}'))} … {say(float(f'{b:.2g}'))}" for a, b in pairwise(edges))]
        floor = len(self.words) * _WORD
        inside = [int((self.place(text) - floor) / (1 - floor) * most) for text in texts]
        return labels, [
            self.words.index(text) if text in self.words else len(self.words) + min(most - 1, at)
            for text, at in zip(texts, inside, strict=True)
        ]

    def _stretch(self, value: float) -> float:
        return math.log10(value) if self.log else value


def say(value: float) -> str:
    """3e-4, 0.25, 12k."""
    return curves.scientific(float(f"{value:.2g}")) if 0 < abs(value) < 0.01 else curves.compact(value)


def _spans_decades(ascending: list[float]) -> bool:
    """Ten times or more from the first to the last, and by logarithm their middle lies nearer to that of the axis."""
    low, high = ascending[0], ascending[-1]
    if low <= 0 or high < 10 * low:
        return False
    even = np.mean([(value - low) / (high - low) for value in ascending])
    stretched = np.mean([math.log(value / low) / math.log(high / low) for value in ascending])
    return bool(abs(stretched - 0.5) <= abs(even - 0.5) + 1e-9)


def _apart(ticks: list[tuple[float, str]], gap: float) -> list[tuple[float, str]]:
    """Without those too near to the one before, or to the last, which stays."""
    kept = ticks[:1]
    for tick in ticks[1:]:
        if tick[0] - kept[-1][0] >= gap - 1e-9 and (tick is ticks[-1] or ticks[-1][0] - tick[0] >= gap - 1e-9):
            kept.append(tick)
    return kept
