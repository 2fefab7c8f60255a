"""Files of one document each: text, code, HTML, PDF, chat XML. Memory: a few times the file, which is no larger than a row may be."""

import io
import re
import threading
import warnings

from forge.data.dialogue import from_xml
from forge.data.sources.readers.rows import Knobs, document
from forge.data.sources.readers.text import Undecodable, decode, too_large, whole
from forge.spec import BadRow, Row

_UNSEEN = ("title", "script", "style", "noscript", "template", "svg")  # elements of HTML whose content is not on the page
_MESSAGE = re.compile(r"<message\b[^<>]*\bfrom\s*=")
_HYPHEN = re.compile("[\x02\ufffe]")  # PDFium's, for one that only divides a word at the end of a line
_PDFIUM = threading.Lock()  # it is not safe to call from two threads


def text(stream: io.BufferedReader, name: str, knobs: Knobs, *, guess: bool) -> Row:
    """The text as it is, line ends too."""
    found = _decoded(stream, name, knobs, guess=guess)
    return found if isinstance(found, BadRow) else document(found, name, knobs)


def html(stream: io.BufferedReader, name: str, knobs: Knobs) -> Row:
    """The page as Markdown: headings, lists, tables and code blocks stay."""
    found = _decoded(stream, name, knobs, guess=True, declared=True)
    if isinstance(found, BadRow):
        return found
    try:
        markdown = _markdown(found)
    except (RecursionError, ValueError, AssertionError) as error:  # what the parsers raise for pages beyond them
        return BadRow(name, "broken_html", f"{type(error).__name__}: can't be parsed; save the page anew, or as text")
    if found.strip() and not markdown.strip():
        return BadRow(name, "no_text", "the page has no text (a script may put it there); save it as text from a browser")
    return document(markdown, name, knobs)


def pdf(path: str, name: str, knobs: Knobs) -> Row:
    """The pages' text with a blank line between them. Raises OSError where the file can't be opened."""
    with open(path, "rb"), _PDFIUM:
        found = _pdf_text(path, name, knobs.limit)
    return found if isinstance(found, BadRow) else document(found, name, knobs)


def xml(stream: io.BufferedReader, name: str, knobs: Knobs) -> Row | None:
    """The chat of <message from=…> elements; None for XML of another kind."""
    found = _decoded(stream, name, knobs, declared=True)
    if isinstance(found, BadRow):
        return found
    if not _MESSAGE.search(found):
        return None
    return from_xml(found, name, name)


def _decoded(stream: io.BufferedReader, name: str, knobs: Knobs, *, guess: bool = False, declared: bool = False) -> str | BadRow:
    data = whole(stream, knobs.limit)
    if data is None:
        return too_large(name, knobs.limit)
    try:
        return decode(data, knobs.encoding, guess=guess, declared=declared)
    except Undecodable as error:
        return BadRow(f"{name}:{error.line}", "not_utf8", error.detail)


def _markdown(page: str) -> str:
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup
    from markdownify import ATX, MarkdownConverter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wonders about pages that look like a file name or like XML
        try:
            soup = BeautifulSoup(page, "html.parser")
        except ParserRejectedMarkup as error:
            raise ValueError(str(error)) from error
    for element in soup(_UNSEEN):
        element.decompose()
    for image in soup("img", src=re.compile("^data:")):
        image.replace_with(str(image.get("alt", "")))
    converter = MarkdownConverter(heading_style=ATX, bullets="-", escape_asterisks=False, escape_underscores=False)
    return converter.convert_soup(soup)


def _pdf_text(path: str, name: str, limit: int) -> str | BadRow:
    from pypdfium2 import PdfDocument, PdfiumError

    pages: list[str] = []
    try:
        with PdfDocument(path) as file:
            for number in range(len(file)):
                page = file[number]
                pages.append(_HYPHEN.sub("", page.get_textpage().get_text_bounded()).replace("\r\n", "\n").strip())
                page.close()
                if sum(map(len, pages)) > limit:
                    return too_large(name, limit)
    except PdfiumError as error:
        if "password" in str(error).lower():
            return BadRow(name, "broken_pdf", "is encrypted; save it without a password")
        return BadRow(name, "broken_pdf", f"{error} Print or save it anew, or as text".replace("\n", " "))
    if not any(pages):
        return BadRow(name, "no_text", "no page has text (scanned?); run it through text recognition (OCR) first")
    return "\n\n".join(page for page in pages if page)
