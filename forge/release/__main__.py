"""python -m forge.release run=RUN [quantise=RECIPES] [name=NAME] [alias=ALIAS] [release.…=…] : register the best checkpoint of a run.

    python -m forge.release run=RUN                       the fused model, as the run itself does at its end
    python -m forge.release run=RUN quantise=4bit         a 4-bit model, as NAME-4bit
    python -m forge.release run=RUN quantise=[4bit,awq]   several, held against each other in one table; each is registered
    python -m forge.release run=RUN release.max_kl=0.5    with another threshold of the gate (conf/release/default.yaml lists them)

RUN is an id, its beginning (6 characters or more) or a name. Recipes: Nbit (N = 2, 3, 4, 5, 6, 8), mixed_2_6, mixed_3_4, mixed_3_6,
mixed_4_6, dynamic_L_H, awq, dwq, gptq and these with -Nbit (else 4); each with -gG for groups of G = 32, 64 or 128 weights (else 64).
NAME is the run's release.name; name= is taken as it is for one model, and as the beginning where quantise= lists several.
Also: challenger=ALIAS, uri=STORE, and allowed_targets=[mypackage.] where the run's configuration calls functions of other packages.

The run's data and model are built again as the run built them, from the base that it had, under the run's lock. Exit code 6: refused by
the gate, or not the model that was evaluated. Costs loading and an evaluation, then for each model another, a comparison and some
generation.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from functools import partial
from typing import TYPE_CHECKING

from forge import paths
from forge.entry import entry
from forge.errors import ReleaseError
from forge.keys import read
from forge.settings import checked
from forge.values import ModelName, Recipes

if TYPE_CHECKING:
    from forge.config import Config
    from forge.release import Released
    from forge.tracking.reader import MlflowClient, Seen

_WAIT_S = 2.0


@checked(frozen=True, config={"extra": "forbid", "strict": True})
class Asked:
    """The words of the command line, but for release.…"""

    run: str
    quantise: Recipes = field(default_factory=list)
    name: ModelName | None = None
    alias: str | None = None
    challenger: str | None = None
    uri: str | None = None
    allowed_targets: list[str] = field(default_factory=list)


def main(argv: list[str]) -> int:
    """The exit code: 0, 6 where the gate refuses what was to be registered, or that of the error."""
    return entry(_main, argv)


def _main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    overrides = [word for word in argv if word.startswith("release.")]
    asked = read(Asked, [word for word in argv if not word.startswith("release.")])
    released = _release(asked, overrides)
    refused = [each.version.uri for each in (released, *released.others) if each.refused]
    if refused:
        raise ReleaseError(f"{', '.join(refused)}: refused by the gate, so without alias; the limits are release.… (see --help)")
    return 0


def _release(asked: Asked, overrides: Sequence[str]) -> "Released":
    from forge.tracking import reader
    from forge.tracking.recorded import recorded

    client = reader.opened(asked.uri)
    run = reader.find(client, asked.run)
    with _alone(run):
        _require_checkpoints(client, run)
        config = recorded(client, run, [*_overrides(asked), *overrides], asked.allowed_targets)
        return _register(asked, config, run)


def _register(asked: Asked, config: "Config", run: "Seen") -> "Released":
    from forge import pins
    from forge.assemble import assemble, store_of
    from forge.release import release
    from forge.tracking import registry

    if run.status != "FINISHED":
        print(f"run {run.name} is {run.status}: its best checkpoint so far is released")
    parts = assemble(pins.with_own_base(config, run), partial(registry.fetch, config.tracking.uri))
    pins.require_own(run, parts)
    best = store_of(config, parts, run.id).best()
    if best is None:
        raise ReleaseError(f"run {run.name} ({run.id[:8]}): no checkpoint of it was evaluated, so none can be chosen")
    print(f"run {run.name} ({run.id[:8]}), {best.why}")
    one = asked.name if len(asked.quantise) <= 1 else None
    released = release(config, parts, best.path, run.id, fused=not asked.quantise, name=one, anew=True)
    print(released.sentence())
    return released


def _require_checkpoints(client: "MlflowClient", run: "Seen") -> None:
    from forge.tracking import reader
    from forge.tracking.names import kind
    from forge.training.checkpoint import steps

    folder = paths.checkpoints(run.id)
    if steps(folder):
        return
    if children := reader.children(client, run):
        names = ", ".join(child.name for child in children[:5])
        why = "each stage releases its own" if kind(run.tags) == "chain" else "its command, typed again, releases the winner"
        raise ReleaseError(f"run {run.name} is a {kind(run.tags)}: name one of its runs ({names}); {why}")
    raise ReleaseError(f"run {run.name} ({run.id[:8]}): its checkpoints are gone, none lies in {folder}; go where it ran, or train again")


def _alone(run: "Seen") -> AbstractContextManager[None]:
    from forge.tracking import store

    refusal = ReleaseError(f"run {run.name} ({run.id[:8]}) is being trained or released by another process; wait for it")
    return store.held(f"run-{run.id}", refusal, _WAIT_S)


def _overrides(asked: Asked) -> list[str]:
    words = {"release.name": asked.name, "release.alias": asked.alias, "release.challenger": asked.challenger, "tracking.uri": asked.uri}
    listed = [f"release.quantise={json.dumps(asked.quantise)}"] if asked.quantise else []
    return [f"{key}={json.dumps(value)}" for key, value in words.items() if value is not None] + listed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
