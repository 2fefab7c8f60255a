"""Specs and signatures that configuration is checked against, on toys in a package outside forge."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from forge import binding
from forge.binding import Problems, nearest
from forge.settings import DataSpec

TOYS = """
from dataclasses import dataclass
from typing import Annotated, Literal
from pydantic import Field

limit = 3

def scaled(batch, *, factor: Annotated[float, Field(gt=0)], side: Literal["left", "right"] = "left", layers: int | None = None):
    return factor * batch, side, layers

def free(*, anything):
    return anything

@dataclass
class Counter:
    start: int
    step: int = 2
"""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Leaf:
    count: int
    share: float = 1.0
    label: str | None = None
    on: bool = False


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Tree:
    leaf: Leaf
    leaves: dict[str, Leaf]


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package `toys` that can be imported."""
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "__init__.py").write_text(TOYS)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "toys"]:
        del sys.modules[name]


def bind(node: Any, allowed: tuple[str, ...] = ("toys.",)) -> tuple[Any, Problems]:
    problems = Problems()
    return binding.target(node, "x", problems, allowed), problems


def bind_spec(kind: type, node: Any) -> tuple[Any, Problems]:
    problems = Problems()
    return binding.spec(kind, node, "x", problems), problems


# ---- targets ----------------------------------------------------------------------------------------------------------


def test_a_function_gets_its_knobs_and_waits_for_the_rest() -> None:
    bound, problems = bind({"_target_": "toys.scaled", "_partial_": True, "factor": 2.5, "layers": 4})
    assert problems == []
    assert bound(10) == (25.0, "left", 4)


def test_a_class_gets_its_fields() -> None:
    bound, problems = bind({"_target_": "toys.Counter", "start": 5})
    assert problems == []
    assert (bound().start, bound().step) == (5, 2)
    assert bound() is not bound()


def test_every_problem_of_a_node_is_told_at_once() -> None:
    _, problems = bind({"_target_": "toys.scaled", "factr": 1.0, "side": "up", "layers": 1.5})
    assert sorted(problems) == [
        "x.factor: is required and has no value",
        "x.factr: unknown key; did you mean 'factor'? (valid: factor, layers, side)",
        "x.layers: 1.5 should be a valid integer",
        "x.side: 'up' should be 'left' or 'right'",
    ]


def test_what_the_caller_passes_is_no_knob() -> None:
    _, problems = bind({"_target_": "toys.scaled", "factor": 1.0, "batch": 3})
    assert problems == ["x.batch: unknown key (valid: factor, layers, side)"]


@pytest.mark.parametrize("factor", [0, -1.0, "1.0", True, None, [1.0]])
def test_types_and_limits_come_from_the_signature(factor: object) -> None:
    bound, problems = bind({"_target_": "toys.scaled", "factor": factor})
    assert bound is None
    (line,) = problems
    assert line.startswith(f"x.factor: {factor!r} should be ")


def test_a_whole_number_passes_for_a_float() -> None:
    assert bind({"_target_": "toys.scaled", "factor": 2})[1] == []


def test_a_knob_without_a_type_takes_anything() -> None:
    bound, problems = bind({"_target_": "toys.free", "anything": {"a": [1]}})
    assert problems == []
    assert bound() == {"a": [1]}


def test_a_knob_of_two_types_is_told_by_its_own_name() -> None:
    _, problems = bind({"_target_": "mlx.optimizers.SGD", "learning_rate": "fast"})
    assert {line.split(":")[0] for line in problems} == {"x.learning_rate"}


def test_mlx_s_optimizers_are_allowed_without_being_listed() -> None:
    bound, problems = bind({"_target_": "mlx.optimizers.SGD", "learning_rate": 0.5}, allowed=())
    assert problems == []
    assert float(bound().learning_rate) == 0.5


@pytest.mark.parametrize("node", [None, 5, "toys.scaled", {}, {"factor": 1.0}, {"_target_": 5}])
def test_a_node_without_a_target_is_told(node: object) -> None:
    assert bind(node)[1] == ["x: needs a _target_ (the dotted name of a function or class)"]


@pytest.mark.parametrize("name", ["os.system", "toys.scaled", "forgery.run", "mlx.nn.Linear", "builtins.eval", "_target_"])
def test_a_target_outside_the_allowed_packages_is_refused(name: str) -> None:
    bound, problems = bind({"_target_": name}, allowed=("other.",))
    assert bound is None
    assert problems == [
        f"x._target_: {name!r} is outside the allowed packages (forge., mlx.optimizers., other.); "
        "add its prefix to allowed_targets if you trust it"
    ]


def test_a_refused_target_s_module_is_not_imported() -> None:
    bind({"_target_": "toys.scaled", "factor": 1.0}, allowed=())
    assert "toys" not in sys.modules


def test_an_unknown_function_gets_the_nearest_name() -> None:
    (line,) = bind({"_target_": "toys.scalled"})[1]
    assert line.startswith("x._target_: toys has no 'scalled'; did you mean 'scaled'? (valid: ")


def test_what_can_t_be_called_is_no_target() -> None:
    (line,) = bind({"_target_": "toys.limit"})[1]
    assert line.startswith("x._target_: toys has no 'limit'")


def test_an_unknown_module_is_told() -> None:
    assert bind({"_target_": "toys.losses.scaled"})[1] == ["x._target_: there is no module 'toys.losses'"]
    assert bind({"_target_": "nosuch.losses.scaled"}, ("nosuch.",))[1] == ["x._target_: there is no module 'nosuch'"]


def test_a_module_that_lacks_an_import_of_its_own_is_not_called_missing(toys: Path) -> None:
    (toys / "broken.py").write_text("import nosuch")
    with pytest.raises(ModuleNotFoundError, match="nosuch"):
        bind({"_target_": "toys.broken.scaled"})


# ---- specs ------------------------------------------------------------------------------------------------------------


def test_a_right_node_becomes_its_spec() -> None:
    node = {"leaf": {"count": 1}, "leaves": {"a": {"count": 2, "share": 3, "label": "b", "on": True}}}
    assert bind_spec(Tree, node) == (Tree(Leaf(1), {"a": Leaf(2, 3.0, "b", True)}), [])


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("count", "1", "'1' should be a valid integer"),
        ("count", 1.5, "1.5 should be a valid integer"),
        ("count", True, "True should be a valid integer"),
        ("count", None, "None should be a valid integer"),
        ("share", "0.5", "'0.5' should be a valid number"),
        ("label", 5, "5 should be a valid string"),
        ("on", 1, "1 should be a valid boolean"),
        ("on", "yes", "'yes' should be a valid boolean"),
    ],
)
def test_a_wrong_type_is_told_and_never_converted(key: str, value: object, what: str) -> None:
    assert bind_spec(Leaf, {"count": 1, key: value}) == (None, [f"x.{key}: {what}"])


def test_names_are_those_of_the_place_where_the_key_stands() -> None:
    """Below `leaf`, and below an entry of `leaves`, the valid names are Leaf's and not Tree's."""
    _, problems = bind_spec(Tree, {"leaf": {"count": 1, "leaf": 1}, "leaves": {"a": {"count": 1, "cuont": 2}}, "leafs": {}})
    names = "(valid: count, label, on, share)"
    assert sorted(problems) == [
        f"x.leaf.leaf: unknown key {names}",
        "x.leafs: unknown key; did you mean 'leaf'? (valid: leaf, leaves)",
        f"x.leaves.a.cuont: unknown key; did you mean 'count'? {names}",
    ]


@pytest.mark.parametrize("name", ["x(1)", "a/b", "my source"])
def test_a_source_has_a_name_that_metrics_can_have(name: str) -> None:
    rest = {"sequence_length": 8, "valid_fraction": 0.1, "split_seed": 0}
    _, problems = bind_spec(DataSpec, {"sources": {name: {"source": {}}}, **rest})
    assert len(problems) == 1 and name in problems[0] and "should match pattern" in problems[0]


def test_a_source_named_like_a_field_keeps_its_own_names() -> None:
    sources = {"path": {"source": {}, "wieght": 2.0}}
    _, problems = bind_spec(DataSpec, {"sources": sources, "sequence_length": 8, "valid_fraction": 0.1, "split_seed": 0})
    assert problems == ["x.sources.path.wieght: unknown key; did you mean 'weight'? (valid: max_epochs, over_length, source, weight)"]


def test_what_is_no_mapping_is_told() -> None:
    assert bind_spec(Tree, {"leaf": 3, "leaves": {}})[1] == ["x.leaf: 3 should be an object"]


# ---- words ------------------------------------------------------------------------------------------------------------


def test_the_nearest_name_stands_before_all_names() -> None:
    assert nearest("wieght", ["weight", "source"]) == "; did you mean 'weight'? (valid: source, weight)"


def test_of_two_close_names_the_one_with_the_same_letters_is_meant() -> None:
    assert nearest("modle", ["mode", "model"]) == "; did you mean 'model'? (valid: mode, model)"
    assert nearest("modee", ["mode", "model"]) == "; did you mean 'mode'? (valid: mode, model)"


def test_a_name_like_no_other_gets_no_guess() -> None:
    assert nearest("zzz", ["weight", "source"]) == " (valid: source, weight)"
    assert nearest("zzz", []) == ""


def test_a_problem_is_told_once() -> None:
    """The jobs of a sweep share most of their configuration."""
    problems = Problems()
    problems.add("x", "is wrong")
    problems.add("x", "is wrong")
    problems.add("y", "is wrong")
    assert problems == ["x: is wrong", "y: is wrong"]
