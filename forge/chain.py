"""A chain of runs under one parent: each stage in a process of its own, from the version that the stage before it registered.

The same command again goes on: a stage that finished is not trained again unless code, data or base changed since, one that was stopped
or failed goes on from its checkpoint. This process stays free of MLX. A stage costs the start of a process beside its training.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forge.config import Config
from forge.errors import ForgeError, ReleaseError, Stopped
from forge.jobs import Jobs
from forge.signals import Interrupts
from forge.stages import STAGE, Chain, start_from
from forge.sweep import family, table
from forge.sweep.children import Child, Children
from forge.sweep.launch import Ended, Job
from forge.sweep.pool import Pool
from forge.sweep.search import Proposal
from forge.tracking import reader, store
from forge.tracking.names import CHAIN, IDENTITY, ROOT, TOTAL, here
from forge.tracking.next_steps import look_at, next_steps
from forge.tracking.reader import Seen
from forge.tracking.run import Run
from forge.tracking.run import run as open_run

_LOOK_EVERY_S = 0.25
_TABLE = "chain/stages.json"


@dataclass(frozen=True)
class _Stage(Proposal):
    @property
    def name(self) -> str:
        return self.swept[0]

    @property
    def tags(self) -> dict[str, str]:
        return {}  # its configuration's name the stage

    def title(self, total: int | None) -> str:
        return f"{self.name} ({self.number + 1} of {total})"


@dataclass(frozen=True)
class _Done:
    """A stage that came to its end. `version`: models:/NAME/N; None where the last stage releases nothing. `gate`: what its tests said."""

    child: Child
    version: str | None
    gate: str = ""


def run_chain(asked: Jobs) -> int:
    """Run the stages one after the other. Returns the exit code. Raises ForgeError where a stage fails, and Stopped on a signal."""
    chain, last = asked.chain, asked.configs[-1]
    assert chain and asked.hydra is not None
    mark, client = _identity(chain, asked), store.connect(last.tracking.uri)
    again = any(config.sweep.again for config in asked.configs)
    with Interrupts() as interrupts, nullcontext() if again else family.held(f"chain-{mark}", "this chain"):
        former = None if again else _earlier(client, last, mark)
        if former and former.status == "FINISHED":
            changed = _changed(client, former, asked)
            if changed is None:
                print(f"this chain came to its end as run {former.name} ({former.id}), and nothing changed since")
                print(look_at(last.tracking.uri, former.id))
                print("To run all of it anew:  the same command with sweep.again=true")
                return 0
            print(f"{changed} changed since this chain was run ({former.id}), so it is run anew", flush=True)
            former = None
        tags = {key: value for key, value in last.tracking.tags.items() if key != STAGE}
        spec = replace(last.tracking, run_name=chain.run_name or " ".join(chain.stages), system_metrics=None, tags=tags)
        own = {CHAIN: " ".join(chain.stages), TOTAL: str(len(chain.stages)), family.FOLDER: str(Path(asked.hydra.run.dir).absolute())}
        with open_run(spec, mark, former.id if former else None, own) as parent:
            try:
                done = _Life(client, parent, asked, chain, interrupts).run(goes_on=former is not None)
            except Stopped as stopped:
                stopped.way_on = "the same command again goes on with the chain"
                raise
    print("\n" + next_steps(last, parent.id, done.version is not None))
    if "final/f1" in done.child.run.metrics:
        print(f"How sure:    python -m forge.compare {done.child.run.id[:8]}@base {done.child.run.id[:8]}")
    return 0


class _Life:
    """One life of a chain."""

    def __init__(self, client: Any, parent: Run, asked: Jobs, chain: Chain, interrupts: Interrupts):
        self._client, self._parent, self._asked, self._chain, self._interrupts = client, parent, asked, chain, interrupts
        seen = reader.get(client, parent.id)
        self._children = Children(client, seen, asked, Path(seen.tags[family.FOLDER]), len(chain.stages))
        self._done: list[_Done] = []

    def run(self, goes_on: bool) -> _Done:
        """The last stage. What there is of the chain is recorded however it ends."""
        print(f"chain of {', '.join(self._chain.stages)} ({self._parent.id}){' goes on' if goes_on else ''}", flush=True)
        if goes_on:
            self._children.await_former()
        pool = Pool(1, _say)
        try:
            for number, stage in enumerate(self._chain.stages):
                before = self._done[-1].version if self._done else None
                child = self._trained(_proposal(self._asked, number, before), pool)
                done = _released(self._client, child)
                if done.version is None and child.config.release.enabled:
                    raise ReleaseError(f"the stage {stage} finished ({child.run.id}) and registered no version to go on from")
                self._done.append(done)
                if done.gate.startswith("refused") and len(self._done) < len(self._chain.stages):
                    print(
                        f"{stage}: {done.version} bears no alias ({done.gate}), and the next stage starts from it all the same", flush=True
                    )
        finally:
            pool.close()
            self._record()
        return self._done[-1]

    def _trained(self, stage: _Stage, pool: Pool) -> Child:
        """The stage's run, finished. Raises ForgeError where it did not come to its end."""
        begun = self._children.begin(stage)
        if isinstance(begun, Child):
            print(f"{self._children.title(stage)}: finished before ({begun.run.id})", flush=True)
            return begun
        print(f"{begun.title} ({begun.run_id})", flush=True)
        child = self._awaited(begun, pool)
        if not child.finished:
            what = "failed" if child.failed else "was stopped"
            raise ForgeError(f"the stage {stage.name} {what}: {child.cause}; the same command again goes on with it")
        return child

    def _awaited(self, job: Job, pool: Pool) -> Child:
        """Raises Stopped once the stage has saved and ended, where someone asked the chain to stop."""
        running: Future[Ended] = pool.submit(job)
        reason: str | None = None
        with self._interrupts.patient(self._parent.asked_to_stop) as asked_to_stop:
            try:
                while not wait([running], _LOOK_EVERY_S).done:
                    if reason is None and (reason := asked_to_stop()):
                        pool.stop()
            except BaseException as error:
                if isinstance(error, Exception):
                    pool.stop()
                else:
                    pool.kill()
                self._children.end(job.number, running.exception() or running.result(), "ended with its chain")
                raise
            return self._children.end(job.number, running.exception() or running.result(), reason)

    def _record(self) -> None:
        """The stages as a table and as the description, and what the last one came to, on the parent run."""
        rows = [_row(self._client, done) for done in self._done]
        if not rows:
            return
        self._parent.describe(_markdown(rows))
        self._parent.text(json.dumps({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}), _TABLE)
        self._parent.tags({"mlflow.loggedArtifacts": json.dumps([{"path": _TABLE, "type": "table"}])})  # shown as a table
        last = self._done[-1].child.run
        if len(rows) == len(self._chain.stages):
            print("\n" + "\n".join(map(_sentence, rows)))
            kept = ("best/", "base/", "final/", "test/")
            self._parent.summary({key: value for key, value in last.metrics.items() if key.startswith(kept)})
            self._parent.tags({"best/run_id": last.id})


def _identity(chain: Chain, asked: Jobs) -> str:
    """A hash (16 hex digits) of all that can change a stage's result, and of what the stages are called."""
    parts = [f"{stage} {config.identity}" for stage, config in zip(chain.stages, asked.configs, strict=True)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _earlier(client: Any, last: Config, mark: str) -> Seen | None:
    """The newest run of this chain that was started from this root."""
    found = client.search_runs(
        [store.experiment(client, last.tracking.experiment)], f"tags.`{IDENTITY}` = '{mark}'", order_by=["attributes.start_time DESC"]
    )
    mine = (record.info.run_id for record in found if CHAIN in record.data.tags and record.data.tags.get(ROOT) == here())
    return next((reader.get(client, run_id) for run_id in mine), None)


def _changed(client: Any, former: Seen, asked: Jobs) -> str | None:
    """What is no longer as it was when the stages of a chain finished."""
    assert asked.chain
    children = Children(client, former, asked, Path(former.tags[family.FOLDER]), len(asked.chain.stages))
    before: str | None = None
    for number in range(len(asked.chain.stages)):
        stage = _proposal(asked, number, before)
        if what := children.outdated([stage]).get(number):
            return what
        (found,) = children.finished([stage]) or (None,)
        if found is None:
            return "what a stage starts from"
        before = _released(client, found).version
    return None


def _proposal(asked: Jobs, number: int, before: str | None) -> _Stage:
    """`before`: the version that the stage starts from; None for the first one."""
    assert asked.chain
    overrides = asked.overrides[number]
    return _Stage(number, start_from(overrides, before) if before else overrides, (asked.chain.stages[number],))


def _released(client: Any, child: Child) -> _Done:
    """With the newest version that the stage registered."""
    name = child.config.release.name
    found = [one for one in client.search_model_versions(f"run_id = '{child.run.id}'") if one.name == name]
    if not found:
        return _Done(child, None)
    newest = max(found, key=lambda one: int(one.version))
    gate = ": ".join(newest.tags[key] for key in ("forge.gate", "forge.gate_reason") if key in newest.tags)
    return _Done(child, f"models:/{name}/{newest.version}", gate)


def _row(client: Any, done: _Done) -> dict[str, Any]:
    run = done.child.run
    first = dict(reader.history(client, run.id, ["val/loss"])).get(0, {})
    return {
        "stage": done.child.proposal.name,
        "from": " ".join(dict.fromkeys(run.tags.get("forge.base", "").split())),  # a version is its own revision
        "data": run.tags.get("forge.data_digest", "")[:12],
        "first_val_loss": first.get("val/loss"),
        "best_val_loss": run.metrics.get("best/val_loss"),
        "best_step": run.metrics.get("best/step"),
        "base_f1": run.metrics.get("base/f1"),
        "f1": run.metrics.get("final/f1"),
        "version": done.version,
        "gate": done.gate,
        "run_id": run.id,
    }


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The parent's description."""
    lines = table.heads("stage", "from", "validation loss (nats a token)", "F1 of answers", "version")
    for row in rows:
        start = re.sub(r" [0-9a-f]{12,}\b", "", row["from"])  # a digest says nothing to a reader
        lines.append(table.line(row["stage"], start, _change(*_losses(row)), _change(*_f1(row)), row["version"] or "–"))
    return "\n".join(lines)


def _sentence(row: Mapping[str, Any]) -> str:
    """What a stage came to, for the terminal."""
    answers = f", F1 of answers {_change(*_f1(row))}" if row["f1"] is not None else ""
    return f"{row['stage']}: validation loss {_change(*_losses(row))} nats a token{answers}"


def _losses(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return row["first_val_loss"], row["best_val_loss"]


def _f1(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return row["base_f1"], row["f1"]


def _change(before: float | None, after: float | None) -> str:
    if after is None:
        return "–"
    return f"{after:.4f}" if before is None else f"{before:.4f} → {after:.4f}"


def _say(title: str, line: str) -> None:
    print(f"{title} │ {line}", flush=True)
