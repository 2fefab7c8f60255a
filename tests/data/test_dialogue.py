"""XML messages and plain-text transcripts."""

import re
from typing import Any

import pytest

from forge.data.dialogue import from_speakers, from_xml
from forge.errors import DataError
from forge.spec import BadRow, Conversation

SPEAKERS = {"Ann": "user", "Bot": "gpt", "Bot 2": "assistant", "Note": "system"}
TWO = '<message from="user">Hi</message>\n<message role="bot" to="all">Hello</message>'


def turns(row: Any) -> list[tuple[str, str]]:
    assert isinstance(row, Conversation), row
    return [(message["role"], message["content"]) for message in row.messages]


@pytest.mark.parametrize(
    "text",
    [
        TWO,
        f"<conversation>{TWO}</conversation>",
        f'\ufeff<?xml version="1.0" encoding="latin-1"?>\n<!-- a\n<message> -->\n{TWO}\n',
        f'\n<?xml version="1.0"?>\n<conversation>\n  {TWO}\n<!-- end --></conversation>\n',
        TWO.replace("Hi", "\n    Hi\n  ").replace("Hello", "\t<![CDATA[Hello]]>\n"),
        TWO.replace("Hi", "H&#105;").replace("Hello", "He<![CDATA[ll]]>o"),
    ],
    ids=["bare", "rooted", "declared and bare", "declared and rooted", "layout", "entities and CDATA"],
)
def test_messages_are_read_from_xml(text: str) -> None:
    assert from_xml(text, "i", "f.xml") == Conversation(
        "i", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}), "f.xml"
    )


def test_entities_and_cdata_are_what_was_meant() -> None:
    asked = '<message from="user">a &lt;b&gt; &amp;amp; é\n\n日本</message>'
    text = f'{asked}<message from="gpt">\n<![CDATA[  if a < b:\n    <b>&amp;</b>\n]]>\n</message>'
    assert turns(from_xml(text, "i", "f")) == [("user", "a <b> &amp; é\n\n日本"), ("assistant", "  if a < b:\n    <b>&amp;</b>\n")]


def test_a_long_message_is_one_text() -> None:
    long = "word &amp; " * 10_000
    assert turns(from_xml(TWO.replace("Hi", long), "i", "f"))[0][1] == ("word & " * 10_000).rstrip()


def test_an_xml_call_and_its_result_keep_their_names() -> None:
    call = '<message from="function_call">{"name": "add", "arguments": {"a": 2}}</message>'
    result = '<message from="tool" name="add" tool_call_id="c1">4</message>'
    text = f'<message from="user">2?</message>{call}{result}<message from="ai">4</message>'
    row = from_xml(text, "i", "f")
    assert isinstance(row, Conversation)
    assert row.messages[1]["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]
    assert row.messages[2] == {"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("", "broken_xml", "line 1, column 1: no element found"),
        ('<conversation>\n <message from="user">a</conversation>', "broken_xml", "line 2, column 26: mismatched tag"),
        ('<message from="user">é & b</message>', "broken_xml", "line 1, column 25: not well-formed"),
        ('<message from="user">a</message>\n<message from="gpt">b', "broken_xml", "line 2, column 24: mismatched tag"),
        (f"<conversation>{TWO}</conversation>x", "broken_xml", "line 2, column 60: junk after"),
        ('<message from="user">&nbsp;</message>', "broken_xml", "line 1, column 22: undefined entity"),
        (f"{TWO}</conversation><conversation>", "broken_xml", "line 2"),
        ('<!DOCTYPE c SYSTEM "file:///etc/passwd"><conversation/>', "broken_xml", "a DOCTYPE"),
        (f"<chat>{TWO}</chat>", "wrong_xml", "line 1, column 1: <chat> where <conversation>"),
        (f"<conversation><system>x</system>{TWO}</conversation>", "wrong_xml", "column 15: <system> where <message>"),
        ('<message from="user">a <b>c</b></message>', "wrong_xml", "column 24: <b> in a message"),
        (f"<conversation>So:\n{TWO}</conversation>", "wrong_xml", "in no message"),
        (f"{TWO}\nand so on", "wrong_xml", "in no message"),
        ("<message>a</message>", "unknown_role", "turn 1 has no role"),
        ('<message from="user">a</message>', "no_target", "no assistant turn"),
        (TWO.replace("Hi", "\0"), "nul", "NUL"),
        (TWO.replace("Hi", "\ud83d"), "not_utf8", "half a character"),
    ],
)
def test_wrong_xml_says_where(text: str, reason: str, detail: str) -> None:
    bad = from_xml(text, "i", "f.xml")
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("f.xml", reason)
    assert detail in bad.detail and "\n" not in bad.detail


def test_entities_of_a_doctype_are_never_expanded() -> None:
    """A billion laughs: ten levels of ten, 10^10 words in all."""
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 11))
    text = f'<!DOCTYPE c [<!ENTITY l0 "ha">{levels}]><conversation><message from="user">&l10;</message></conversation>'
    bad = from_xml(text, "i", "f")
    assert isinstance(bad, BadRow) and bad.reason == "broken_xml" and "DOCTYPE" in bad.detail


def test_a_text_made_to_be_slow_is_refused() -> None:
    """A pattern that went back and tried again would not end in a lifetime."""
    assert isinstance(from_xml("<!--a-->" * 20_000, "i", "f"), BadRow)


def test_speakers_begin_turns_and_turns_of_one_role_are_joined() -> None:
    text = "\n \nNote: be kind\nAnn: Hi!\nHow: are you?\nAnn:\n    x = 1\n\n    y = 2\n\nBot 2:  Fine\r\nBot: Thanks: a lot\n\n"
    assert turns(from_speakers(text, "i", "f", SPEAKERS)) == [
        ("system", "be kind"),
        ("user", "Hi!\nHow: are you?\n    x = 1\n\n    y = 2"),
        ("assistant", "Fine\nThanks: a lot"),
    ]


def test_a_name_is_no_regular_expression() -> None:
    speakers = {"Dr. A (GP": "user", "Bot": "assistant", "Bot+": "assistant"}
    assert turns(from_speakers("Dr. A (GP: Hi\nDrx A (GP: x\nBot+: Hello", "i", "f", speakers)) == [
        ("user", "Hi\nDrx A (GP: x"),
        ("assistant", "Hello"),
    ]


def test_a_pattern_takes_the_place_of_the_colon() -> None:
    text = "[10:01] <ann> Hi\n[10:02] joined\n[10:03] <bot> Hello\nthere"
    speakers = {"ann": "user", "bot": "assistant"}
    row = from_speakers(text, "i", "f", speakers, r"\[[\d:]+\] <(?P<speaker>\w+)> (?P<text>.*)")
    assert turns(row) == [("user", "Hi\n[10:02] joined"), ("assistant", "Hello\nthere")]


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("Chapter 1\nAnn: Hi\nBot: Hello", "text_before_speaker", "line 1 stands before"),
        ("hello", "no_speaker", "line 1"),
        (" \n", "no_speaker", "no line begins"),
        ("Ann: Hi", "no_target", "no assistant turn"),
        ("Bot: Hi\nAnn: Hello", "role_order", "turn 1 (assistant)"),
        ("Ann:\nBot: Hello", "empty_turn", "turn 1 (user)"),
        ("Ann: a\0\nBot: Hello", "nul", "NUL"),
    ],
)
def test_a_wrong_transcript_says_where(text: str, reason: str, detail: str) -> None:
    bad = from_speakers(text, "i", "f.txt", SPEAKERS)
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("f.txt", reason) and detail in bad.detail


def test_a_speaker_that_only_the_pattern_knows_is_not_put_into_anothers_mouth() -> None:
    bad = from_speakers("Ann: Hi\nBot: Hello\nCarl: Me too", "i", "f", SPEAKERS, r"(?P<speaker>\w+): (?P<text>.*)")
    assert isinstance(bad, BadRow) and bad.reason == "unknown_role" and "line 3: 'Carl' is none of the speakers (Ann, " in bad.detail


@pytest.mark.parametrize(
    ("speakers", "pattern", "message"),
    [
        ({}, None, "speakers is empty"),
        ({"Ann": "singer"}, None, r"speakers\.Ann=singer: no such role; choose one of system, .*assistant"),
        (SPEAKERS, "(?P<speaker>", r"speaker pattern '\(\?P<speaker>': .*position"),
        (SPEAKERS, "(?P<speaker>a)(b)", "no group text; write"),
        (SPEAKERS, "a", "no group speaker nor text"),
    ],
)
def test_speakers_that_cannot_be_used_are_one_line(speakers: dict[str, str], pattern: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        from_speakers("Ann: Hi", "i", "f", speakers, pattern)
    assert not re.search("\n", str(raised.value))
