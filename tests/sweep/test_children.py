"""The runs of a sweep's children: which are trained again, and how they are left. In a store, with nobody who trains."""

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from forge import jobs
from forge.sweep import family, identity
from forge.sweep.children import Child, Children
from forge.sweep.identity import Ground
from forge.sweep.launch import Ended, Job
from forge.sweep.search import Proposal
from forge.tracking import reader, store

NOW = Ground("rows", "base")


class Today:
    """Data and base are as NOW says, whatever the configuration."""

    def __init__(self, flags: Sequence[str]):
        pass

    def of(self, wanted: Sequence[Any]) -> list[Ground]:
        return [NOW] * len(wanted)


class Sweep:
    """A sweep of two jobs, and the runs that earlier lives of it left."""

    def __init__(self, folder: Path, name: str):
        asked = jobs.preflight(["-m", "seed=1,2"])
        assert asked
        self.client: MlflowClient = store.connect(None)
        self._asked, self._folder = asked, folder
        self._experiment = store.experiment(self.client, name)
        self._parent = reader.get(self.client, self.client.create_run(self._experiment).info.run_id)
        self.jobs = family.listed(asked)

    def left(self, status: str, **tags: str) -> str:
        """A run of the first job; the id."""
        known = {"forge.identity": self._asked.configs[0].identity, "mlflow.parentRunId": self._parent.id, "forge.job": "1"}
        ground = {"forge.code": identity.code([]), "forge.data_digest": NOW.data, "forge.base": NOW.base}
        changed = {f"forge.{key}": value for key, value in tags.items()}
        run_id: str = self.client.create_run(self._experiment, tags=known | ground | changed, run_name="left").info.run_id
        self.client.set_terminated(run_id, status)
        return run_id

    def children(self) -> Children:
        return Children(self.client, self._parent, self._asked, self._folder, len(self.jobs))


@pytest.fixture
def sweep(home: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(identity, "Today", Today)
    return Sweep(tmp_path, request.node.name)


def test_one_that_finished_is_not_trained_again(sweep: Sweep) -> None:
    run_id = sweep.left("FINISHED")
    found = sweep.children().begin(sweep.jobs[0])
    assert isinstance(found, Child) and found.run.id == run_id


@pytest.mark.parametrize("changed", [{}, {"code": "of then"}], ids=str)
@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_one_that_did_not_goes_on_in_its_own_run(sweep: Sweep, status: str, changed: dict[str, str]) -> None:
    """With the code of now too: it may be the cause that was mended."""
    run_id = sweep.left(status, cause="planted", **changed)
    found = sweep.children().begin(sweep.jobs[0])
    assert isinstance(found, Job) and found.run_id == run_id and f"resume={run_id}" in found.arguments
    run = reader.get(sweep.client, run_id)
    assert (run.status, run.tags["forge.code"]) == ("SCHEDULED", identity.code([])) and "forge.cause" not in run.tags


@pytest.mark.parametrize(
    ("status", "changed", "what"),
    [
        ("FINISHED", {"code": "of then"}, "the code"),
        ("FINISHED", {"base": "of then"}, "the base"),
        ("FINISHED", {"data_digest": "of then"}, "the data"),
        ("FAILED", {"data_digest": "of then", "base": "of then"}, "the data and the base"),
    ],
)
def test_one_that_is_outdated_is_trained_anew(
    sweep: Sweep, capsys: pytest.CaptureFixture[str], status: str, changed: dict[str, str], what: str
) -> None:
    run_id = sweep.left(status, **changed)
    found = sweep.children().begin(sweep.jobs[0])
    assert isinstance(found, Job) and found.run_id != run_id
    assert f"{what} changed since run {run_id}" in capsys.readouterr().out
    assert reader.get(sweep.client, run_id).status == status  # what it was is left as it was


def test_one_experiment_proposed_twice_has_two_runs_at_once_and_one_after_the_other(sweep: Sweep) -> None:
    run_id = sweep.left("FAILED")
    children = sweep.children()
    first, second = (children.begin(proposal) for proposal in (sweep.jobs[0], replace(sweep.jobs[0], number=5)))
    assert isinstance(first, Job) and isinstance(second, Job) and second.run_id != first.run_id == run_id
    for job in (first, second):
        sweep.client.set_tag(job.run_id, "forge.data_digest", NOW.data)
        sweep.client.set_tag(job.run_id, "forge.base", NOW.base)
        sweep.client.set_terminated(job.run_id, "FINISHED")
        assert children.end(job.number, Ended(0, "")).finished
    assert isinstance(children.begin(sweep.jobs[0]), Child)


@pytest.mark.parametrize(
    ("ended", "stopped", "status", "cause"),
    [
        (Ended(2, "error: no such folder"), None, "FAILED", "no such folder"),
        (Ended(-signal.SIGKILL, ""), None, "FAILED", "killed by SIGKILL"),
        (Ended(-signal.SIGKILL, ""), "stopped by SIGINT", "KILLED", "stopped by SIGINT"),
        (Ended(143, "error: x"), None, "KILLED", "x"),
        (OSError("stale file handle"), None, "FAILED", "its launcher lost it: OSError: stale file handle"),
    ],
    ids=str,
)
def test_one_that_could_not_say_how_it_ended_is_closed(
    sweep: Sweep, ended: Ended | BaseException, stopped: str | None, status: str, cause: str
) -> None:
    children = sweep.children()
    begun = children.begin(sweep.jobs[0])
    assert isinstance(begun, Job)
    begun.log.parent.mkdir(parents=True)
    begun.log.write_text("step 3\n")
    child = children.end(0, ended, stopped)
    assert child.run.status == status and child.cause.startswith(cause)
    assert reader.text(sweep.client, begun.run_id, "log/output.txt") == "step 3\n"


def test_how_it_says_itself_that_it_ended_counts(sweep: Sweep) -> None:
    children = sweep.children()
    begun = children.begin(sweep.jobs[0])
    assert isinstance(begun, Job)
    sweep.client.set_tag(begun.run_id, "forge.cause", "its own")
    sweep.client.set_terminated(begun.run_id, "FAILED")
    assert children.end(0, Ended(1, "error: another")).cause == "its own"


def test_a_child_answers_questions_only_where_that_is_typed() -> None:
    plain, typed = (Proposal(0, ("seed=1", *more), ("seed=1",)) for more in ((), ("evaluation.answers=8",)))
    assert family.without_answers(plain).own == ("evaluation.answers=0",)
    assert family.without_answers(typed) == typed
