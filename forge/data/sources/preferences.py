"""Answers about the Python that runs forge, each beside a wrong one. About 400 pairs, nothing downloaded.

The chosen answer is Python's own documentation; the rejected one is made by a rule and looks as honest: the docstring of another
function or class, or a signature with one parameter missing or renamed. The text is that of builtin.stdlib: two to three seconds.
"""

import ast
import copy
from collections.abc import Iterable, Iterator, Sequence

from forge.data.sources import PYTHON, Fixed
from forge.data.sources.instructions import Fact, Pair, ask, choose, facts, for_preferences
from forge.spec import Preference, Row


def stdlib() -> Iterable[Row]:
    """One pair a function or class; none of them is in instructions.stdlib. Ids are preferences/<name>.

    Where a signature is known, a hash of the name chooses between the two questions. A wrong docstring is that of a neighbour in the
    module where there is one, so that the subject alone does not give it away.
    """
    return Fixed(_rows, PYTHON)


def _rows() -> Iterator[Row]:
    known = [fact for fact in facts() if fact.purpose]
    parameters = sorted({name for fact in known if fact.arguments for name in _names(fact.arguments)})
    for fact in known:
        if for_preferences(fact):
            about_signature = fact.arguments and _names(fact.arguments) and choose((True, False), fact.name, "pair")
            chosen, rejected = _signatures(fact, parameters) if about_signature else _purposes(fact, known)
            question = ask(fact, "signature" if about_signature else "purpose")
            yield Preference(
                f"preferences/{fact.name}", _turn("user", question), _turn("assistant", chosen), _turn("assistant", rejected), fact.module
            )


def _purposes(fact: Fact, known: Sequence[Fact]) -> Pair:
    """The answer, and that of another of its kind."""
    others = [other for other in known if other.kind == fact.kind and other.purpose != fact.purpose]
    neighbours = [other for other in others if other.module == fact.module]
    return fact.purpose, choose(neighbours or others, fact.name, "other").purpose


def _signatures(fact: Fact, parameters: Sequence[str]) -> Pair:
    """The signature, and one that differs in one parameter."""
    assert fact.arguments is not None
    wrong = copy.deepcopy(fact.arguments)
    number = choose(range(len(_names(wrong))), fact.name, "parameter")
    if choose((True, False), fact.name, "missing"):
        _leave_out(wrong, number)
    else:
        every = {node.arg for node in ast.walk(wrong) if isinstance(node, ast.arg)}
        new = choose([name for name in parameters if name not in every], fact.name, "renamed")
        [*wrong.posonlyargs, *wrong.args, *wrong.kwonlyargs][number].arg = new
    right, other = (f"`{fact.name}({ast.unparse(arguments)})`" for arguments in (fact.arguments, wrong))
    return right, other


def _leave_out(arguments: ast.arguments, number: int) -> None:
    """Removes a parameter, and its default with it."""
    positional = len(arguments.posonlyargs) + len(arguments.args)
    if number >= positional:
        del arguments.kwonlyargs[number - positional], arguments.kw_defaults[number - positional]
        return
    if (default := number - (positional - len(arguments.defaults))) >= 0:
        del arguments.defaults[default]
    if number < len(arguments.posonlyargs):
        del arguments.posonlyargs[number]
    else:
        del arguments.args[number - len(arguments.posonlyargs)]


def _names(arguments: ast.arguments) -> list[str]:
    """Of the parameters that take one value."""
    return [parameter.arg for parameter in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


def _turn(role: str, content: str) -> tuple[dict[str, str]]:
    return ({"role": role, "content": content},)
