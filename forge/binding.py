"""Checks configuration against what will receive it, before anything is loaded: specs and the signatures of `_target_`s.

Hydra accepts any key under a `_target_` until the function is called. Here every node is bound first, and every problem
of the whole configuration is collected, each with its path and the nearest valid name.
"""

import difflib
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

T = TypeVar("T")

ALLOWED_TARGETS = ("forge.", "mlx.optimizers.")


class Problems(list[str]):
    """What is wrong with a configuration, one line each."""

    def add(self, path: str, what: str) -> None:
        line = f"{path}: {what}"
        if line not in self:
            self.append(line)


def spec(kind: type[T], node: Any, path: str, problems: Problems) -> T | None:
    """`node` (plain dicts and lists) as the spec `kind`; None when something is wrong with it."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(node), strict=True)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _explain(detail, kind, node, path, problems)
        return None


def target(node: Any, path: str, problems: Problems, allowed: Iterable[str] = ()) -> partial[Any] | None:
    """The callable that `node` names by `_target_`, with the node's other keys bound as its knobs.

    A function's knobs are its keyword-only parameters: what stands before them is the caller's. A class's knobs are all
    parameters of its constructor. `allowed` adds prefixes to ALLOWED_TARGETS.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        problems.add(path, "needs a _target_ (the dotted name of a function or class)")
        return None
    name = node["_target_"]
    callee = _locate(name, f"{path}._target_", problems, (*ALLOWED_TARGETS, *allowed))
    if callee is None:
        return None
    values = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    model = create_model(
        name.rpartition(".")[2], __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False), **_knobs(callee)
    )
    if spec(model, values, path, problems) is None:
        return None
    return partial(callee, **values)


def _locate(name: str, path: str, problems: Problems, allowed: tuple[str, ...]) -> Callable[..., Any] | None:
    if not name.startswith(allowed):
        problems.add(
            path, f"{name!r} is outside the allowed packages ({', '.join(allowed)}); add its prefix to allowed_targets if you trust it"
        )
        return None
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there; one of its own imports is not
        problems.add(path, f"there is no module {error.name!r}")
        return None
    callee = getattr(module, attribute, None)
    if not callable(callee):
        here = [(key, value) for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        names = [key for key, value in here if getattr(value, "__module__", "").startswith(module_name)]  # not what it imports
        problems.add(path, f"{module_name} has no {attribute!r}{nearest(attribute, names)}")
        return None
    return callee


def _knobs(callee: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(callee).parameters.values()
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY or (inspect.isclass(callee) and p.kind is p.POSITIONAL_OR_KEYWORD)]
    hints = get_type_hints(callee.__init__ if inspect.isclass(callee) else callee, include_extras=True)
    return {p.name: (hints.get(p.name, Any), ... if p.default is p.empty else p.default) for p in named}


def _explain(detail: ErrorDetails, kind: Any, node: Any, path: str, problems: Problems) -> None:
    *parents, last = _keys(detail["loc"], node) or ("",)
    where = ".".join(part for part in (path, *parents, last) if part)
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        names = _field_names(kind, parents)
        problems.add(where, f"unknown key{nearest(last, names)}")
    elif detail["type"] in ("missing", "missing_argument"):
        problems.add(where, "is required and has no value")
    elif detail["type"] == "value_error":
        problems.add(where, str(detail["ctx"]["error"]))
    else:
        message = detail["msg"].removeprefix("Input ").removeprefix("String ")
        problems.add(where, f"{detail['input']!r} {message}")


def _keys(location: tuple[int | str, ...], node: Any) -> list[str]:
    """The part of a location that names keys of `node`; pydantic adds the branch of a union."""
    keys = []
    for part in location:
        if not isinstance(node, Mapping | list) or isinstance(node, list) != isinstance(part, int):
            break
        keys.append(str(part))
        node = node[part] if isinstance(part, int) else node.get(part)  # type: ignore[union-attr]
    return keys


def _field_names(kind: Any, parents: list[str]) -> list[str]:
    """The valid names beside an unknown key. A dict of specs takes one step of the path without naming a field."""
    for parent in parents:
        fields = _fields(kind)
        if parent in fields:
            kind = fields[parent].annotation
        arguments = [a for a in getattr(kind, "__args__", ()) if _fields(a)]
        kind = arguments[0] if arguments else kind
    return list(_fields(kind))


def _fields(kind: Any) -> Mapping[str, Any]:
    return getattr(kind, "model_fields", None) or getattr(kind, "__pydantic_fields__", None) or {}


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: the closest valid one, of close ones that with the same letters, and all of them."""
    valid = sorted(valid)
    close = sorted(difflib.get_close_matches(name, valid), key=lambda one: sorted(one) != sorted(name))
    return (f"; did you mean {close[0]!r}?" if close else "") + (f" (valid: {', '.join(valid)})" if valid else "")
