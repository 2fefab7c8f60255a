"""Dialogues written as text: XML messages, and transcripts in which a line begins with who speaks. Pure; linear in the text."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.parsers import expat

from forge.data.turns import ROLES, Refused, check, read, text
from forge.errors import DataError
from forge.spec import BadRow, Conversation, Row

_ATTRIBUTES = ("from", "role", "name", "tool_call_id")
# Possessive: what was passed over once is not tried again in another way.
_FIRST_IS_A_MESSAGE = re.compile(r"(?:\s+|<\?.*?\?>|<!--.*?-->)*+<message[\s/>]", re.DOTALL)
_DECLARATION = re.compile(r"\A\s*<\?xml\s.*?\?>", re.DOTALL)


def from_xml(xml: str, id: str, origin: str) -> Row:
    """The conversation in `<conversation><message from="user">…</message>…</conversation>`, or in such messages alone.

    `from` or `role` says who speaks, `name` and `tool_call_id` are kept. White space around a message is layout and left out, save in
    CDATA. A DOCTYPE is refused, so that no entity is expanded but those of XML itself and nothing else is opened.
    Reasons of a BadRow: broken_xml (not well-formed, or a DOCTYPE), wrong_xml (other elements, or text outside messages), and those of
    forge.data.turns.
    """
    try:
        turns = read(_messages(text(xml.removeprefix("\ufeff"), "the XML")))
        check(turns)
    except Refused as refused:
        return BadRow(origin, refused.reason, refused.detail)
    return Conversation(id, tuple(turns), origin)


def from_speakers(transcript: str, id: str, origin: str, speakers: Mapping[str, str], pattern: str | None = None) -> Row:
    """The conversation in a plain-text transcript. `speakers` gives each name its role.

    A turn begins on a line with `Name:` and runs up to the next such line; a name that `speakers` hasn't is text like any other.
    `pattern`, a regular expression for the beginning of a line, with the groups `speaker` and `text`, takes its place; a name that
    it finds and `speakers` hasn't is a BadRow. Turns of one role that follow each other are one, lines between. Empty lines at both
    ends of a turn are left out.
    Reasons of a BadRow: no_speaker, text_before_speaker, unknown_role, and those of forge.data.turns. Raises DataError for no
    speakers, a role that isn't known, a pattern that can't be compiled and one without the groups.
    """
    begins = _compiled(speakers, pattern)
    try:
        turns = _joined(_spoken(text(transcript.removeprefix("\ufeff"), "the transcript"), begins, speakers))
        check(turns)
    except Refused as refused:
        return BadRow(origin, refused.reason, refused.detail)
    return Conversation(id, tuple(turns), origin)


def _compiled(speakers: Mapping[str, str], pattern: str | None) -> re.Pattern[str]:
    if not speakers:
        raise DataError("speakers is empty; give each name its role, such as {Anna: user, Bot: assistant}")
    for name, role in speakers.items():
        if role not in ROLES:
            raise DataError(f"speakers.{name}={role}: no such role; choose one of {', '.join(ROLES)}")
    if pattern is None:
        names = "|".join(re.escape(name) for name in speakers)
        return re.compile(rf"(?P<speaker>{names}):[ \t]*(?P<text>.*)")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"speaker pattern {pattern!r}: {error}; mend the regular expression") from error
    if missing := [group for group in ("speaker", "text") if group not in compiled.groupindex]:
        raise DataError(f"speaker pattern {pattern!r}: no group {' nor '.join(missing)}; write (?P<speaker>…) and (?P<text>…)")
    return compiled


def _spoken(transcript: str, begins: re.Pattern[str], speakers: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """(role, lines), in order; the role is that of the line's speaker."""
    role, lines, known = "", [], ", ".join(speakers)
    for number, line in enumerate(re.split(r"\r\n|\r|\n", transcript), 1):
        match = begins.match(line)
        if match is None or match["speaker"] is None:
            if not role and line.strip():
                reason = "text_before_speaker" if any(map(begins.match, transcript.splitlines())) else "no_speaker"
                raise Refused(reason, f"line {number} stands before any speaker's ({known}); name its speaker, or take it out")
            lines.append(line)
            continue
        if role:
            yield role, lines
        name = match["speaker"].strip()
        if name not in speakers:
            raise Refused("unknown_role", f"line {number}: {name!r:.40} is none of the speakers ({known}); add it, or narrow the pattern")
        role, lines = ROLES[speakers[name]], [match["text"] or ""]
    if not role:
        raise Refused("no_speaker", "no line begins with a speaker's name; add the names, or drop the row")
    yield role, lines


def _joined(spoken: Iterator[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for role, lines in spoken:
        while lines and not lines[-1].strip():
            lines.pop()
        said = re.sub(r"\A(?:[ \t]*\n)+", "", "\n".join(lines))
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n{said}"
        else:
            turns.append({"role": role, "content": said})
    return turns


def _messages(xml: str) -> list[dict[str, str]]:
    """The turns of the messages. Raises Refused with line and column."""
    reader = _Reader()
    xml = _DECLARATION.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), xml)  # it may only stand first; lines keep their numbers
    try:
        if _FIRST_IS_A_MESSAGE.match(xml):
            reader.parser.Parse("<conversation>", False)  # XML has one root
            reader.ahead = len("<conversation>")
            reader.parser.Parse(xml, False)
            reader.parser.Parse("</conversation>", True)
        else:
            reader.parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise Refused("broken_xml", f"{reader.place(error.lineno, error.offset)}: {expat.ErrorString(error.code)}; mend the XML") from error
    return reader.turns


class _Reader:
    """Collects messages while expat reads. `ahead`: columns of the first line that are not the user's."""

    def __init__(self) -> None:
        self.turns: list[dict[str, str]] = []
        self.ahead = 0
        self._open: list[str] = []
        self._parts: list[tuple[bool, str]] = []  # (in CDATA, text)
        self._in_cdata = False
        self.parser = expat.ParserCreate("utf-8")
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartCdataSectionHandler = lambda: self._cdata(True)
        self.parser.EndCdataSectionHandler = lambda: self._cdata(False)

    def place(self, line: int, column: int) -> str:
        return f"line {line}, column {column + 1 - (self.ahead if line == 1 else 0)}"

    def _refuse(self, reason: str, problem: str) -> None:
        raise Refused(reason, f"{self.place(self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber)}: {problem}")

    def _doctype(self, *_: Any) -> None:
        self._refuse("broken_xml", "a DOCTYPE could open files and expand without end; take it out")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        expected = ("conversation", "message")[len(self._open)] if len(self._open) < 2 else None
        if expected is None:
            self._refuse("wrong_xml", f"<{tag}> in a message; write &lt;{tag}&gt; or CDATA where it is text")
        if tag != expected:
            self._refuse("wrong_xml", f"<{tag}> where <{expected}> has to stand; write <conversation> with <message from=…> in it")
        self._open.append(tag)
        if tag == "message":
            self.turns.append({key: value for key, value in attributes.items() if key in _ATTRIBUTES})
            self._parts = []

    def _end(self, tag: str) -> None:
        self._open.pop()
        if tag == "message":
            self.turns[-1]["content"] = _trimmed(self._parts)

    def _text(self, said: str) -> None:
        if len(self._open) == 2:
            self._parts.append((self._in_cdata, said))
        elif said.strip():
            self._refuse("wrong_xml", "what is written up to here stands in no message; put it into one, or take it out")

    def _cdata(self, inside: bool) -> None:
        self._in_cdata = inside
        if len(self._open) == 2:
            self._parts.append((True, ""))  # an edge that trimming stops at


def _trimmed(parts: list[tuple[bool, str]]) -> str:
    """The text without white space at the ends, so far as it stands outside CDATA."""
    edges = [n for n, (cdata, _) in enumerate(parts) if cdata]
    before, after = (edges[0], edges[-1] + 1) if edges else (len(parts), len(parts))
    head, inner, tail = ("".join(said for _, said in some) for some in (parts[:before], parts[before:after], parts[after:]))
    return head.lstrip() + inner + tail.rstrip() if edges else head.strip()
