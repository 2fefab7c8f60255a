"""One answer against one reference: exact match and word F1, as in SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1).

Both are normalised first, as its official script does: lower case, ASCII punctuation out, the English articles out, white space to
single spaces. `json.loads` is one word, jsonloads.
"""

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """ "The  Cat, sat!" -> "cat sat"."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, reference: str) -> float:
    """1.0 where they are the same once normalised, else 0.0."""
    return float(normalised(text) == normalised(reference))


def f1(text: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the normalised words, each counted as often as it stands.

    "cat sat" against "the cat sat down": 2 shared of 2 and of 3, so 2 · 1 · 2/3 / (1 + 2/3) = 0.8. Two empty texts are equal: 1.0.
    """
    words, expected = normalised(text).split(), normalised(reference).split()
    if not words or not expected:
        return float(words == expected)
    shared = (Counter(words) & Counter(expected)).total()
    return 2 * shared / (len(words) + len(expected))
