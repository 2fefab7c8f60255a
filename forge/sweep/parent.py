"""A sweep's parent run: opens it, lets Hydra run the jobs, ranks the children, releases the winner."""

import traceback
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

from omegaconf import DictConfig

from forge import jobs
from forge.assemble import assemble, store_of
from forge.config import Config, check
from forge.errors import ForgeError
from forge.jobs import Jobs
from forge.release import Released, release
from forge.runner import Outcome, next_steps, train
from forge.signals import AskedToStop, Interrupts
from forge.tracking import registry
from forge.tracking.run import Run
from forge.tracking.run import run as open_run


@dataclass(frozen=True)
class Child:
    """One job's end: its outcome, or the error it died of."""

    name: str
    config: Config
    outcome: Outcome | None
    error: str | None


def sweep(asked: Jobs) -> int:
    """Run every job as a child of one run. A job that fails is one failed child. Returns the exit code: 0, or 1 when one failed.

    Raises ForgeError when every job failed, and Stopped on a signal.
    """
    first = asked.configs[0]
    identity = sha256(" ".join(sorted(config.identity for config in asked.configs)).encode()).hexdigest()[:16]
    children: list[Child] = []
    named = replace(first.tracking, run_name=first.tracking.run_name or f"sweep {' × '.join(asked.swept)}".strip())
    with Interrupts(), open_run(named, identity, tags={"forge.sweep": " ".join(asked.swept)}) as parent:
        print(f"sweep of {len(asked.configs)} runs over {', '.join(asked.swept) or 'nothing'}", flush=True)
        parent.text(first.yaml(), "config/first_child.yaml")
        parent.params({"sweep.jobs": len(asked.configs), "sweep.keys": ", ".join(asked.swept)})

        def job(composed: DictConfig) -> None:
            children.append(_run_child(composed, asked.swept, len(children) + 1))
            if reason := parent.asked_to_stop():
                raise AskedToStop(reason)

        try:
            jobs.launch(job, [*asked.argv, f"tracking.parent_run={parent.id}"])
        finally:
            ranked = _ranked(children)
            _record(parent, ranked, [c for c in children if c.error])
        if not ranked:
            raise ForgeError("every run of the sweep failed: " + "; ".join(f"{c.name}: {c.error}" for c in children))
        released = _release(ranked, parent) if first.release.enabled and first.sweep.release_winner else None
    print("\n" + next_steps(first, parent.id, released))
    return 0 if len(ranked) == len(asked.configs) else 1


def _ranked(children: list[Child]) -> list[Child]:
    """Those that came to their end, lowest validation loss first."""
    finished = [(child.outcome.result.best_loss, number) for number, child in enumerate(children) if child.outcome]
    return [children[number] for _, number in sorted(finished)]


def _run_child(composed: DictConfig, swept: tuple[str, ...], number: int) -> Child:
    config = check(composed)
    overrides = jobs.task_overrides()
    chosen = [o.lstrip("+~") for o in overrides if o.lstrip("+~").split("=")[0] in swept]
    name = " ".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in (o.partition("=") for o in chosen)) or f"job {number}"
    config = replace(config, tracking=replace(config.tracking, run_name=name))
    print(f"\n[{number}] {name}", flush=True)
    try:
        return Child(name, config, train(config, overrides), None)
    except AskedToStop as stop:  # this child alone
        return Child(name, config, None, str(stop))
    except ForgeError as error:
        print(f"error: {name}: {error}", flush=True)
        return Child(name, config, None, str(error))
    except Exception as error:  # a bug, but this child's: the others go on
        traceback.print_exc()
        return Child(name, config, None, f"{type(error).__name__}: {error}")


def _record(parent: Run, ranked: list[Child], failed: list[Child]) -> None:
    """The ranked table as an artifact of the parent, in its description and on the terminal; the best as its metrics and tags."""
    results = [(child.name, child.outcome.result, child.outcome.run_id) for child in ranked if child.outcome]
    lines = [
        f"{rank}. {name}: {result.best_loss:.4f} at step {result.best_step}" for rank, (name, result, _) in enumerate(results, start=1)
    ]
    lines += [f"- {child.name}: failed: {child.error}" for child in failed]
    print("\n".join(["", *lines]))
    parent.describe("Best validation loss, nats a token:\n\n" + "\n".join(lines))
    parent.summary({"sweep/finished": len(ranked), "sweep/failed": len(failed)})
    rows: list[tuple[Any, ...]] = [
        (rank, name, result.best_loss, result.best_step, run_id, None) for rank, (name, result, run_id) in enumerate(results, start=1)
    ]
    rows += [(None, child.name, None, None, None, child.error) for child in failed]
    if rows:
        columns = ("rank", "child", "best_val_loss", "best_step", "run_id", "error")
        parent.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)), "sweep/children.json")
    if results:
        name, best, run_id = results[0]
        parent.summary({"best/val_loss": best.best_loss})
        parent.tags({"best/child": name, "best/run_id": run_id})


def _release(ranked: list[Child], parent: Run) -> Released | None:
    """Build the winner again from its configuration, and release its best checkpoint; None where the children can't be compared."""
    outcomes = [child.outcome for child in ranked if child.outcome]
    if len({outcome.valid_digest for outcome in outcomes}) > 1:
        reason = "the children were measured on different validation tokens, so none is the best and none is released"
        print(reason + "; release one with a run of its own, or sweep over what leaves data and tokenizer alone")
        parent.tags({"forge.decision": reason})
        return None
    winner, run_id = ranked[0], outcomes[0].run_id
    parts = assemble(winner.config, partial(registry.fetch, winner.config.tracking.uri))
    released = release(winner.config, parts, store_of(winner.config, parts, run_id).at(outcomes[0].result.best_step), run_id)
    parent.tags({"forge.released": released.version.uri, "forge.decision": released.reason})
    print(f"{winner.name}: {released.sentence(winner.config.release.alias)}")
    return released
