"""Records of each format become the messages that a person would write down for them."""

import datetime
import json
import re
from typing import Any

import pytest

from forge.data.formats import FORMATS, to_row
from forge.errors import DataError
from forge.spec import BadRow, Conversation, Document, Preference

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
AGAIN = {"role": "user", "content": "3 + 3?"}
MORE = {"role": "assistant", "content": "6"}
WRONG = {"role": "assistant", "content": "5"}
CALLED = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": None}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": CALLED}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "c1", "name": "add"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def row(record: Any, **options: Any) -> Any:
    return to_row(record, "i", "file:7", **options)


def shares(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": speaker, "value": said} for speaker, said in turns]}


CONVERSATIONS: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "messages": ("messages", {"messages": [SYSTEM, ASK, ANSWER, AGAIN, MORE]}, [SYSTEM, ASK, ANSWER, AGAIN, MORE]),
    "system beside messages": ("messages", {"messages": [ASK, ANSWER], "system": "Be brief."}, [SYSTEM, ASK, ANSWER]),
    "the same system twice": ("messages", {"messages": [SYSTEM, ASK, ANSWER], "system": "Be brief."}, [SYSTEM, ASK, ANSWER]),
    "blank system": ("messages", {"messages": [ASK, ANSWER], "system": " "}, [ASK, ANSWER]),
    "messages win over text": ("messages", {"text": "2 + 2? 4", "messages": [ASK, ANSWER]}, [ASK, ANSWER]),
    "content in parts": (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2 "}, {"type": "text", "text": "+ 2?"}]}, ANSWER]},
        [ASK, ANSWER],
    ),
    "keys that templates know": (
        "messages",
        {"messages": [ASK, {**ANSWER, "reasoning_content": "r", "thinking": "t", "metadata": {"x": 1}, "name": None}]},
        [ASK, {**ANSWER, "reasoning_content": "r", "thinking": "t"}],
    ),
    "calls with arguments as JSON": (
        "messages",
        {
            "messages": [
                ASK,
                {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": '{"a": 2, "b": null}'}}]},
                RESULT,
                ANSWER,
            ]
        },
        [ASK, CALL, RESULT, ANSWER],
    ),
    "keys that a table adds": (
        "messages",
        {
            "messages": [
                {**ASK, "tool_calls": None, "name": None},
                {"role": "assistant", "content": None, "tool_calls": [{"name": "add", "arguments": {"a": 2, "c": None}, "id": None}]},
                {"role": "tool", "content": "4", "tool_calls": []},
                ANSWER,
            ],
            "conversations": None,
        },
        [
            ASK,
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]},
            {"role": "tool", "content": "4"},
            ANSWER,
        ],
    ),
    "arguments that are no object stay text": (
        "messages",
        {"messages": [ASK, {"role": "assistant", "function_call": {"name": "add", "arguments": "2 2"}}]},
        [ASK, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "2 2"}}]}],
    ),
    "prompt and completion": ("prompt_completion", {"prompt": "2 + 2?", "completion": "4"}, [ASK, ANSWER]),
    "prompt and response": ("prompt_completion", {"prompt": "2 + 2?", "response": "4", "input": "2"}, [ASK, ANSWER]),
    "question and answer": ("prompt_completion", {"question": "2 + 2?", "answer": "4"}, [ASK, ANSWER]),
    "system and query": ("prompt_completion", {"system_prompt": "Be brief.", "query": "2 + 2?", "response": "4"}, [SYSTEM, ASK, ANSWER]),
    "a question on a context": (
        "prompt_completion",
        {"question": "Who?", "context": "Ann sings.", "answer": "Ann"},
        [{"role": "user", "content": "Who?\n\nAnn sings."}, {"role": "assistant", "content": "Ann"}],
    ),
    "prompt and completion as turns": (
        "prompt_completion",
        {"prompt": [SYSTEM, ASK, ANSWER, AGAIN], "completion": [MORE]},
        [SYSTEM, ASK, ANSWER, AGAIN, MORE],
    ),
    "alpaca with an input": (
        "alpaca",
        {"instruction": "Add.", "input": "2 and 2", "output": "4", "text": "### Add. 2 and 2 4", "prompt": "### Add."},
        [{"role": "user", "content": "Add.\n\n2 and 2"}, ANSWER],
    ),
    "alpaca without an input": ("alpaca", {"instruction": "2 + 2?", "input": "", "output": "4"}, [ASK, ANSWER]),
    "alpaca with a system text and a history": (
        "alpaca",
        {"instruction": "3 + 3?", "input": None, "output": "6", "system": "Be brief.", "history": [["2 + 2?", "4"]]},
        [SYSTEM, ASK, ANSWER, AGAIN, MORE],
    ),
    "instruction, context and response": (
        "alpaca",
        {"instruction": "Who?", "context": "Ann sings.", "response": "Ann", "category": "closed_qa"},
        [{"role": "user", "content": "Who?\n\nAnn sings."}, {"role": "assistant", "content": "Ann"}],
    ),
    "sharegpt": ("sharegpt", shares(("system", "Be brief."), ("human", "2 + 2?"), ("gpt", "4")), [SYSTEM, ASK, ANSWER]),
    "sharegpt, system beside it": ("sharegpt", {**shares(("human", "2 + 2?"), ("gpt", "4")), "system": "Be brief."}, [SYSTEM, ASK, ANSWER]),
    "sharegpt with a call": (
        "sharegpt",
        shares(("human", "2 + 2?"), ("function_call", '{"name": "add", "arguments": {"a": 2}}'), ("observation", "4"), ("gpt", "4")),
        [
            ASK,
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}]},
            {"role": "tool", "content": "4"},
            ANSWER,
        ],
    ),
}


@pytest.mark.parametrize("explicit", [False, True], ids=["found", "named"])
@pytest.mark.parametrize(("format", "record", "messages"), CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_a_record_becomes_these_messages(format: str, record: Any, messages: list[dict[str, Any]], explicit: bool) -> None:
    assert row(record, format=format if explicit else "auto") == Conversation("i", tuple(messages), "file:7")


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]], ids=["list", "JSON", "list of JSON"])
@pytest.mark.parametrize("said", [{"messages": [ASK, ANSWER]}, shares(("human", "2 + 2?"), ("gpt", "4"))], ids=["messages", "sharegpt"])
def test_tools_are_kept_however_they_are_written(said: dict[str, Any], tools: Any) -> None:
    assert row({**said, "tools": tools}) == Conversation("i", (ASK, ANSWER), "file:7", (TOOL,))


@pytest.mark.parametrize("none", [None, "", [], "[]"])
def test_no_tools_are_no_tools(none: Any) -> None:
    assert row({"messages": [ASK, ANSWER], "tools": none}).tools == ()


@pytest.mark.parametrize(
    ("alias", "role"),
    [("human", "user"), ("User", "user"), *((a, "assistant") for a in ("gpt", "bot", "model", "chatbot", "AI")), ("developer", "system")],
)
def test_roles_get_one_name(alias: str, role: str) -> None:
    turns = {"system": [SYSTEM, ASK, ANSWER], "user": [ASK, ANSWER], "assistant": [ASK, ANSWER]}[role]
    renamed = [{**turn, "role": alias} if turn["role"] == role else turn for turn in turns]
    assert row({"messages": renamed}).messages == tuple(turns)


@pytest.mark.parametrize("alias", ["function", "observation", "ipython", "tool"])
def test_a_tool_has_many_names(alias: str) -> None:
    assert row({"messages": [ASK, CALL, {**RESULT, "role": alias}, {**RESULT, "role": alias}, ANSWER]}).messages[2:4] == (RESULT, RESULT)


PREFERENCES: dict[str, tuple[str, dict[str, Any], tuple[list, list, list]]] = {
    "texts": ("preference", {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, ([ASK], [ANSWER], [WRONG])),
    "turns": (
        "preference",
        {"prompt": [SYSTEM, ASK], "chosen": [ANSWER], "rejected": [WRONG], "label": None},
        ([SYSTEM, ASK], [ANSWER], [WRONG]),
    ),
    "a system text and a question": (
        "preference",
        {"system": "Be brief.", "question": "2 + 2?", "chosen": "4", "rejected": "5"},
        ([SYSTEM, ASK], [ANSWER], [WRONG]),
    ),
    "conversations without a prompt": (
        "preference",
        {"chosen": [SYSTEM, ASK, ANSWER], "rejected": [SYSTEM, ASK, WRONG]},
        ([SYSTEM, ASK], [ANSWER], [WRONG]),
    ),
    "conversations that repeat the prompt": (
        "preference",
        {"prompt": "2 + 2?", "chosen": [ASK, ANSWER], "rejected": [ASK, WRONG], "messages": [ASK, ANSWER]},
        ([ASK], [ANSWER], [WRONG]),
    ),
    "conversations that part at a later answer": (
        "preference",
        {"chosen": [ASK, ANSWER, AGAIN, MORE], "rejected": [ASK, ANSWER, AGAIN, WRONG]},
        ([ASK, ANSWER, AGAIN], [MORE], [WRONG]),
    ),
    "conversations that part at a question": (
        "preference",
        {"chosen": [ASK, ANSWER, AGAIN, MORE], "rejected": [ASK, ANSWER, {**AGAIN, "content": "1 + 1?"}, WRONG]},
        ([ASK], [ANSWER, AGAIN, MORE], [ANSWER, {**AGAIN, "content": "1 + 1?"}, WRONG]),
    ),
    "a conversation that goes on": (
        "preference",
        {"chosen": [ASK, ANSWER, AGAIN, MORE], "rejected": [ASK, ANSWER]},
        ([ASK], [ANSWER, AGAIN, MORE], [ANSWER]),
    ),
    "a good completion": ("kto", {"prompt": "2 + 2?", "completion": "4", "label": True}, ([ASK], [ANSWER], [])),
    "a bad completion": ("kto", {"prompt": [ASK], "completion": [WRONG], "label": False}, ([ASK], [], [WRONG])),
}


@pytest.mark.parametrize("explicit", [False, True], ids=["found", "named"])
@pytest.mark.parametrize(("format", "record", "parts"), PREFERENCES.values(), ids=PREFERENCES.keys())
def test_a_record_becomes_this_preference(format: str, record: Any, parts: tuple[list, list, list], explicit: bool) -> None:
    prompt, chosen, rejected = map(tuple, parts)
    assert row(record, format=format if explicit else "auto") == Preference("i", prompt, chosen, rejected, "file:7")


@pytest.mark.parametrize("format", ["auto", "text"])
def test_text_is_a_document_even_where_it_is_blank(format: str) -> None:
    assert row({"text": " a\r\n", "messages": None}, format=format) == Document("i", " a\r\n", "file:7")
    assert row({"text": "x", "body": " "}, format=format, text_field="body") == Document("i", " ", "file:7")


def called(**call: Any) -> dict[str, Any]:
    return {"messages": [ASK, {"role": "assistant", "tool_calls": [call]}]}


def deep(levels: int) -> Any:
    return {"a": deep(levels - 1)} if levels else 1


BAD: dict[str, tuple[Any, str, str]] = {
    "a list": ([1], "not_an_object", "type list"),
    "unknown keys": ({"title": "a", "text": None}, "no_format", r"keys are title, text \(null\); known: .*alpaca \{instruction, output\}"),
    "no keys": ({}, "no_format", "keys are none"),
    "text that is a number": ({"text": 3}, "wrong_type", "'text' is of type int"),
    "messages that are text": ({"messages": "hi"}, "wrong_type", "type str; write a list"),
    "a turn that is text": ({"messages": [ASK, "4"]}, "wrong_type", "turn 2 is of type str"),
    "content that is a number": ({"messages": [ASK, {"role": "assistant", "content": 4}]}, "wrong_type", "turn 2, content is of type int"),
    "a name that is a number": ({"messages": [{**ASK, "name": 1}, ANSWER]}, "wrong_type", "turn 1, name is of type int"),
    "a strange role": ({"messages": [ASK, {**ANSWER, "role": "narrator"}]}, "unknown_role", "turn 2 has the role 'narrator'; .*assistant"),
    "no role": ({"messages": [{"content": "hi"}]}, "unknown_role", "turn 1 has no role"),
    "a user without content": ({"messages": [{"role": "user", "content": None}, ANSWER]}, "empty_turn", r"turn 1 \(user\)"),
    "a blank answer": ({"instruction": "Add.", "output": " \n"}, "empty_turn", r"turn 2 \(assistant\) says nothing"),
    "two user turns": ({"messages": [ASK, AGAIN, ANSWER]}, "role_order", r"turn 2 \(user\) follows another user turn; join"),
    "two answers": ({"messages": [ASK, ANSWER, MORE]}, "role_order", r"turn 3 \(assistant\) follows another"),
    "an answer first": ({"messages": [SYSTEM, ANSWER, ASK]}, "role_order", r"turn 2 \(assistant\) has no user turn before it"),
    "a late system turn": ({"messages": [ASK, ANSWER, SYSTEM]}, "role_order", r"turn 3 \(system\) is not the first"),
    "two system texts": ({"messages": [SYSTEM, ASK, ANSWER], "system": "Be long."}, "role_order", "differ; keep one"),
    "a result without a call": ({"messages": [ASK, ANSWER, RESULT]}, "role_order", r"turn 3 \(tool\) answers no call"),
    "a result first": ({"messages": [RESULT, ASK, ANSWER]}, "role_order", r"turn 1 \(tool\) answers no call"),
    "a user after a result": ({"messages": [ASK, CALL, RESULT, AGAIN]}, "role_order", r"turn 4 \(user\) follows a tool's result"),
    "questions alone": ({"messages": [ASK]}, "no_target", "no assistant turn"),
    "no turns": ({"messages": []}, "no_target", "no assistant turn"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {}}]}, ANSWER]},
        "not_text",
        "turn 1 has a part of type 'image_url'",
    ),
    "a NUL": ({"messages": [ASK, {"role": "assistant", "content": "4\0"}]}, "nul", "turn 2, content holds a NUL character at 1"),
    "a NUL in a document": ({"text": "\0"}, "nul", "'text'"),
    "half a character": ({"prompt": "a\ud83d", "completion": "4"}, "not_utf8", "prompt holds half a character at 1"),
    "half a character in a call": (called(name="add", arguments='{"a": "\\ud83d"}'), "not_utf8", "turn 2, call 1"),
    "half a character in a tool": ({"messages": [ASK, ANSWER], "tools": '[{"a": "\\ud83d"}]'}, "not_utf8", "tool 1"),
    "tools that are no JSON": ({"messages": [ASK, ANSWER], "tools": "add(a)"}, "wrong_type", "tools: not a list of objects"),
    "a call without a name": (called(arguments={}), "wrong_type", "turn 2, call 1 names no function"),
    "a call with a list": (called(name="add", arguments=[2, 2]), "wrong_type", "turn 2, call 1 has arguments of type list"),
    "a call with a date": (called(name="add", arguments={"on": datetime.date(2020, 1, 1)}), "wrong_type", "a value of type date"),
    "a call too deep": (called(name="add", arguments=deep(60)), "wrong_type", "nested more than 50 deep"),
    "a call with a numbered key": (called(name="add", arguments={1: 2}), "wrong_type", "a key is of type int"),
    "a user who calls": ({"messages": [{**ASK, "tool_calls": CALLED}, ANSWER]}, "wrong_type", "turn 1 is a user's and has tool_calls"),
    "a ShareGPT call that is none": (shares(("human", "2 + 2?"), ("function_call", "add(2)")), "wrong_type", "turn 2, tool_calls"),
    "a history of texts": ({"instruction": "a", "output": "b", "history": ["x"]}, "wrong_type", "history is no list of pairs"),
    "an input that is a list": ({"instruction": "a", "output": "b", "input": ["x"]}, "wrong_type", "input is of type list"),
    "a label that is a number": ({"prompt": "2 + 2?", "completion": "4", "label": 1}, "wrong_type", "label is 1; write true or false"),
    "answers alone": ({"chosen": "4", "rejected": "5"}, "no_prompt", "there is no prompt"),
    "conversations with nothing shared": ({"chosen": [ASK, ANSWER], "rejected": [AGAIN, ANSWER]}, "no_prompt", "no prompt"),
    "another prompt": ({"prompt": "3 + 3?", "chosen": [ASK, ANSWER], "rejected": [ASK, WRONG]}, "other_prompt", "not what chosen"),
    "equal answers": ({"prompt": "2 + 2?", "chosen": "4", "rejected": "4"}, "same_answers", "prefers nothing"),
    "an empty answer": ({"prompt": "2 + 2?", "chosen": "4", "rejected": ""}, "empty_turn", r"prompt and rejected: turn 2 \(assistant\)"),
    "no answer": ({"prompt": [ASK, ANSWER], "chosen": [], "rejected": [AGAIN, MORE]}, "role_order", "chosen does not begin with"),
    "tools beside a preference": (
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "tools": [TOOL]},
        "tools_in_preference",
        "can't carry tools",
    ),
}


@pytest.mark.parametrize(("record", "reason", "detail"), BAD.values(), ids=BAD.keys())
def test_a_wrong_record_says_what_is_wrong(record: Any, reason: str, detail: str) -> None:
    bad = row(record)
    assert isinstance(bad, BadRow) and (bad.origin, bad.reason) == ("file:7", reason)
    assert re.search(detail, bad.detail)
    assert "\n" not in bad.detail


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_that_the_record_has_not_is_a_bad_row(format: str) -> None:
    record = {"title": "a"} if format == "text" else {"text": "a"}
    bad = row(record, format=format)
    assert isinstance(bad, BadRow) and bad.reason == "no_format" and f"known: {format} {{" in bad.detail


def test_an_unknown_format_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"'sharegtp' is unknown; choose one of auto, preference, .*sharegpt.*text$"):
        row({"text": "a"}, format="sharegtp")
