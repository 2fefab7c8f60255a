"""A sweep's parent run: has each job trained as a child in a process of its own, ranks the children, releases the winner.

The same command again goes on where the last one stopped. This process stays free of MLX until all children have ended.
"""

import json
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from mlflow import MlflowClient

from forge import paths
from forge.config import Config
from forge.errors import ForgeError, Stopped
from forge.jobs import Jobs
from forge.signals import Interrupts
from forge.sweep import family, pictures, table, winner
from forge.sweep.children import Child, Children
from forge.sweep.launch import Ended, Job, Launcher
from forge.sweep.launchers import Make, chosen
from forge.sweep.pool import Pool
from forge.sweep.release import release_winner
from forge.sweep.search import Listed, Search
from forge.sweep.winner import Verdict
from forge.tracking import names, reader, stop, store
from forge.tracking.next_steps import look_at, next_steps
from forge.tracking.reader import Seen
from forge.tracking.run import Run
from forge.tracking.run import run as open_run
from forge.tracking.tries import STORE_ERRORS
from forge.training.choice import ROWS_FILE

_LOOK_EVERY_S = 0.25


def sweep(asked: Jobs) -> int:
    """Run every job as a child of one run. Returns the exit code: 0, or 1 when a child failed.

    Raises ForgeError when no child finished, and Stopped on a signal.
    """
    assert asked.hydra is not None
    first, make = asked.configs[0], chosen(asked.hydra)
    mark, over = family.identity(asked), " × ".join(asked.swept)
    client = store.connect(first.tracking.uri)
    with Interrupts() as interrupts, nullcontext() if first.sweep.again else family.alone(mark):
        former = None if first.sweep.again else family.earlier(client, first.tracking, mark)
        ended = former is not None and former.tags.get(family.WHOLE) == family.whole(first)
        if former and (ended or asked.space is not None):  # a list that did not end looks at each of its jobs
            changed = _changed(client, former, asked)
            if ended and not changed:
                _say_done(client, former, first)
                return 0
            if changed:
                print(f"{changed} changed since this sweep was run ({former.id}), so it is run anew", flush=True)
                former = None
        name = first.tracking.run_name or f"sweep {over}".strip()
        named = replace(first.tracking, run_name=name, system_metrics=None)  # its children sample the machine
        tags = {names.SWEEP: " ".join(asked.swept), family.FOLDER: str(_folder(asked))}
        with open_run(named, mark, former.id if former else None, tags) as parent:
            try:
                children, verdict = _Sweep(client, parent, asked, interrupts, goes_on=former is not None).run(make)
            except Stopped as stopped:
                stopped.way_on = "the same command again goes on with the sweep"
                raise
            if verdict is None:
                raise ForgeError("no run of the sweep finished: " + "; ".join(f"{c.proposal.name}: {c.cause}" for c in children))
            wanted = first.release.enabled and first.sweep.release_winner
            released = release_winner(client, parent, children[0], verdict) if wanted else None
            if all(child.finished for child in children):
                parent.tags({family.WHOLE: family.whole(first)})
    print("\n" + next_steps(first, parent.id, released is not None))
    return 1 if any(child.failed for child in children) else 0


def _changed(client: MlflowClient, former: Seen, asked: Jobs) -> str | None:
    """What is no longer as it was when the children of a sweep finished."""
    runs = Children(client, former, asked, Path(former.tags[family.FOLDER]), None)
    jobs = family.listed(asked) if asked.space is None else [child.proposal for child in runs.finished_before(asked.space.fixed, ())]
    return next(iter(runs.outdated(jobs).values()), None)


def _say_done(client: MlflowClient, former: Seen, first: Config) -> None:
    best = former.tags.get("best/child")
    print(f"this sweep came to its end as run {former.name} ({former.id})" + (f"; best: {best}" if best else ""))
    print(look_at(first.tracking.uri, former.id))
    print("To run all of it anew:  the same command with sweep.again=true")


def _folder(asked: Jobs) -> Path:
    assert asked.hydra is not None
    return Path(asked.hydra.sweep.dir).absolute()


class _Sweep:
    """One life of a sweep."""

    def __init__(self, client: MlflowClient, parent: Run, asked: Jobs, interrupts: Interrupts, goes_on: bool):
        self._client, self._parent, self._asked, self._interrupts, self._goes_on = client, parent, asked, interrupts, goes_on
        self._config = asked.configs[0]
        seen = reader.get(client, parent.id)
        self._folder = Path(seen.tags[family.FOLDER])
        self._total = len(asked.configs) if asked.space is None else self._config.sweep.trials or asked.space.size
        self._runs = Children(client, seen, asked, self._folder, self._total)
        self._done: list[Child] = []

    def run(self, make: Make | None) -> tuple[list[Child], Verdict | None]:
        """All children, ranked, and which is the best; None where none finished. What there is of them is recorded however it ends."""
        asked, parent = self._asked, self._parent
        runs = "1 run" if self._total == 1 else f"{self._total} runs"
        over = ", ".join(asked.swept) or "nothing"
        print(f"sweep of {runs} over {over} ({parent.id}){' goes on' if self._goes_on else ''}", flush=True)
        parent.text(self._config.yaml(), "config/first_child.yaml")
        parent.tags({names.TOTAL: str(self._total)})
        parent.params({"sweep.keys": ", ".join(asked.swept), "sweep.sampler": self._config.sweep.sampler})
        if self._goes_on:
            self._runs.await_former()
            if asked.space is None:
                self._runs.outdated(family.listed(asked))  # all are looked at in one process
        launcher = self._launcher(make)
        try:
            search = self._search()
            self._drive(search, launcher)
        finally:
            launcher.close()
            ranked, verdict = self._record()
        pictures.draw(self._client, self._parent, ranked, verdict, search)
        return ranked, verdict

    def _drive(self, search: Search, launcher: Launcher) -> None:
        """Have jobs run, as many at once as may, until the search has no more or someone asks to stop."""
        running: dict[Future[Ended], int] = {}
        reason: str | None = None
        with self._interrupts.patient(self._parent.asked_to_stop) as asked_to_stop:
            try:
                while True:
                    if reason is None and (reason := asked_to_stop()):
                        self._stop(launcher)
                    while reason is None and len(running) < self._config.sweep.jobs and (proposal := search.ask()):
                        begun = self._runs.begin(family.without_answers(proposal))
                        if isinstance(begun, Child):
                            print(f"{self._runs.title(proposal)}: finished before ({begun.run.id})", flush=True)
                            self._end(search, begun)
                        else:
                            print(f"{begun.title} ({begun.run_id})" + _elsewhere(begun, self._config.sweep.jobs), flush=True)
                            running[launcher.submit(begun)] = proposal.number
                    if not running:
                        break
                    for future in wait(running, _LOOK_EVERY_S, FIRST_COMPLETED).done:
                        self._end(search, self._runs.end(running.pop(future), future.exception() or future.result(), reason))
            except BaseException as error:
                if isinstance(error, Exception):
                    self._stop(launcher)
                else:
                    launcher.kill()
                for future, number in running.items():
                    with suppress(*STORE_ERRORS):  # must not take the place of what ended the sweep; the next start ends these runs
                        self._done.append(self._runs.end(number, future.exception() or future.result(), "ended with its sweep"))
                raise

    def _stop(self, launcher: Launcher) -> None:
        """Kindly: with a signal to the children of this machine; those elsewhere look at the tag."""
        launcher.stop()
        self._parent.tags({stop.TAG: "true"})

    def _end(self, search: Search, child: Child) -> None:
        self._done.append(child)
        if child.run.status != "KILLED":  # else it is to go on
            search.tell(child.proposal.number, child.loss, None if child.finished else child.cause)
        if child.seconds is not None:
            how = f"best validation loss {child.loss:.4f}" if child.loss is not None else f"{child.run.status.lower()}: {child.cause}"
            print(f"{self._runs.title(child.proposal)}: {how}", flush=True)

    def _search(self) -> Search:
        if self._asked.space is None:
            return Listed(family.listed(self._asked))
        from forge.sweep.study import Optimised

        return Optimised(self._asked.space, self._config.sweep, paths.checkpoints(self._parent.id) / "study.journal", self._parent.id)

    def _launcher(self, make: Make | None) -> Launcher:
        at_once = self._config.sweep.jobs
        return make(self._folder / "launcher") if make else Pool(at_once, _say if at_once == 1 else None)

    def _record(self) -> tuple[list[Child], Verdict | None]:
        """The ranked table, the winner and why, on the parent run and in the terminal."""
        reached = {child.run.id for child in self._done}
        if self._asked.space is not None:
            self._done += self._runs.finished_before(self._asked.space.fixed, reached)
        elif self._goes_on:
            self._done += [child for child in self._runs.finished(family.listed(self._asked)) if child.run.id not in reached]
        verdict = self._verdict()
        ranked = table.ranked(self._done, verdict)
        table.show(ranked, verdict)
        if verdict:
            print(f"{'no best' if verdict.number is None else 'best'}: {verdict.why}", flush=True)
        parent = self._parent
        parent.describe(table.markdown(ranked, verdict))
        columns = table.columns(ranked, verdict, self._asked.swept)
        split = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        parent.text(json.dumps(split), "sweep/children.json")
        parent.tags({"mlflow.loggedArtifacts": json.dumps([{"path": "sweep/children.json", "type": "table"}])})  # shown as a table
        summary: dict[str, float] = {
            "sweep/finished": sum(child.finished for child in ranked),
            "sweep/failed": sum(child.failed for child in ranked),
        }
        if verdict and verdict.number is not None:
            best = ranked[0]
            parent.tags({"best/child": best.proposal.name, "best/run_id": best.run.id, "best/why": verdict.why})
            summary |= {key: best.run.metrics[key] for key in ("best/val_loss", "best/step") if key in best.run.metrics}
        parent.summary(summary)
        return ranked, verdict

    def _verdict(self) -> Verdict | None:
        texts = {c.run.id: reader.text(self._client, c.run.id, ROWS_FILE) for c in self._done if c.loss is not None}
        rows = {run_id: [(float(loss), int(count)) for loss, count in json.loads(text)] for run_id, text in texts.items() if text}
        finalists = table.finalists(self._done, rows)
        return winner.judge(finalists) if finalists else None


def _elsewhere(job: Job, at_once: int) -> str:
    return f": its output is in {job.log}" if at_once > 1 else ""


def _say(title: str, line: str) -> None:
    print(f"{title} │ {line}", flush=True)
