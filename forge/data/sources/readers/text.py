"""Bytes to text: opening, bounded reading, encodings, and what no text may hold. Memory: twice the largest row that is let in."""

import codecs
import io
import re
from collections.abc import Iterator

from forge.spec import BadRow

_CHUNK = 1 << 20  # bytes
_MARKS = (  # those of UTF-32 first: one of them starts with one of UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NUL = ("nul", "there is a NUL character in the text; take it out, or leave the row out")
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)
_SAMPLE = 4096  # bytes that a guess is made from: lines that are not ASCII
_NOT_WESTERN = re.compile("[^\x00-\x7f\xa0¡¿§©®°·«»\u2018\u2019“”–—…•™€£àáâãäåæçèéêëìíîïñòóôöøùúûüÿœßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖØÙÚÛÜŸŒ]")


class Undecodable(Exception):
    """`line` counts from 1; `detail` says what is wrong and what to do."""

    def __init__(self, line: int, detail: str):
        super().__init__(detail)
        self.line, self.detail = line, detail


def opened(path: str, compression: str | None) -> io.BufferedReader:
    """The file's bytes, decompressed where `compression` is gzip or zstd. Raises OSError here and, for broken ones, while it is read."""
    stream: io.BufferedReader = io.BufferedReader(io.FileIO(path))
    if compression is None:
        return stream
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(stream), compression), _CHUNK)


def whole(stream: io.BufferedReader, limit: int) -> bytes | None:
    """All that is left, or None where that is more than `limit` bytes; then no more than that has been read."""
    parts, size = [], 0
    while part := stream.read(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > limit:
            return None
    return b"".join(parts)


def lines(stream: io.BufferedReader, limit: int) -> Iterator[bytes | None]:
    """Each line with its end; None in place of one of more than `limit` bytes, which is passed over in pieces."""
    while line := stream.readline(limit + 2):
        if len(line) <= limit or line.endswith(b"\r\n") or (line.endswith(b"\n") and len(line) == limit + 1):
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_CHUNK)
            yield None


def line_encoding(stream: io.BufferedReader, encoding: str | None) -> str:
    """What the lines are written in; a byte-order mark is read over. Raises Undecodable where a line does not end with the byte 10."""
    mark = marked(stream.peek(4)[:4])
    if mark:
        stream.read(len(mark[0]))
    name = mark[1] if mark else encoding or "utf-8"
    if "\n".encode(name) != b"\n":
        raise Undecodable(1, f"records are read line by line, which {name.upper()} does not allow; convert the file to UTF-8")
    return name


def marked(head: bytes) -> tuple[bytes, str] | None:
    """The byte-order mark that `head` starts with, and the encoding that it stands for."""
    return next(((mark, encoding) for mark, encoding in _MARKS if head.startswith(mark)), None)


def decode(data: bytes, encoding: str | None, *, declared: bool = False, guess: bool = False) -> str:
    """The text of a document, all of it but for a byte-order mark. Raises Undecodable.

    A byte-order mark decides; then `encoding`, where given; then UTF-8; then, with `declared`, the charset that HTML or XML names in
    its first 1,024 bytes; then, with `guess`, a confident guess. All are strict.
    """
    if mark := marked(data):
        return strict(data[len(mark[0]) :], mark[1])
    try:
        return strict(data, encoding or "utf-8")
    except Undecodable:
        if encoding:
            raise
        named = _DECLARED.search(data[:1024]) if declared else None
        if named and (text := _attempt(data, named[1].decode())) is not None:
            return text
        if guess and (text := _guess(data)) is not None:
            return text
        raise


def strict(data: bytes, encoding: str) -> str:
    """Raises Undecodable."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        detail = f"byte {error.start} is not {encoding.upper()}; convert the file to UTF-8, or set encoding to the one that it has"
        raise Undecodable(line, detail) from error


def flaw(text: str) -> tuple[str, str] | None:
    """Reason and detail where a text has what none may hold: NUL, half a surrogate pair (which some encodings can give)."""
    if "\0" in text:
        return NUL
    if not text.isascii() and not _encodable(text):
        return "not_utf8", "there is half a surrogate pair in the text; convert the file to UTF-8"
    return None


def too_large(origin: str, limit: int) -> BadRow:
    return BadRow(origin, "too_large", f"is more than {limit / 1e6:g} MB; split it, or raise max_row_mb")


def _attempt(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (LookupError, UnicodeError):
        return None


def _guess(data: bytes) -> str | None:
    """The text where charset-normalizer leaves no doubt.

    Its plausible readings are those of at most 10 % mess and at least 20 % of a language's letters. There is no doubt where they all give
    one text, or where Windows-1252 is one of them and gives nothing but letters and marks of Western European languages.
    """
    from charset_normalizer import from_bytes

    sample = b""
    for line in io.BytesIO(data):
        if not line.isascii():
            sample += line[: _SAMPLE - len(sample)]
        if len(sample) == _SAMPLE:
            break
    readings = [m for m in from_bytes(sample, steps=1, chunk_size=_SAMPLE) if m.chaos <= 0.1 and m.coherence >= 0.2]
    if any("cp1252" in (m.encoding, *m.could_be_from_charset) for m in readings):
        text = _attempt(data, "cp1252")
        if text is not None and not _NOT_WESTERN.search(text):
            return text
    return _attempt(data, readings[0].encoding) if len({str(m) for m in readings}) == 1 else None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
