"""What a child's result depends on besides its configuration: the code, the data as it is read now, and the base model as it is now.

`python -m forge.sweep.identity` reads command lines (JSON) from its input and prints what their data and base are. It is a process of
its own because it imports MLX, and costs the start of a run for each data, model and seed that differ; what is prepared is kept.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from forge import jobs
from forge.config import Config
from forge.entry import entry
from forge.errors import ForgeError
from forge.imports import lasting

_FORGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ground:
    """What a configuration trains on: the digest of all its rows, and the base model with its revision."""

    data: str
    base: str


class Today:
    """The ground of configurations, as it is now. Each that differs is looked at once."""

    def __init__(self, flags: Sequence[str]):
        self._flags = flags
        self._known: dict[str, Ground] = {}

    def of(self, wanted: Sequence[tuple[Config, Sequence[str]]]) -> list[Ground]:
        """For (configuration, its overrides) pairs. Raises ForgeError where rows or base can't be read."""
        new = {key: overrides for config, overrides in wanted if (key := _key(config)) not in self._known}
        if new:
            self._known |= zip(new, self._look([[*self._flags, *overrides] for overrides in new.values()]), strict=True)
        return [self._known[_key(config)] for config, _ in wanted]

    def _look(self, lines: list[list[str]]) -> list[Ground]:
        done = subprocess.run([sys.executable, "-m", __name__], input=json.dumps(lines), capture_output=True, encoding="utf-8")
        if done.returncode:
            why = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ForgeError(f"the data and the base of finished runs can't be looked at: {why[-1].removeprefix('error: ')}")
        return [Ground(**ground) for ground in json.loads(done.stdout)]


def code(allowed: Sequence[str]) -> str:
    """The digest of forge's own source files, and of those of the packages that a _target_ may name ("mypackage.")."""
    folders = [_FORGE, *(path for prefix in allowed for path in _places(prefix.partition(".")[0]))]
    total = hashlib.sha256()
    for folder in dict.fromkeys(folders):
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*.py")):
            total.update(f"{path.relative_to(folder.parent)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _places(package: str) -> Iterator[Path]:
    """A module's file, or a package's folders. Imports nothing."""
    found = importlib.util.find_spec(package)
    if found and found.submodule_search_locations:
        yield from map(Path, found.submodule_search_locations)
    elif found and found.has_location and found.origin:
        yield Path(found.origin)


def _key(config: Config) -> str:
    """Equal where data and base are sure to be."""
    tree: dict[str, Any] = dict(config.resolved)
    return json.dumps([tree["data"], tree["model"], config.seed, config.trainer.dtype], sort_keys=True)


def _print(argv: list[str]) -> int:
    with lasting():
        from forge.assemble import assemble

    grounds = []
    with redirect_stdout(sys.stderr):
        for line in json.load(sys.stdin):
            config = jobs.single(line, "one job at a time")
            assert config
            parts = assemble(config, partial(_fetch, config.tracking.uri))
            grounds.append(asdict(Ground(parts.data.ledger.digest, str(parts.loaded.lineage))))
    print(json.dumps(grounds))
    return 0


def _fetch(configured: str | None, uri: str) -> tuple[Path, str]:
    """Of a registered base, which alone needs MLflow: its import takes as long as all the rest."""
    from forge.tracking import registry

    return registry.fetch(configured, uri)


if __name__ == "__main__":
    sys.exit(entry(_print, sys.argv[1:]))
