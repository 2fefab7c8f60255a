"""The built-in conversations. What they claim is checked against the live objects, which the source never looks at."""

import ast
import importlib
import inspect
import re
from itertools import chain

import pytest

from forge.data.sources import instructions
from forge.data.sources.instructions import Fact, defaults, parse, required
from forge.data.turns import check
from forge.spec import Conversation

# Written in Python and without compiled twins, so that the live signature is that of the source.
_MODULES = (
    "calendar",
    "difflib",
    "fnmatch",
    "glob",
    "json",
    "posixpath",
    "pprint",
    "random",
    "shutil",
    "statistics",
    "tempfile",
    "textwrap",
    "uuid",
)


@pytest.fixture(scope="module")
def rows() -> list[Conversation]:
    found = list(instructions.stdlib())
    assert all(isinstance(row, Conversation) for row in found)
    return [row for row in found if isinstance(row, Conversation)]


def name_of(row: Conversation) -> str:
    return row.id.removeprefix("instructions/")


def pairs(row: Conversation) -> list[tuple[str, str]]:
    said = [message["content"] for message in row.messages if message["role"] != "system"]
    return list(zip(said[::2], said[1::2], strict=True))


def test_there_are_many_and_each_is_about_another_thing(rows: list[Conversation]) -> None:
    assert 600 <= len(rows) <= 1800
    assert len({row.id for row in rows}) == len({row.key for row in rows}) == len(rows)


def test_every_conversation_is_well_formed(rows: list[Conversation]) -> None:
    for row in rows:
        check(row.messages)
        assert row.messages[-1]["role"] == "assistant"


def test_there_is_variety(rows: list[Conversation]) -> None:
    two_turns = [row for row in rows if len(pairs(row)) == 2]
    system = [row for row in rows if row.messages[0]["role"] == "system"]
    wordings = {re.sub(r"`[^`]*`|: .*", "", question, flags=re.DOTALL) for row in rows for question, _ in pairs(row)}
    assert len(two_turns) > 100 and 0.3 < len(system) / len(rows) < 0.7 and len(wordings) >= 15


def test_one_docstring_is_one_fact() -> None:
    docstrings = [fact.docstring for fact in instructions.facts()]
    assert len(set(docstrings)) == len(docstrings)


def test_what_is_only_written_like_a_function_is_left_out() -> None:
    """typing.Optional is an object, made by a decorator from `def Optional(self, parameters)`."""
    assert not {"typing.Optional", "typing.Union"} & {fact.name for fact in instructions.facts()}


def test_two_readings_are_the_same(rows: list[Conversation]) -> None:
    instructions.facts.cache_clear()
    assert list(instructions.stdlib()) == rows


def test_the_docstrings_are_those_of_the_live_objects(rows: list[Conversation]) -> None:
    compared = 0
    for row in rows:
        for question, answer in pairs(row):
            if row.origin in _MODULES and re.match(r"(What does .* do|Explain|What is .* for|Describe)", question):
                live = inspect.getdoc(getattr(importlib.import_module(row.origin), name_of(row).rpartition(".")[2]))
                assert live is not None and live.strip().startswith(answer), row.id
                compared += 1
    assert compared > 15


def test_the_signatures_are_those_of_the_live_objects() -> None:
    compared = 0
    for fact in instructions.facts():
        if fact.module in _MODULES and fact.arguments:
            live = inspect.signature(getattr(importlib.import_module(fact.module), fact.name.rpartition(".")[2])).parameters.values()
            known = [p for p in live if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            assert required(fact.arguments) == [p.name for p in known if p.default is p.empty], fact.name
            values = {p.name: p.default for p in known if isinstance(p.default, str | int | float | None) and p.default is not p.empty}
            stated = {name: text for name, text in defaults(fact.arguments).items() if re.fullmatch(r"None|True|False|-?\d+|'\w*'", text)}
            assert {name: ast.literal_eval(text) for name, text in stated.items()}.items() <= values.items(), fact.name
            compared += 1
    assert compared > 50


def test_what_is_called_a_class_is_one(rows: list[Conversation]) -> None:
    claims = [
        match.groups()
        for row in rows
        for _, answer in pairs(row)
        if (match := re.fullmatch(r"`(.*)` is a (\w+) in the module `(.*)`\.", answer))
    ]
    checked = 0
    for name, kind, module in claims:
        if module in (*_MODULES, "builtins", "sys", "argparse", "typing", "threading", "collections", "inspect", "logging"):
            assert inspect.isclass(getattr(importlib.import_module(module), name.rpartition(".")[2])) == (kind == "class"), name
            checked += 1
    assert checked > 10 and {kind for _, kind, _ in claims} == {"class", "function"}


def test_a_search_has_one_answer(rows: list[Conversation]) -> None:
    searches = [
        (question, answer)
        for question, answer in chain.from_iterable(map(pairs, rows))
        if re.match(r"(Which|Name the) (function|class) (in|of)", question)
    ]
    described = [re.split(r"described so: |`: ", question, maxsplit=1)[1] for question, _ in searches]
    assert len(searches) > 50 and len(set(described)) == len(described)
    sentences = [fact.sentence for fact in instructions.facts()]
    assert all(sentences.count(sentence) == 1 for sentence in described)


@pytest.mark.parametrize(
    ("signature", "needed", "optional"),
    [
        ("()", [], {}),
        ("(a, /, b, c=1, *args, d, e='x', **kwargs)", ["a", "b", "d"], {"c": "1", "e": "'x'"}),
        ("(a=1, /, b=-2)", [], {"a": "1", "b": "-2"}),
        ("(a: int, b: str=_MISSING)", ["a"], {}),
    ],
)
def test_a_signature_is_taken_apart(signature: str, needed: list[str], optional: dict[str, str]) -> None:
    arguments = parse(signature)
    assert arguments and required(arguments) == needed and defaults(arguments) == optional


def test_a_signature_that_is_no_python_is_not_known() -> None:
    assert parse("(x=<unrepresentable>)") is None


def test_an_answer_ends_with_a_paragraph_and_a_sentence_with_its_stop() -> None:
    fact = Fact("m.f", "m", "function", "()", f"Adds two\nnumbers. And more.\n\n{'b' * 500}\n\n{'c' * 500}")
    assert fact.purpose == f"Adds two\nnumbers. And more.\n\n{'b' * 500}"
    assert fact.sentence == "Adds two numbers."
