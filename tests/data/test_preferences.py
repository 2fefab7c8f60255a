"""The built-in preference pairs: the chosen side is true, the rejected one is not."""

import ast
import inspect
import re
import shutil
import textwrap
from typing import Any

import pytest

from forge.data.sources import instructions, preferences
from forge.data.sources.instructions import Fact, facts
from forge.data.turns import check
from forge.spec import Conversation, Preference


@pytest.fixture(scope="module")
def known() -> dict[str, Fact]:
    return {fact.name: fact for fact in facts()}


@pytest.fixture(scope="module")
def rows() -> list[Preference]:
    return [row for row in preferences.stdlib() if isinstance(row, Preference)]


def name_of(row: Preference) -> str:
    return row.id.removeprefix("preferences/")


def test_there_are_enough_and_each_is_about_another_thing(rows: list[Preference]) -> None:
    assert len(rows) >= 100 and len({row.id for row in rows}) == len({row.key for row in rows}) == len(rows)


def test_two_readings_are_the_same(rows: list[Preference]) -> None:
    assert list(preferences.stdlib()) == rows


def test_every_pair_is_a_question_and_two_answers_that_differ(rows: list[Preference]) -> None:
    for row in rows:
        check([*row.prompt, *row.chosen])
        check([*row.prompt, *row.rejected])
        assert row.chosen != row.rejected and len(row.prompt) == 1


def test_no_fact_is_also_an_instruction(rows: list[Preference]) -> None:
    others = {row.id.removeprefix("instructions/") for row in instructions.stdlib() if isinstance(row, Conversation)}
    assert others and not others & {name_of(row) for row in rows}


def test_chosen_is_the_documentation_and_rejected_is_that_of_another(rows: list[Preference], known: dict[str, Fact]) -> None:
    docstrings = [row for row in rows if not row.chosen[0]["content"].startswith(f"`{name_of(row)}(")]
    assert len(docstrings) > 100
    for row in docstrings:
        fact, wrong = known[name_of(row)], row.rejected[0]["content"]
        assert fact.docstring.strip().startswith(row.chosen[0]["content"])
        assert not fact.docstring.strip().startswith(wrong)
        assert any(other.docstring.strip().startswith(wrong) and other.kind == fact.kind for other in known.values())


def test_a_wrong_signature_differs_in_one_parameter(rows: list[Preference], known: dict[str, Fact]) -> None:
    """Python's own reading of both: as many parameters and one other name, or one parameter fewer and no other name."""
    missing = renamed = 0
    for row in rows:
        if match := re.fullmatch(rf"`{re.escape(name_of(row))}(\(.*\))`", row.rejected[0]["content"]):
            right, wrong = names(known[name_of(row)].signature), names(match[1])
            if len(right) == len(wrong):
                assert len(set(right) - set(wrong)) == 1 and len(set(wrong)) == len(wrong)
                renamed += 1
            else:
                assert len(right) == len(wrong) + 1 and set(wrong) < set(right)
                missing += 1
    assert missing > 20 and renamed > 20


def names(signature: str | None) -> list[str]:
    return [node.arg for node in ast.walk(ast.parse(f"def f{signature}: ...")) if isinstance(node, ast.arg)]


@pytest.mark.parametrize("function", [shutil.copyfile, textwrap.wrap])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_leaving_a_parameter_out_takes_its_default_along(function: Any, number: int) -> None:
    """copyfile(src, dst, *, follow_symlinks=True) and wrap(text, width=70, **kwargs), a parameter less each."""
    expected = {
        "copyfile": ["dst, *, follow_symlinks=True", "src, *, follow_symlinks=True", "src, dst"],
        "wrap": ["width=70, **kwargs", "text, **kwargs"],
    }[function.__name__]
    if number < len(expected):
        arguments = instructions.parse(str(inspect.signature(function)))
        assert arguments is not None
        preferences._leave_out(arguments, number)
        assert ast.unparse(arguments) == expected[number]
