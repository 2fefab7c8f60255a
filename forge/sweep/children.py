"""The runs of a sweep's children in the tracking store: made before they start, found again when it goes on, never left RUNNING."""

import signal
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import Timeout
from mlflow import MlflowClient
from mlflow.entities import RunTag

from forge.config import Config
from forge.errors import TrackingError
from forge.jobs import Jobs
from forge.sweep import family, identity
from forge.sweep.launch import Ended, Job
from forge.sweep.search import Proposal, quoted
from forge.tracking import heartbeat, provenance, reader, store
from forge.tracking.names import IDENTITY, PARENT, ROOT, here
from forge.tracking.reader import Seen
from forge.tracking.tries import again

CODE, CAUSE, _JOB = "forge.code", "forge.cause", "forge.job"
LOG = "log/output.txt"  # all that its processes printed
_DATA, _BASE, _STOP_REASON = "forge.data_digest", "forge.base", "forge.stop_reason"
_OPEN = ("SCHEDULED", "RUNNING")
_WAIT_S = 60.0  # for a child of an earlier life to save and end
_KIND = {-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}  # exit codes
_MORE_ROOM = "set trainer.memory_limit to be told which step needs too much, or lower trainer.micro_batch"


@dataclass(frozen=True)
class Child:
    """One job of the sweep and its run. `seconds`: how long its process took; None where it had finished before."""

    proposal: Proposal
    config: Config
    run: Seen
    seconds: float | None = None

    @property
    def finished(self) -> bool:
        return self.run.status == "FINISHED"

    @property
    def pruned(self) -> bool:
        """It finished early because it did worse than others."""
        return self.finished and self.cause.startswith("pruned")

    @property
    def failed(self) -> bool:
        return self.run.status == "FAILED"

    @property
    def ending(self) -> Literal["finished", "pruned", "failed", "stopped"]:
        """How it ended, in a word."""
        return "pruned" if self.pruned else "finished" if self.finished else "failed" if self.failed else "stopped"

    @property
    def loss(self) -> float | None:
        """The best checkpoint's validation loss, of a finished one; that of a pruned one too."""
        return self.run.metrics.get("best/val_loss") if self.finished else None

    @property
    def cause(self) -> str:
        """Why it ended: of a finished one, the reason to stop."""
        return self.run.tags.get(_STOP_REASON if self.finished else CAUSE) or self.run.status.lower()


class Children:
    """Those of one parent run. `today` says what code, data and base are now."""

    def __init__(self, client: MlflowClient, parent: Seen, asked: Jobs, folder: Path, total: int | None):
        self._client, self._parent, self._asked, self._folder, self._total = client, parent, asked, folder, total
        self._configs = dict(zip(asked.overrides, asked.configs, strict=True))
        self._today = identity.Today(asked.flags)
        self._code = identity.code(asked.configs[0].resolved["allowed_targets"])
        self._known = {run.tags[IDENTITY]: run for run in reader.children(client, parent) if IDENTITY in run.tags}  # the newest of each
        self._started: dict[int, tuple[Proposal, Config, str, float]] = {}

    def config(self, proposal: Proposal) -> Config:
        return self._configs.get(proposal.overrides) or self._asked.config(proposal.overrides)

    def outdated(self, proposals: Sequence[Proposal]) -> dict[int, str]:
        """By number, what is no longer as it was when the run of the job was made: "the code", "the data", "the base"."""
        pairs = [(proposal, config, run) for proposal in proposals if (run := self._known.get((config := self.config(proposal)).identity))]
        pairs = [(proposal, config, run) for proposal, config, run in pairs if _DATA in run.tags]  # else it never came so far
        grounds = self._today.of([(config, proposal.overrides) for proposal, config, _ in pairs])
        found = {}
        for (proposal, _, run), ground in zip(pairs, grounds, strict=True):
            differ = {"the data": run.tags[_DATA] != ground.data, "the base": run.tags.get(_BASE, ground.base) != ground.base}
            if run.status == "FINISHED":  # others go on from their checkpoints
                differ["the code"] = run.tags.get(CODE) != self._code
            if what := " and ".join(name for name, changed in differ.items() if changed):
                found[proposal.number] = what
        return found

    def await_former(self) -> None:
        """Children of an earlier life may still be saving. Raises TrackingError when one does not end."""
        for run in self._known.values():
            if run.status == "FINISHED":
                continue
            lock = store.lock(f"run-{run.id}")
            try:
                with lock.acquire(timeout=0):
                    pass
            except Timeout:
                print(f"{run.name} of before is still at work; waiting for its end", flush=True)
            try:
                with lock.acquire(timeout=_WAIT_S):
                    self._known[run.tags[IDENTITY]] = reader.get(self._client, run.id)  # it may have ended since the first look
            except Timeout as error:
                raise TrackingError(f"{run.name} ({run.id}) is being trained by another process; wait for it, or stop it first") from error

    def begin(self, proposal: Proposal) -> Child | Job:
        """The child, where it has finished; else what to start for it."""
        config = self.config(proposal)
        known = self._known.get(config.identity)
        if known and any(run_id == known.id for _, _, run_id, _ in self._started.values()):
            known = None  # the same experiment, proposed a second time
        changed = self.outdated([proposal]).get(proposal.number) if known else None
        if known and not changed and known.status == "FINISHED":
            return Child(proposal, config, known)
        title = self.title(proposal)
        if known and changed:
            print(f"{title}: {changed} changed since run {known.id}, so it is trained anew", flush=True)
        log = self._log(proposal)
        if known and not changed:
            run_id = self._reopen(known, proposal)
        else:
            run_id = self._create(proposal, config)
            log.unlink(missing_ok=True)  # of another run
        self._started[proposal.number] = (proposal, config, run_id, time.monotonic())
        own = (*proposal.own, f"resume={run_id}", f"tracking.parent_run={self._parent.id}", f"hydra.run.dir={quoted(str(log.parent))}")
        return Job(proposal.number, title, run_id, (*self._asked.flags, *proposal.overrides, *own), Path.cwd(), log)

    def title(self, proposal: Proposal) -> str:
        return proposal.title(self._total)

    def end(self, number: int, ended: Ended | BaseException, stopped: str | None = None) -> Child:
        """What became of a child whose process has ended. Closes its run if it did not. `stopped`: why all are being stopped."""
        proposal, config, run_id, begun = self._started.pop(number)
        seconds = time.monotonic() - begun
        run = self._known[config.identity] = again(lambda: self._closed(run_id, self._log(proposal), ended, stopped))
        return Child(proposal, config, run, seconds)

    def finished(self, proposals: Sequence[Proposal]) -> list[Child]:
        """Those of these jobs that finished in an earlier life, with all as it is now."""
        outdated = self.outdated(proposals)
        pairs = [(proposal, config, self._known.get(config.identity)) for proposal in proposals for config in [self.config(proposal)]]
        return [
            Child(proposal, config, run)
            for proposal, config, run in pairs
            if run and run.status == "FINISHED" and proposal.number not in outdated
        ]

    def finished_before(self, fixed: Sequence[str], known: Container[str]) -> list[Child]:
        """The finished ones of a search's earlier lives, but for those `known` by their run's id."""
        runs = [run for run in self._known.values() if run.status == "FINISHED" and run.id not in known]
        proposals = [family.proposal(run, fixed) for run in runs]
        return [Child(proposal, self.config(proposal), run) for proposal, run in zip(proposals, runs, strict=True)]

    def _log(self, proposal: Proposal) -> Path:
        return self._folder / str(proposal.number + 1) / "log.txt"

    def _closed(self, run_id: str, log: Path, ended: Ended | BaseException, stopped: str | None) -> Seen:
        run = reader.get(self._client, run_id)
        if run.status in _OPEN:
            kind = stopped is not None or (isinstance(ended, Ended) and ended.exit_code in _KIND)
            self._client.set_tag(run_id, CAUSE, provenance.redact(stopped or cause(ended))[:6000])
            self._client.set_terminated(run_id, "KILLED" if kind else "FAILED")
        if log.is_file():
            self._client.log_text(run_id, provenance.redact(log.read_text(encoding="utf-8", errors="replace")), LOG)
        return reader.get(self._client, run_id)

    def _reopen(self, run: Seen, proposal: Proposal) -> str:
        """As one that has not started. An empty sign of life is none, so that nobody takes it for dead."""
        tags = {CODE: self._code, _JOB: str(proposal.number + 1), heartbeat.TAG: ""}
        again(lambda: self._client.log_batch(run.id, tags=[RunTag(key, value) for key, value in tags.items()]))
        again(lambda: store.untag(self._client, run.id, CAUSE))
        again(lambda: self._client.update_run(run.id, status="SCHEDULED"))
        return run.id

    def _create(self, proposal: Proposal, config: Config) -> str:
        tags = {
            IDENTITY: config.identity,
            ROOT: here(),
            PARENT: self._parent.id,
            CODE: self._code,
            _JOB: str(proposal.number + 1),
        } | {**proposal.tags, **config.tracking.tags}
        redacted = {key: provenance.redact(value) for key, value in tags.items()}
        run_id: str = again(lambda: self._client.create_run(self._parent.experiment_id, run_name=proposal.name, tags=redacted)).info.run_id
        again(lambda: self._client.update_run(run_id, status="SCHEDULED"))
        return run_id


def cause(ended: Ended | BaseException) -> str:
    """Why a process ended that could not say so itself."""
    if isinstance(ended, BaseException):
        return f"its launcher lost it: {type(ended).__name__}: {ended}"
    said = next((line.removeprefix("error: ") for line in reversed(ended.tail.splitlines()) if line.strip()), "")
    if ended.exit_code == -signal.SIGKILL:
        return f"killed by SIGKILL; the system's memory running out is the usual reason: {_MORE_ROOM}"
    if ended.exit_code == -signal.SIGSEGV:
        return f"ended by SIGSEGV, as MLX does on a CPU when it gets no memory: {_MORE_ROOM}"
    if ended.exit_code < 0:
        return f"ended by {signal.Signals(-ended.exit_code).name}" + (f"; the last it said: {said}" if said else "")
    return said or f"ended with exit code {ended.exit_code} and without a word"
