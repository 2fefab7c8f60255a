"""Keeps the import rules: layers one way, and hydra, mlflow and mlx only where they belong.

Every import counts, also one inside a function or under TYPE_CHECKING. Names are below forge: "data" is forge/data.
"""

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("forge/**/*.py"))

ENTRIES = ("train", "evaluate", "release.__main__", "serve", "chat", "watch", "compare", "plan", "data_report", "reproduce", "doctor")
LAYERS: tuple[tuple[str, ...], ...] = (  # a module imports from its own layer and from those before it
    ("__init__", "values", "settings", "spec", "units", "errors", "paths", "audit", "blas", "signals", "progress", "entry", "imports"),
    ("arrays", "bars", "chat_template"),
    ("training.schedules", "training.formulation", "training.streams", "training.history", "training.choice"),
    ("evaluation.text", "evaluation.corpus", "evaluation.scores", "evaluation.instructions", "reports"),
    ("training.host", "training.attention", "training.isolation", "training.ends", "training.cross_entropy", "training.objectives"),
    ("data", "models", "training.checkpoint", "training.optim"),
    ("training", "training.engine", "training.callbacks"),
    ("config", "binding", "keys", "words", "stages", "mistakes", "sweep.space", "jobs", "tracking", "serving"),
    ("assemble",),
    ("evaluation", "console"),
    ("release", "estimate", "batch_size", "checks"),
    ("evidence",),
    ("runner", "evaluation.measure", "pins"),
    ("sweep", "rerun"),
    ("chain",),
    ENTRIES,
)
LAYER_OF = {unit: number for number, units in enumerate(LAYERS) for unit in units}

ONLY_FROM_FORGE = {  # stricter than the layers
    "serving": ("serving", "errors", "blas", "chat_template", "__init__"),  # it must load where training code is absent
    "config": ("config", "binding", "stages", "settings", "spec", "units", "errors", "paths", "__init__"),
    "jobs": ("jobs", "config", "binding", "words", "stages", "mistakes", "sweep.space", "errors", "paths", "__init__"),
    "sweep.space": ("sweep.space", "binding", "errors", "__init__"),
    "keys": ("keys", "binding", "errors", "__init__"),
    "words": ("words", "errors", "paths", "__init__"),
    "stages": ("stages", "binding", "errors", "__init__"),
    "mistakes": ("mistakes", "binding", "__init__"),
    "binding": ("binding", "settings", "spec", "units", "errors", "paths", "__init__"),
}
ONLY_IN = {"hydra": ("jobs", "sweep", "sweep.space", *ENTRIES), "mlflow": ("tracking", "serving", "sweep")}
MLX_FREE = (*LAYERS[0], "config", "binding", "jobs", "training.schedules", "reports", "tracking", "data")


def module_name(path: str) -> str:
    """ "forge/data/pack.py" -> "forge.data.pack"; a package's __init__.py -> the package."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def unit_of(module: str) -> str | None:
    """The longest entry of LAYERS that holds this forge module or name; None when there is none."""
    parts = module.split(".")[1:]
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LAYER_OF), None if parts else "__init__")


def imports(source: str, path: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) for each name imported anywhere in the source."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(source: str, path: str) -> list[str]:
    """One line for each import in the source that breaks a rule."""
    unit = unit_of(module_name(path))
    if unit is None:
        return [f"{path} has no layer: add it to LAYERS"]
    return [f"{path}:{line} imports {name}: {why}" for line, name in imports(source, path) if (why := forbidden(unit, name))]


def forbidden(unit: str, name: str) -> str | None:
    top = name.split(".")[0]
    if top in ONLY_IN and unit not in ONLY_IN[top]:
        return f"{top} belongs in {', '.join(ONLY_IN[top])}"
    if top in ("mlx", "mlx_lm") and unit in MLX_FREE:
        return f"{unit} stays free of MLX"
    if top != "forge":
        return None
    target = unit_of(name) or "__init__"  # forge.__version__
    if unit in ONLY_FROM_FORGE and target not in ONLY_FROM_FORGE[unit]:
        return f"{unit} imports only {', '.join(ONLY_FROM_FORGE[unit])}"
    if LAYER_OF[target] > LAYER_OF[unit]:
        return f"{target} is above {unit}"
    return None


def cycle(sources: Iterable[tuple[str, str]]) -> list[str]:
    """Units of (source, path) pairs that import each other in a ring; empty when there is no ring."""
    graph: dict[str, set[str]] = {}
    for source, path in sources:
        unit = unit_of(module_name(path)) or path
        targets = {unit_of(name) for _, name in imports(source, path) if name.split(".")[0] == "forge"}
        graph.setdefault(unit, set()).update(target for target in targets if target and target not in (unit, "__init__"))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", FILES)
def test_imports_keep_the_rules(path: str) -> None:
    found = violations((ROOT / path).read_text(encoding="utf-8"), path)
    assert not found, "\n".join(found)


def test_no_units_import_each_other() -> None:
    assert cycle(((ROOT / path).read_text(encoding="utf-8"), path) for path in FILES) == []


@pytest.mark.parametrize(
    ("path", "source", "why"),
    [
        ("forge/data/pack.py", "def pack():\n    import mlx.core as mx", "data stays free of MLX"),
        ("forge/tracking/run.py", "from mlx_lm import load", "tracking stays free of MLX"),
        ("forge/training/engine.py", "from hydra.utils import call", "hydra belongs in"),
        ("forge/train.py", "import os, mlflow.pyfunc", "mlflow belongs in"),
        ("forge/units.py", "from .data import build", "data is above units"),
        ("forge/training/objectives/dpo.py", "from ..engine import fit", "training.engine is above training.objectives"),
        ("forge/models/load.py", "from forge import tracking", "tracking is above models"),
        ("forge/serving/model.py", "if TYPE_CHECKING:\n    from forge.spec import Batch", "serving imports only"),
        ("forge/config.py", "import forge.data.mix", "config imports only"),
        ("forge/novelty.py", "", "has no layer"),
    ],
)
def test_a_broken_rule_is_reported(path: str, source: str, why: str) -> None:
    (found,) = violations(source, path)
    assert path in found and why in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("forge/train.py", "import hydra\nfrom forge import __version__, config, data, tracking\nfrom forge.training import engine"),
        ("forge/serving/model.py", "import mlx.core\nfrom forge import blas\nfrom forge.errors import ModelError\nfrom . import prompt"),
        ("forge/training/engine.py", "import mlx.nn as nn\nfrom forge.training.callbacks import Snapshot\nfrom .checkpoint import Store"),
    ],
)
def test_a_kept_rule_is_not(path: str, source: str) -> None:
    assert violations(source, path) == []


def test_a_ring_is_reported() -> None:
    ring = [("import forge.models", "forge/data/mix.py"), ("import forge.data", "forge/models/load.py")]
    assert set(cycle(ring)) == {"data", "models"}
