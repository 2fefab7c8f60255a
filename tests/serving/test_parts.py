"""Thoughts and calls in what a model writes, for each way of writing that the templates of tests/serving have, whole and in pieces."""

import importlib
import json
import random
from itertools import pairwise
from typing import Any

import pytest

from forge.serving.parts import Format, Part, Splitter, split
from tests.serving.families import template, tokenizer

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
CALLED = Part("call", '{"city": "Zürich"}', "weather")


def qwen() -> Format:
    return Format.of(tokenizer("qwen3", template("qwen3")))


def mistral() -> Format:
    return Format.of(tokenizer("mistral", template("mistral")))


def without_ids(parts: list[Part]) -> list[Part]:
    return [Part(part.kind, part.text, part.name) for part in parts]


def said(text: str) -> Part:
    return Part("content", text)


def thought(text: str) -> Part:
    return Part("reasoning", text)


CASES: list[tuple[str, dict[str, Any], list[Part]]] = [
    ("Paris.", {}, [said("Paris.")]),
    ("\n Paris.\n\n", {}, [said("\n Paris.\n\n")]),
    ("", {}, []),
    ("<think>\nEasy.\n</think>\n\nParis.\n", {}, [thought("Easy."), said("Paris.\n")]),
    ("<think>\n\n</think>\n\nParis.", {}, [said("Paris.")]),
    ("Easy:\n\n1.\n</think>\n\nParis.", {"thinking": True}, [thought("Easy:\n\n1."), said("Paris.")]),
    ("\nEasy.</think>Paris.", {"thinking": True}, [thought("Easy."), said("Paris.")]),
    ("\n<think>Hm\n", {}, [thought("Hm\n")]),
    ("a < b, <thin> and </think", {}, [said("a < b, <thin> and </think")]),
    (f"Let me see.\n{CALL}\n{CALL}", {}, [said("Let me see."), CALLED, CALLED]),
    (f"<think>Call.</think>\n\n{CALL}\nDone.", {}, [thought("Call."), CALLED, said("Done.")]),
    (f"<think>Call.\n{CALL}", {}, [thought("Call."), CALLED]),
    (f"See:\n{CALL}", {"tools": []}, [said(f"See:\n{CALL}")]),
    (f"<think>{CALL}\n</think>So", {"tools": []}, [thought(CALL), said("So")]),
    # cut short, ended without its mark, and no call at all
    (CALL[:-14], {}, [said(CALL[:-14])]),
    (CALL[:-12], {}, [CALLED]),
    (CALL[:-12], {"ended": False}, [said(CALL[:-12])]),
    ("So\n<tool_call>\nnot JSON\n</tool_call>\nand on", {}, [said("So\n<tool_call>\nnot JSON\n</tool_call>\nand on")]),
    ("<think>Hm\n<tool_call>[</tool_call>", {}, [thought("Hm"), said("<tool_call>[</tool_call>")]),
    ('<tool_call>{"name": "f"}</tool_call>', {}, [Part("call", "{}", "f")]),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', {}, [Part("call", '{"a": 1}', "f")]),
]
UNREADABLE = [
    '{"name": 3, "arguments": {}}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "", "arguments": {}}',
    '{"arguments": {}}',
    '{"name": "f", "arguments": {"a": "\\ud83d"}}',
    '{"name": "\\ud83d"}',
    '{"name": "f", "id": "\\ud83d"}',
    "[]",
    "3",
]
CASES += [(f"<tool_call>{call}</tool_call>", {}, [said(f"<tool_call>{call}</tool_call>")]) for call in UNREADABLE]
CASES += [
    (text, {}, [said(text)]) for text in ('<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', "<tool_call>" + "[" * 9999)
]


@pytest.mark.parametrize(("text", "how", "parts"), CASES, ids=[text[:50] for text, _, _ in CASES])
def test_an_answer_falls_into_its_parts(text: str, how: dict[str, Any], parts: list[Part]) -> None:
    assert without_ids(split(qwen(), text, **{"tools": [WEATHER], **how})) == parts


@pytest.mark.parametrize("text", [text for text, _, _ in CASES if len(text) < 999])
def test_however_it_is_cut_the_parts_are_the_same(text: str) -> None:
    """Token by token, character by character: the streamed parts, put together, are those of the whole answer."""
    for how in ({}, {"tools": [WEATHER]}, {"thinking": True}, {"tools": [WEATHER], "thinking": True}):
        whole = without_ids(split(qwen(), text, **how))
        for seed in range(20):
            assert merged(streamed(qwen(), pieces(text, seed), **how)) == whole


def test_any_mixture_of_marks_and_text_is_the_same_in_pieces_and_loses_nothing() -> None:
    """Marks aside and line breaks aside, what goes in comes out, calls as what was in them."""
    random_ = random.Random(5)
    bits = ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "<th", "</", ">", "\n", "a b", "é", '{"name": "f"}']
    for seed in range(400):
        text = "".join(random_.choices(bits, k=random_.randint(1, 9)))
        tools, thinking = random_.choice([[], [WEATHER]]), random_.random() < 0.5
        whole = split(qwen(), text, tools, thinking)
        assert merged(streamed(qwen(), pieces(text, seed), tools=tools, thinking=thinking)) == without_ids(whole)
        if not any(part.kind == "call" for part in whole):
            assert bare("".join(part.text for part in whole)) == bare(text)


def bare(text: str) -> str:
    return text.replace("\n", "").replace("<think>", "").replace("</think>", "")


def pieces(text: str, seed: int) -> list[str]:
    random_ = random.Random(seed)
    cuts = sorted(random_.choices(range(len(text) + 1), k=random_.randint(0, len(text)))) if seed else range(len(text))
    borders = [0, *cuts, len(text)]
    return [text[start:stop] for start, stop in pairwise(borders)]


def streamed(format: Format, pieces: list[str], tools: Any = (), thinking: bool = False) -> list[Part]:
    splitter = Splitter(format, tools, thinking)
    return [part for piece in pieces for part in splitter.add(piece)] + splitter.end()


def merged(parts: list[Part]) -> list[Part]:
    together: list[Part] = []
    for part in parts:
        if together and part.kind == together[-1].kind != "call":
            together[-1] = Part(part.kind, together[-1].text + part.text)
        else:
            together.append(Part(part.kind, part.text, part.name))
    return together


def test_text_is_given_as_soon_as_it_is_sure() -> None:
    """Held back: what may begin a mark, and line breaks that may stand beside one."""
    splitter = Splitter(qwen(), [WEATHER])
    given = [["".join(part.text for part in splitter.add(piece))] for piece in ("Paris", " <", "b", "\n", "\n<tool", "_x")]
    assert given == [["Paris"], [" "], ["<b"], [""], [""], ["\n\n<tool_x"]]


def test_a_call_without_an_end_mark_lasts_to_the_end() -> None:
    text = '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bern"}, "id": "123456789"}]'
    expected = [Part("call", '{"city": "Bern"}', "weather", "123456789")]
    assert split(mistral(), text, [WEATHER]) == expected
    assert split(mistral(), text, [WEATHER], ended=False) == expected  # no tokens were left for the end token
    assert split(mistral(), text[:-1], [WEATHER]) == [said(text[:-1])]


def test_a_call_without_an_id_gets_one_that_mistrals_template_takes() -> None:
    first, second = split(qwen(), CALL + CALL, [WEATHER])
    assert len(first.id) == 9 and first.id.isalnum() and first.id != second.id


def test_several_calls_between_two_marks() -> None:
    module = importlib.import_module("mlx_lm.tool_parsers.pythonic")
    format = Format(tool_call_start=module.tool_call_start, tool_call_end=module.tool_call_end, tool_parser=module.parse_tool_call)
    parts = split(format, "<|tool_call_start|>[f(a=1), g()]<|tool_call_end|>", [WEATHER])
    assert [(part.name, json.loads(part.text)) for part in parts] == [("f", {"a": 1}), ("g", {})]


def test_a_tokenizer_without_marks_leaves_text_alone() -> None:
    format = Format.of(tokenizer("base"))
    assert not format.has_thinking and not format.has_tool_calling
    text = f"\n<think>\nHm\n</think>\n{CALL}\n"
    assert split(format, text, [WEATHER]) == [said(text)]
