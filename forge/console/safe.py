"""Text from outside for the terminal: nothing in it is an order."""

import unicodedata

_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")  # they would turn what stands beside
_KEPT = frozenset("\n\t")


def plain(text: str) -> str:
    """Without control characters, so that escape sequences are letters, and without marks that turn the direction; halves of characters as
    U+FFFD. It looks at each character alone, so pieces of a text may be given one by one."""
    return "".join(map(_plain, text)) if not text.isascii() or not text.isprintable() else text


def whole(text: str) -> str:
    """What can be encoded: half a character, from a terminal that is not UTF-8, is U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _plain(char: str) -> str:
    if char in _KEPT:
        return char
    kind = unicodedata.category(char)
    if kind == "Cs":
        return "\ufffd"
    if kind in ("Zl", "Zp"):
        return "\n"
    return "" if kind == "Cc" or char in _DIRECTIONS else char
