"""One process, as a launcher runs it: its output, its end, its share of the cores, and what killed it in words."""

import os
import signal
from pathlib import Path

import pytest

from forge.sweep import child
from forge.sweep.children import cause
from forge.sweep.identity import code
from forge.sweep.launch import Ended, Job
from forge.sweep.pool import Pool, shares

_MORE = "set trainer.memory_limit to be told which step needs too much, or lower trainer.micro_batch"


def job(folder: Path, *arguments: str) -> Job:
    return Job(0, "[1/1] a", "0" * 32, arguments, folder, folder / "1" / "log.txt", {"FORGE_HOME": str(folder)})


def test_a_child_s_output_is_in_its_log_and_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    lines: list[str] = []
    ended = child.run(job(tmp_path, "trainer.micro_bach=3"), lines.append)
    assert ended.exit_code == 2 and lines[-1].startswith("error: trainer.micro_bach: unknown key")
    assert (tmp_path / "1" / "log.txt").read_text().splitlines() == lines == ended.tail.splitlines()
    assert cause(ended).startswith("trainer.micro_bach: unknown key")


@pytest.mark.parametrize(
    ("exit_code", "tail", "said"),
    [
        (-signal.SIGKILL, "step 3", f"killed by SIGKILL; the system's memory running out is the usual reason: {_MORE}"),
        (-signal.SIGSEGV, "", f"ended by SIGSEGV, as MLX does on a CPU when it gets no memory: {_MORE}"),
        (-signal.SIGABRT, "step 3\nterminate called\n\n", "ended by SIGABRT; the last it said: terminate called"),
        (2, "step 3\nerror: no such folder\n", "no such folder"),
        (1, "", "ended with exit code 1 and without a word"),
    ],
)
def test_a_death_that_could_not_be_told_gets_a_cause(exit_code: int, tail: str, said: str) -> None:
    assert cause(Ended(exit_code, tail)) == said


@pytest.mark.parametrize(
    ("cores", "count", "expected"),
    [([0, 1], 2, [{0}, {1}]), ([0, 1, 2, 3, 4], 2, [{0, 1}, {2, 3, 4}]), ([4, 7], 3, [{4}, {7}, {4}])],
)
def test_cores_are_dealt_out(cores: list[int], count: int, expected: list[set[int]]) -> None:
    assert shares(cores, count) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores that can be chosen")
def test_children_start_on_their_share_and_this_process_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = os.sched_getaffinity(0), []

    def run(*_: object) -> Ended:
        seen.append(os.sched_getaffinity(0))
        return Ended(0, "")

    monkeypatch.setattr(child, "run", run)
    pool = Pool(2)
    for future in [pool.submit(job(tmp_path)) for _ in range(4)]:
        future.result()
    pool.close()
    assert os.sched_getaffinity(0) == before
    assert all(len(share) < len(before) for share in seen)


def test_the_code_s_digest_follows_forge_and_the_allowed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mypackage").mkdir()
    file = tmp_path / "mypackage" / "__init__.py"
    file.write_text("raise AssertionError('is not imported')\n")
    first = code(["mypackage.sources."])
    file.write_text("pass\n")
    assert len({first, code(["mypackage.sources."]), code([])}) == 3
    assert code(["mypackage."]) == code(["mypackage.sources."])
