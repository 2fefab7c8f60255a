"""Real text that every machine has: the documentation of the Python that runs forge. About 1.9 MB, nothing downloaded.

Python files are parsed, not imported; modules compiled into the interpreter are inspected. Two to three seconds in all.
"""

import ast
import functools
import importlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from forge.data.sources import PYTHON, Fixed
from forge.spec import Document

# Tests of the library and vendored installers are not its documentation.
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "lib2to3", "idlelib", "turtledemo", "__pycache__"}

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | _Definition


def stdlib() -> Iterable[Document]:
    """Every public docstring of the standard library: a line `module.name(signature)`, an empty line, the text.

    Public: no part of the dotted name starts with an underscore, save __init__ modules. One docstring that stands in several
    places (posixpath and ntpath, say) has one `key`, so that it counts as a duplicate.
    """
    return Fixed(_stdlib, PYTHON)


def reference() -> Iterable[Document]:
    """The topics of the language reference that help() shows ("for", "OPERATORS", …)."""
    return Fixed(_reference, PYTHON)


@functools.cache
def _stdlib() -> tuple[Document, ...]:
    builtin = [name for name in sorted(sys.builtin_module_names) if not name.startswith("_")]
    inspected = (document for name in builtin for document in _inspected(importlib.import_module(name)))
    return (*_parsed(Path(sysconfig.get_paths()["stdlib"])), *inspected)


@functools.cache
def _reference() -> tuple[Document, ...]:
    from pydoc_data import topics

    return tuple(
        Document(id=f"reference/{name}", text=text.strip() + "\n", origin="pydoc_data.topics")
        for name, text in sorted(topics.topics.items())
    )


def _parsed(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _SKIPPED.intersection(parts):
            continue
        module = ".".join(part for part in parts if part != "__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in others' files
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # lib2to3-like fixtures: not Python of this version
        if module and _public(module):
            documents = {d.id: d for d in reversed([*_walk(tree, module, "/".join(parts) + ".py")])}  # the first of one name stays
            yield from reversed(documents.values())


def _walk(node: _Documented, name: str, origin: str) -> Iterator[Document]:
    if text := ast.get_docstring(node):
        signature = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""
        yield _document(name, signature, text, origin)
    for child in _definitions(node):
        if not child.name.startswith("_"):
            yield from _walk(child, f"{name}.{child.name}", origin)


def _definitions(node: ast.AST) -> Iterator[_Definition]:
    """Those of a body, also where they stand in an if or a try."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from _definitions(child)


def _inspected(module: ModuleType) -> Iterator[Document]:
    yield from _described(module, module.__name__, module.__name__)
    for name, item in sorted(vars(module).items()):
        if name.startswith("_") or inspect.ismodule(item):
            continue
        if callable(item):
            yield from _described(item, f"{module.__name__}.{name}", module.__name__)
        if inspect.isclass(item):
            for member, value in sorted(vars(item).items()):
                if not member.startswith("_"):
                    yield from _described(value, f"{module.__name__}.{name}.{member}", module.__name__)


def _described(item: object, name: str, origin: str) -> Iterator[Document]:
    text = item.__doc__
    if isinstance(text, str) and text.strip() and text != type(item).__doc__:
        try:
            signature = str(inspect.signature(item)) if callable(item) else ""
        except (ValueError, TypeError):
            signature = ""  # many compiled functions have none
        yield _document(name, signature, inspect.cleandoc(text), origin)


def _document(name: str, signature: str, text: str, origin: str) -> Document:
    return Document(id=f"stdlib/{origin}:{name}", text=f"{name}{signature}\n\n{text}\n", origin=origin, key=text)


def _public(module: str) -> bool:
    return not any(part.startswith("_") for part in module.split("."))
