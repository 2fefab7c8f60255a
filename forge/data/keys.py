"""Keys of what is kept on disk: they hold all that can change it, the code included, by content and not by file time."""

import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def describe(function: Callable[..., Any]) -> str:
    """A function chosen by configuration, with its knobs and the state of its code: what it gives changes when one of them does."""
    bound = function if isinstance(function, functools.partial) else functools.partial(function)
    name, knobs = f"{bound.func.__module__}.{bound.func.__qualname__}", sorted(bound.keywords.items())
    return f"{name} {bound.args} {knobs} {_code_state(bound.func.__module__)}"


def digest_of(*parts: Any) -> str:
    """32 hex digits of the parts and of the state of this package's code: a key of the cache."""
    listed = json.dumps([str(part) for part in parts] + [_package_state()])
    return hashlib.sha256(listed.encode()).hexdigest()[:32]


def _code_state(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    return _state(file) if file else ""


@functools.cache
def _package_state() -> str:
    here = Path(__file__).parent
    return " ".join(_state(str(path)) for path in (here.parent / "spec.py", *sorted(here.rglob("*.py"))))


def _state(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
