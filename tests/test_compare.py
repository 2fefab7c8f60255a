"""python -m forge.compare on runs in a store: what it prints, writes and logs, and what it refuses."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from forge.compare import main
from forge.evaluation.scores import Scored
from forge.reports import documents, questions
from forge.settings import TrackingSpec
from forge.tracking import store
from forge.tracking.run import Run
from forge.tracking.run import run as open_run

Compare = Callable[..., tuple[int, str, str]]


def tracked(name: str, level: float = 2.0, seed: int = 0, **changes: Any) -> str:
    """A run that measured 40 documents at `level` nats a token, give or take; `raises`: it failed before its end. Returns its id."""
    kept = {"digest": "f" * 64, "raises": False, "documents": True, "answers": False} | changes
    spec = TrackingSpec(uri=None, experiment="compare", run_name=name, parent_run=None, dashboard=True, tags={})
    try:
        with open_run(spec, f"{name} {seed}") as run:
            run.text(
                f"seed: {seed}\nmodel:\n  layers: 2\noptimizer:\n  betas: [0.9, 0.95]\ntracking:\n  run_name: {name}\n"
                f"callbacks:\n  pruning:\n    trial: {seed}\n",
                "config/config.yaml",
            )
            run.tags({"forge.full_digest": kept["digest"], "forge.data_digest": "d"})
            for step in range(0, 30, 3):
                run.log({"train/loss": level + 2 / (step + 1), "val/loss": level + 2.1 / (step + 1)}, step)
            _documents(run, documents.BASE_FILE, 3.0, 99, kept["digest"])
            run.summary({"base/loss": 3.0})
            if kept["raises"]:
                raise KeyError("a bug")
            run.summary({"final/loss": level, "final/loss/a": level, "best/val_loss": level, "best/step": 27.0})
            if kept["documents"]:
                _documents(run, documents.FILE, level, seed, kept["digest"])
            if kept["answers"]:
                _answers(run, questions.BASE_FILE, 5)
                _answers(run, questions.FILE, 25)
    except KeyError:
        pass
    return run.id


def _documents(run: Run, file: str, level: float, seed: int, digest: str) -> None:
    draw = np.random.default_rng(seed)
    rows = [(f"a/{n:02}", (20 + n) * (level + 0.02 * float(draw.normal())), 20 + n) for n in range(40)]
    run.text(documents.text(digest, {"a": rows}), file)


def _answers(run: Run, file: str, right: int) -> None:
    """To 30 questions, the first `right` as in the data."""
    rows = [Scored(f"q/{n:02}", "yes" if n < right else "no", "yes", ended=True) for n in range(30)]
    run.text(questions.text({"a": rows}, (), 32), file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Ids by name, in a store of the module's own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("COLUMNS", "180")
        ids = {name: tracked(name, level, seed) for name, level, seed in (("old", 2.0, 1), ("lr=0.1", 1.9, 2), ("again", 2.0, 3))}
        ids["failed"] = tracked("failed", raises=True)
        ids["elsewhere"] = tracked("elsewhere", 1.0, 4, digest="0" * 64)
        ids["asked"] = tracked("asked", 2.0, 6, answers=True)
        ids["ancient"] = tracked("ancient", 1.5, 5, documents=False)
        yield ids


@pytest.fixture
def compare(runs: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Compare:
    """compare(*words) -> (exit code, stdout, stderr); it writes to tmp_path / "out"."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([*words, "--out", str(tmp_path / "out")])
        return code, *capfd.readouterr()

    return run


def artifacts(run_id: str, folder: str) -> set[str]:
    return {Path(each.path).name for each in client().list_artifacts(run_id, folder)}


def client() -> MlflowClient:
    return store.connect(None)


def test_two_runs_are_told_apart_written_and_logged_to_both(compare: Compare, runs: dict[str, str], tmp_path: Path) -> None:
    code, out, err = compare("old", runs["lr=0.1"][:8])
    assert (code, err) == (0, "")
    (line,) = (line for line in out.splitlines() if "better" in line)
    assert line.startswith("lr=0.1 is better than old by 0.0996") and "over 40 documents" in line
    differing = out[out.index("Configuration, where it differs") : out.index("\nData")].split("\n")[1:-1]
    assert [row.split() for row in differing if row.strip()] == [["key", "old", "lr=0.1"], ["seed", "1", "2"]]
    names = {"compare.png", "compare.html", "documents.csv"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    for one, other in ((runs["old"], runs["lr=0.1"]), (runs["lr=0.1"], runs["old"])):
        assert artifacts(one, f"compare/{other[:8]}") == names
        assert client().get_run(one).data.tags[f"forge.compare.{other[:8]}"] == line.strip()


def test_the_store_is_left_alone_where_that_is_asked_for(compare: Compare, runs: dict[str, str]) -> None:
    code, out, _ = compare("old", "again", "--no-log", "--confidence", "0.9")
    assert code == 0 and "can't tell again from old" in out and "90 % interval" in out
    assert artifacts(runs["again"], "compare") == set()


def test_several_are_held_against_the_first_and_seeds_are_one(compare: Compare, runs: dict[str, str]) -> None:
    code, out, _ = compare("slow=old,again", "lr=0.1", "failed")
    assert code == 0
    assert "lr=0.1 is better than slow by 0.0" in out and "1 against 2 runs" in out
    assert "can't tell failed from slow: failed has no evaluation/documents.json, as it did not come to its end (FAILED)" in out
    place = "-".join(runs[name][:8] for name in ("lr=0.1", "failed"))
    assert artifacts(runs["again"], f"compare/{place}") == {"compare.png", "compare.html", "documents.csv"}


def test_a_run_is_held_against_what_it_started_from(compare: Compare, runs: dict[str, str]) -> None:
    code, out, _ = compare("old@base", "old")
    assert code == 0 and "old is better than old@base by 1.0" in out
    assert "compare.png" in artifacts(runs["old"], "compare/base")


def test_answers_to_the_same_questions_are_compared_too(compare: Compare, runs: dict[str, str], tmp_path: Path) -> None:
    """5 and 25 of 30 answered as in the data."""
    code, out, _ = compare("asked@base", "asked")
    verdict = "asked answers better than asked@base: F1 0.833 against 0.167"
    assert code == 0 and verdict in out and "asked is better than asked@base" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("exact match  a "))
    assert row[:6] == ["exact", "match", "a", "0.167", "0.833", "+0.667"]
    assert verdict in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert verdict in client().get_run(runs["asked"]).data.tags["forge.compare.base"]
    code, out, _ = compare("old", "asked", "--no-log")
    assert code == 0 and "can't tell the answers of asked from those of old: old has no evaluation/answers.json" in out


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("elsewhere", "WARNING: DIFFERENT DATA: tokens measured at the end are not the same"),
        ("elsewhere", "can't be compared on different tokens"),
        ("ancient", "ancient has no evaluation/documents.json, since it was trained by an older forge"),
    ],
)
def test_what_can_not_be_paired_is_shown_all_the_same(compare: Compare, tmp_path: Path, other: str, said: str) -> None:
    code, out, _ = compare("old", other, "--no-log")
    assert code == 0 and said in out and "better" not in out and "worse" not in out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"compare.png", "compare.html"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["old"], 2, "name two runs or more, as in: python -m forge.compare A B"),
        (["old", "old"], 2, "old: the run old was named before; name each once"),
        (["old", "a=again,old"], 2, "a=again,old: the run old was named before"),
        (["old", "no such"], 7, "no such: no run has this id or name; the newest are "),
        (["old", "lr=0.7"], 7, "lr=0.7: no run is called so, and as LABEL=RUN,RUN: 0.7: no run has"),
        (["old", "again", "--confidence", "95"], 2, "--confidence 95: has to be from 0.5 to 0.99"),
    ],
)
def test_a_mistake_is_one_line(compare: Compare, words: list[str], code: int, said: str) -> None:
    found, out, err = compare(*words)
    assert (found, out) == (code, "") and err.startswith(f"error: {said}") and err.count("\n") == 1


def test_a_folder_that_can_not_be_written_is_named(compare: Compare, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    code, _, err = compare("old", "again", "--no-log")
    assert code == 2 and "choose another place with --out" in err


def test_mlx_is_not_imported(runs: dict[str, str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom forge.compare import main\n"
        f"code = main(['old', 'again', '--no-log', '--out', {str(tmp_path)!r}])\n"
        "sys.exit(code or 9 * any(name.split('.')[0] in ('mlx', 'mlx_lm', 'torch', 'transformers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True).returncode == 0
