"""Questions about the Python that runs forge, answered by its own documentation. About 1500 conversations, nothing downloaded.

Every answer is a docstring's own words or read off the signature in the source, so each is as true as those are. The text is that of
builtin.stdlib, which parses the library: two to three seconds.
"""

import ast
import hashlib
import importlib
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeVar

from forge.data.sources import PYTHON, Fixed, builtin
from forge.spec import Conversation, Document, Row

_T = TypeVar("_T")
Pair = tuple[str, str]  # a question and its answer

_LONGEST_ANSWER = 700  # characters
_LONGEST_SENTENCE = 200
_SHORTEST_DOCSTRING = 30
_LEFT_OUT = ("distutils", "tkinter", "turtle", "posix", "nt")  # gone from later Pythons, drawing, and what `os` is there for
_SYSTEM = (
    "You answer questions about Python's standard library.",
    "You are a precise assistant. Quote the documentation of Python where you can.",
    "Answer only with what Python's own documentation says.",
)
_WORDINGS = {
    "purpose": ("What does `{name}` do?", "Explain `{name}`.", "What is `{name}` for?", "Describe the {kind} `{name}`."),
    "signature": ("What is the signature of `{name}`?", "How is `{name}` called?", "Which parameters does `{name}` take?"),
    "required": ("Which arguments does `{name}` require?", "Which arguments of `{name}` have no default?", "What must I pass to `{name}`?"),
    "default": ("What is the default of `{parameter}` in `{name}`?", "If I leave out `{parameter}`, what does `{name}` use?"),
    "search": ("Which {kind} in `{module}` is described so: {sentence}", "Name the {kind} of the module `{module}`: {sentence}"),
    "kind": ("Is `{name}` a class or a function?", "What kind of object is `{name}`, and where is it from?"),
    "then": ("And its signature?", "How is it called?", "Which parameters does it take?"),
}


@dataclass(frozen=True)
class Fact:
    """One documented function or class at the top of a module. `signature` has its parentheses; None: not known."""

    name: str
    module: str
    kind: str
    signature: str | None
    docstring: str

    @cached_property
    def arguments(self) -> ast.arguments | None:
        return None if self.signature is None else parse(self.signature)

    @property
    def purpose(self) -> str:
        """The docstring, or so many of its first paragraphs as fit; empty where not even one does."""
        shown = ""
        for paragraph in self.docstring.strip().split("\n\n"):
            longer = f"{shown}\n\n{paragraph}" if shown else paragraph
            if len(longer) > _LONGEST_ANSWER:
                break
            shown = longer
        return shown.rstrip()

    @property
    def sentence(self) -> str:
        """The first sentence, or paragraph where that ends sooner, on one line."""
        paragraph = " ".join(self.docstring.strip().split("\n\n", 1)[0].split())
        end = paragraph.find(". ")
        return paragraph if end < 0 else paragraph[: end + 1]


def stdlib() -> Iterable[Row]:
    """One conversation a function or class, so that no fact is on both sides of a split. Ids are instructions/<name>.

    Asked: what it does, its signature, the required arguments, a default, its name by its description (where one alone in the library
    has it), what kind of object it is; some go on to the signature, some have a system turn. A hash of the name chooses, so that equal
    Pythons give equal rows. Facts that preferences.stdlib takes are left out.
    """
    return Fixed(_rows, PYTHON)


def _rows() -> Iterator[Row]:
    known = facts()
    sentences = Counter(fact.sentence for fact in known)
    for fact in known:
        if not for_preferences(fact):
            yield _conversation(fact, sentences[fact.sentence] == 1)


@cache  # two sources read it
def facts() -> tuple[Fact, ...]:
    """In the order of builtin.stdlib; of equal docstrings the first. Docstrings that are too short, or an example alone, are left out."""
    found: dict[str, Fact] = {}
    for document in builtin.stdlib():
        if (fact := _fact(document)) and len(fact.docstring) >= _SHORTEST_DOCSTRING and not fact.docstring.lstrip().startswith(">>>"):
            found.setdefault(fact.docstring, fact)
    return tuple(found.values())


def for_preferences(fact: Fact) -> bool:
    """A fifth of the facts, so that what preferences are judged on was in no conversation."""
    return _number(fact.name, "source") % 5 == 0


def ask(fact: Fact, about: str, **more: str) -> str:
    wording = choose(_WORDINGS[about], fact.name, about)
    return wording.format(name=fact.name, kind=fact.kind, module=fact.module, sentence=fact.sentence, **more)


def choose(choices: Sequence[_T], name: str, purpose: str) -> _T:
    """One of them by a hash of the name and of what it is chosen for."""
    return choices[_number(name, purpose) % len(choices)]


def parse(signature: str) -> ast.arguments | None:
    """The parameters in `(a, *, b=1)`; None where that is no Python, as in `(x=<unrepresentable>)`."""
    try:
        (function,) = ast.parse(f"def f{signature}: ...").body
    except SyntaxError:
        return None
    return function.args if isinstance(function, ast.FunctionDef) else None


def required(arguments: ast.arguments) -> list[str]:
    """Parameters without a default, in order; *args and **kwargs are none."""
    positional = [*arguments.posonlyargs, *arguments.args]
    without = positional[: len(positional) - len(arguments.defaults)]
    keyword = [parameter for parameter, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    return [parameter.arg for parameter in (*without, *keyword)]


def defaults(arguments: ast.arguments) -> dict[str, str]:
    """Parameter -> its default, as Python source. Private names stand for "not given" and are left out."""
    positional = [*arguments.posonlyargs, *arguments.args]
    last = positional[len(positional) - len(arguments.defaults) :]
    pairs = [*zip(last, arguments.defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    found = {parameter.arg: ast.unparse(default) for parameter, default in pairs if default is not None}
    return {parameter: default for parameter, default in found.items() if not default.startswith("_")}


def _conversation(fact: Fact, one_of_its_kind: bool) -> Conversation:
    pairs = choose([*_dialogues(fact, one_of_its_kind)], fact.name, "dialogue")
    system = choose((None, None, None, *_SYSTEM), fact.name, "system")
    turns = [{"role": "system", "content": system}] if system else []
    for question, answer in pairs:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(f"instructions/{fact.name}", tuple(turns), fact.module)


def _dialogues(fact: Fact, one_of_its_kind: bool) -> Iterator[list[Pair]]:
    """What can be asked about it; what a model is to do most stands more than once."""
    called = f"`{fact.name}{fact.signature}`"
    if fact.purpose:
        about = (ask(fact, "purpose"), fact.purpose)
        yield from ([about], [about])
        if fact.signature:
            yield from ([about, (ask(fact, "then"), called)],) * 2
    if fact.signature:
        yield [(ask(fact, "signature"), called)]
    if fact.arguments:
        yield [(ask(fact, "required"), _requirement(fact.name, required(fact.arguments)))]
        if optional := defaults(fact.arguments):
            parameter = choose(list(optional), fact.name, "parameter")
            yield [(ask(fact, "default", parameter=parameter), f"`{parameter}` defaults to `{optional[parameter]}`.")]
    if one_of_its_kind and len(fact.sentence) <= _LONGEST_SENTENCE and fact.name.rpartition(".")[2] not in fact.sentence:
        yield [(ask(fact, "search"), f"`{fact.name}`")]
    yield [(ask(fact, "kind"), f"`{fact.name}` is a {fact.kind} in the module `{fact.module}`.")]


def _requirement(name: str, names: list[str]) -> str:
    if not names:
        return f"None: `{name}` can be called without arguments."
    *others, last = (f"`{each}`" for each in names)
    return f"`{name}` requires {', '.join(others)} and {last}." if others else f"`{name}` requires {last}."


def _fact(document: Document) -> Fact | None:
    """None for modules and methods, and for what only looks like a function: typing's special forms are written with a `self`."""
    name, module = document.id.rpartition(":")[2], _module(document.origin)
    if name.rpartition(".")[0] != module or module.partition(".")[0] in _LEFT_OUT:
        return None
    signature = document.text.split("\n", 1)[0].removeprefix(name)
    kind = _kind(document.origin, name, signature)
    if kind is None or signature.startswith("(self"):
        return None
    return Fact(name, module, kind, signature if signature and parse(signature) else None, document.key)


def _module(origin: str) -> str:
    """json/__init__.py -> json; a compiled module's origin is its name."""
    return origin.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _kind(origin: str, name: str, signature: str) -> str | None:
    if origin.endswith(".py"):
        return "function" if signature else "class"  # parsed: a function always has a signature, a class none
    module, _, attribute = name.rpartition(".")
    item = getattr(importlib.import_module(module), attribute)
    return "class" if inspect.isclass(item) else "function" if inspect.isroutine(item) else None


def _number(name: str, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}/{name}".encode()).digest()[:8], "big")
