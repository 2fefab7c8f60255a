"""Versions of what forge stands on, how they differ from those that it is tested with, and what optional parts are there."""

import platform
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

import forge
from forge import paths
from forge.checks import Finding

_SHOWN = ("mlx", "mlx-lm", "mlflow", "hydra-core", "transformers", "tokenizers", "numpy")
_DISTRIBUTION = "forge-mlx"
_NO_FEATURE = ("cpu", "cuda12", "cuda13", "dev")  # extras that are backends, or tools of who works on forge
_GIVES = {
    "search": "sweep=tpe, random and grid",
    "slurm": "hydra/launcher=submitit_slurm and submitit_local",
    "ray": "hydra/launcher=ray",
    "tensorboard": "tracking.tensorboard=true",
    "language": "the language filter",
    "lm-eval": "lm-evaluation-harness tasks",
    "bench": "what scripts/bench is held against",
}


def versions() -> Iterator[Finding]:
    """Each of the main ones, against pyproject.toml's floors and, in a checkout, constraints.txt."""
    python = platform.python_version()
    yield Finding("python", "ok", f"{python} at {sys.prefix}")
    yield Finding(
        "forge", "ok", f"{forge.__version__}, {'the checkout' if paths.in_checkout() else 'installed'} at {Path(forge.__file__).parent}"
    )
    tested, needed = _tested(), {one.name: one for one in _requirements() if not _extra(one) and _applies(one)}
    for name in _SHOWN:
        yield _compared(name, tested.get(name), needed.get(name))
    missing = [str(one.name) for name, one in needed.items() if name not in _SHOWN and not _fits(one)]
    if missing:
        yield Finding("other packages", "problem", f"missing or too old: {', '.join(missing)}", _install(missing))


def drift() -> Iterator[Finding]:
    """The rest of constraints.txt, in one line."""
    tested = _tested()
    if not tested:
        return
    pairs = [(name, wanted, found) for name, wanted in tested.items() if name not in _SHOWN and (found := _version(name))]
    differ = [f"{name} {found} (tested {wanted})" for name, wanted, found in pairs if found != wanted]
    if differ:
        named = ", ".join(differ[:3]) + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")
        yield Finding("constraints.txt", "note", f"{len(differ)} of {len(pairs)} other packages differ: {named}", _install())
    else:
        yield Finding("constraints.txt", "ok", f"{len(pairs)} other packages are the tested ones")


def extras() -> Iterator[Finding]:
    """What can be added. An extra counts as there when all that it names is."""
    found: dict[str, list[Requirement]] = {}
    for one in _requirements():
        if (extra := _extra(one)) and extra not in _NO_FEATURE:
            found.setdefault(extra, []).append(one)
    for extra, needed in found.items():
        gives = _GIVES.get(extra, "")
        if all(_fits(one) for one in needed):
            there = ", ".join(f"{one.name} {_version(one.name)}" for one in needed)
            yield Finding(extra, "ok", f"{there}{f': {gives}' if gives else ''}")
        else:
            yield Finding(extra, "off", f"not installed{f'; it gives {gives}' if gives else ''}", f"pip install '{_DISTRIBUTION}[{extra}]'")


def _compared(name: str, tested: str | None, needed: Requirement | None) -> Finding:
    found = _version(name)
    if found is None:
        return Finding(name, "problem", "not installed", _install([name]))
    if needed is not None and not needed.specifier.contains(found, prereleases=True):
        return Finding(name, "problem", f"{found}, but forge needs {needed.specifier}", _install([name]))
    if tested is not None and found != tested:
        return Finding(name, "note", f"{found}, tested with {tested}", _install([name]))
    return Finding(name, "ok", found)


def _tested() -> dict[str, str]:
    """constraints.txt of a checkout: the versions that hold on this platform, by name."""
    file = paths.code() / "constraints.txt"
    if not (paths.in_checkout() and file.is_file()):
        return {}
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    parsed = [_parsed(line) for line in lines if line]
    applying = [one for one in parsed if one is not None and _applies(one)]
    return {one.name: next(iter(one.specifier)).version for one in applying if len(one.specifier) == 1}


def _requirements() -> list[Requirement]:
    """Those of forge, the extras' with a marker that names the extra: of the checkout, else of what is installed."""
    if paths.in_checkout():
        project = tomllib.loads((paths.code() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        of_extras = [f'{_marked(line)} extra == "{extra}"' for extra, lines in project["optional-dependencies"].items() for line in lines]
        listed: Sequence[str] = [*project["dependencies"], *of_extras]
    else:
        try:
            listed = metadata.requires(_DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            listed = []
    return [one for line in listed if (one := _parsed(line)) is not None]


def _marked(line: str) -> str:
    return f"{line} and" if ";" in line else f"{line};"


def _parsed(line: str) -> Requirement | None:
    try:
        return Requirement(line)
    except InvalidRequirement:
        return None


def _extra(one: Requirement) -> str:
    """The extra that a requirement is for; "" where it is for all."""
    _, named, rest = str(one.marker or "").partition("extra == ")
    return rest.split()[0].strip("\"')") if named else ""


def _applies(one: Requirement) -> bool:
    return one.marker is None or one.marker.evaluate({"extra": ""})


def _fits(one: Requirement) -> bool:
    found = _version(one.name)
    return found is not None and one.specifier.contains(found, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _install(names: Sequence[str] = ()) -> str:
    """In a checkout everything that it constrains, else the packages named."""
    if paths.in_checkout():
        what = " ".join(names) if names else "-e ."
        return f"cd {paths.code()} && pip install -c constraints.txt {what}"
    return f"pip install --upgrade {' '.join(names) or _DISTRIBUTION}"
