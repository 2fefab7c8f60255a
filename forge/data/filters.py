"""Filters: filter(text, *, knobs) -> None keeps the row, else the reason to drop it, a short code for counting.

Cost on one core: `length` 170 MB of text a second or more, `quality` 12 to 15 MB (5 where words aren't spaced), `language` 4,000 rows,
since it looks at their start only, after 0.4 s to load its model.
"""

import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from forge.errors import DataError
from forge.values import Share

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Scripts that put no space between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, bopomofo, Han. Each letter counts as a word.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
UNSPACED += "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_CJK_MARKS = "\u3000-\u3004\u3008-\u3040\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"

_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORDS = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}{_CJK_MARKS}]+")
_DENSE = re.compile(f"[{UNSPACED}\uac00-\ud7af]")  # one letter says as much as several Latin ones; Hangul among them
_LETTER = re.compile(r"[^\W\d_]")
_BULLET = re.compile(r"\s*[-*+•‣◦·●○▪▫■□►➢✓]\s")
_ELLIPSIS = ("...", "…")
_LOOKED_AT = 2000  # characters; the model goes through each byte in Python


def length(
    text: str,
    *,
    min_chars: Annotated[int, Field(ge=0)] = 1,
    max_chars: Annotated[int, Field(ge=1)] | None = None,
    min_words: Annotated[int, Field(ge=0)] = 0,
) -> str | None:
    """Reasons: too_short, too_long, too_few_words. Characters without the white space at both ends.

    Words stand between white space; each letter of a script without spaces (Chinese, Japanese, Thai, …) counts as one.
    """
    if max_chars is not None and max_chars < min_chars:
        raise DataError(f"filter length: max_chars={max_chars} is below min_chars={min_chars}; raise it, or set it to null")
    chars = len(text.strip())
    if chars < min_chars:
        return "too_short"
    if max_chars is not None and chars > max_chars:
        return "too_long"
    return "too_few_words" if min_words and len(_words(text)) < min_words else None


def language(text: str, *, keep: Annotated[list[str], Field(min_length=1)], min_probability: Share = 0.5) -> str | None:
    """Keeps a text that is in one of the languages `keep` (ISO 639-1: en, de, ja, …) with at least `min_probability`.

    Reasons: language_<code>, where another language is that probable, else language_unsure. Only the first 2,000 characters are
    looked at, and a few words are rarely enough to tell. The probabilities of `keep` are added up, so ["no", "da"] keeps what is
    one or the other. A naive Bayes model over byte n-grams (Lui and Baldwin 2012), by py3langid.
    Raises DataError where py3langid is missing and for a code that its model doesn't know.
    """
    model = _identifier()
    if unknown := [code for code in keep if code not in model.labels]:
        known = ", ".join(sorted(model.labels))
        raise DataError(f"filter language: keep={unknown[0]!r} is no language of the model; take from {known}")
    probability = dict(model.rank(text[:_LOOKED_AT]))
    if sum(probability[code] for code in set(keep)) >= min_probability:
        return None
    best = next(iter(probability))  # rank() gives the most probable first
    return f"language_{best}" if probability[best] >= min_probability else "language_unsure"


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise DataError('filter language: py3langid is not installed; pip install "forge-mlx[language]"') from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def quality(
    text: str,
    *,
    min_words: Annotated[int, Field(ge=1)] = 50,
    min_word_length: Annotated[float, Field(ge=0)] | None = 2.5,
    max_word_length: Annotated[float, Field(ge=0)] | None = 10.0,
    max_symbols: Annotated[float, Field(ge=0)] | None = 0.1,
    max_bullets: Share | None = 0.9,
    max_ellipses: Share | None = 0.3,
    min_alphabetic: Share | None = 0.8,
    max_duplicate_lines: Share | None = 0.3,
    max_top_bigram: Annotated[float, Field(ge=0)] | None = 0.2,
    max_repeated: Share | None = 0.15,
) -> str | None:
    """Rules for prose after Gopher (Rae et al. 2021, A1.1 and table A1); null switches one off. Not for source code, tables or logs.

    Texts of fewer than `min_words` words are kept: a share of so few says nothing (Gopher drops these; here `length` does).
    Knob, reason and meaning; the defaults are Gopher's where nothing else is said:

        min_, max_word_length  quality_word_length      mean characters a word. Gopher's minimum is 3, near which Vietnamese lies
        max_symbols            quality_symbols          # or …, whichever is more frequent, a word
        max_bullets            quality_bullets          lines that begin with a bullet
        max_ellipses           quality_ellipses         lines that end with an ellipsis
        min_alphabetic         quality_alphabetic       words that hold a letter
        max_duplicate_lines    quality_duplicate_lines  lines that stood in the text before
        max_top_bigram         quality_top_bigram       characters in the most frequent pair of words (overlaps count twice)
        max_repeated           quality_repeated         runs of 5 words that stood before (Gopher: characters in them)

    Lines are those with text. Words stand between white space. Of scripts without spaces (Chinese, Japanese, Thai, …) each letter
    is a word, and where these are the majority runs are of 10. Neither they nor Korean words, which are short too, have a say in the
    mean length; where they are the majority it is not judged.
    """
    words = _words(text)
    if len(words) < min_words:
        return None
    if not _within(_mean_length(text, words), min_word_length, max_word_length):
        return "quality_word_length"
    lines = [line for line in text.splitlines() if line and not line.isspace()]
    if max_symbols is not None and _symbols(text) > max_symbols * len(words):
        return "quality_symbols"
    if max_bullets is not None and sum(1 for line in lines if _BULLET.match(line)) > max_bullets * len(lines):
        return "quality_bullets"
    if max_ellipses is not None and sum(line.rstrip().endswith(_ELLIPSIS) for line in lines) > max_ellipses * len(lines):
        return "quality_ellipses"
    if min_alphabetic is not None and _with_letter(words) < min_alphabetic * len(words):
        return "quality_alphabetic"
    if max_duplicate_lines is not None and len(lines) - len({line.strip() for line in lines}) > max_duplicate_lines * len(lines):
        return "quality_duplicate_lines"
    if max_top_bigram is not None and _top_bigram(words) > max_top_bigram:
        return "quality_top_bigram"
    if max_repeated is not None and _repeated(text, words) > max_repeated:
        return "quality_repeated"
    return None


def _words(text: str) -> list[str]:
    return text.split() if text.isascii() or not _UNSPACED.search(text) else _WORDS.findall(text)


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    return value is None or ((low is None or value >= low) and (high is None or value <= high))


def _mean_length(text: str, words: list[str]) -> float | None:
    judged = words if text.isascii() else [word for word in words if not _DENSE.match(word)]
    return sum(map(len, judged)) / len(judged) if 2 * len(judged) >= len(words) else None


def _symbols(text: str) -> int:
    return max(text.count("#"), sum(text.count(mark) for mark in _ELLIPSIS))


def _with_letter(words: list[str]) -> int:
    return sum(1 for word in words if word.isalpha() or _LETTER.search(word))


def _top_bigram(words: list[str]) -> float:
    """The share of the text's characters, white space left out, that the pair with the most of them holds."""
    if len(words) < 2:
        return 0.0
    pairs = Counter(pairwise(words))
    return max((len(a) + len(b)) * count if count > 1 else 0 for (a, b), count in pairs.items()) / sum(map(len, words))


def _repeated(text: str, words: list[str]) -> float:
    """The share of the runs that stood before."""
    unspaced = 0 if text.isascii() else sum(1 for word in words if _UNSPACED.match(word))
    length = 10 if 2 * unspaced > len(words) else 5
    runs = len(words) - length + 1
    return 1 - len(set(zip(*(words[start:] for start in range(length)), strict=False))) / runs if runs > 0 else 0.0
