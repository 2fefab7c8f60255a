"""Registers the winner of a sweep, once however often the sweep goes on. Imports MLX, since the model is built again."""

from functools import partial
from typing import TYPE_CHECKING

from mlflow import MlflowClient

from forge import paths
from forge.sweep.children import Child
from forge.sweep.winner import Verdict
from forge.tracking import reader, registry, store
from forge.tracking.run import Run

if TYPE_CHECKING:
    from forge.release import Released

_RELEASED, _OF = "forge.released", "forge.released_run"


def release_winner(client: MlflowClient, parent: Run, best: Child, verdict: Verdict) -> "Released | None":
    """Build the winner again from its configuration, and release its best checkpoint. None where there is none, or it is released."""
    if verdict.number is None:
        _say(
            parent,
            f"{verdict.why} and none is released; release one with a run of its own, or sweep over what leaves data and tokenizer alone",
        )
        return None
    if not paths.checkpoints(best.run.id).is_dir():
        _say(parent, f"{best.proposal.name} is not released: its checkpoints are not here but where it ran")
        return None
    with store.lock(f"release-{parent.id}"), store.lock(f"run-{best.run.id}"):
        tags = reader.get(client, parent.id).tags
        if tags.get(_OF) == best.run.id:
            print(f"{best.proposal.name} was released before, as {tags.get(_RELEASED)}")
            return None
        released = _release(best)
        parent.tags({_RELEASED: released.version.uri, _OF: best.run.id, "forge.decision": released.reason})
    print(f"{best.proposal.name}: {released.sentence()}")
    return released


def _release(best: Child) -> "Released":
    from forge import pins
    from forge.assemble import assemble, store_of
    from forge.release import release

    parts = assemble(pins.with_own_base(best.config, best.run), partial(registry.fetch, best.config.tracking.uri))
    pins.require_own(best.run, parts)
    saved = store_of(best.config, parts, best.run.id).at(int(best.run.metrics["best/step"]))
    return release(best.config, parts, saved, best.run.id)


def _say(parent: Run, why: str) -> None:
    print(why)
    parent.tags({"forge.decision": why})
