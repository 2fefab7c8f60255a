"""What a run would take, on small files and a model of a few hundred weights; and what the numbers of an estimate are made of."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge.estimate import Estimate, _Sample, kept, score
from forge.plan import main
from forge.spec import Batch, Result

TINY = ("model.layers=1", "model.hidden_size=16", "model.heads=2", "model.kv_heads=1", "model.head_dim=8", "model.mlp_size=32")
SETTINGS = (
    *TINY,
    "model.vocab_size=280",
    "data=folder",
    "data.sequence_length=32",
    "data.valid_fraction=0.25",
    "trainer.budget=40 steps",
    "trainer.micro_batch=2",
    "trainer.eval_every=10 steps",
)
Plan = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Plan:
    """plan(*words) -> (exit code, stdout, stderr)"""
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["plan"])
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(24):
        (folder / f"{n:02}.txt").write_text(f"Text {n} says this and that. " * (n % 4 + 3))

    def run(*words: str, settings: Sequence[str] = SETTINGS) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([*words, *settings, f"data.path={folder}"])
        return code, *capfd.readouterr()

    return run


def test_what_it_prints_and_keeps(plan: Plan, tmp_path: Path) -> None:
    code, out, err = plan()
    assert (code, err) == (0, "")
    told = {line[:15].strip(): line[15:].strip() for line in out.splitlines() if line[:15].strip()}
    assert told["steps"] == "40"
    (file,) = (tmp_path / "home" / "mlruns" / "plans").glob("*/plan.json")
    made = Estimate(**json.loads(file.read_text()))
    # 280 · 16 embedding; 16 · 16 q, 2 · 16 · 8 k and v, 16 · 16 o; 3 · 16 · 32 mlp; norms 2 · 16, q and k 2 · 8, last 16
    assert made.trainable == made.parameters == 280 * 16 + 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32 + 2 * 16 + 2 * 8 + 16
    assert told["trained"].startswith(f"{made.trainable:,} of {made.trainable:,} parameters")
    assert sum(made.memory.values()) == pytest.approx(made.peak_gib)
    assert made.memory["weights"] == pytest.approx(4 * made.parameters / 2**30)
    assert made.memory["optimizer"] == pytest.approx(2 * made.memory["weights"], rel=0.01)  # AdamW's two moments
    assert made.checkpoint_gib == pytest.approx(3 * made.memory["weights"], rel=0.5)
    assert set(made.seconds) == {"training", "evaluations", "base and best on the full set", "checkpoints"}
    assert (file.parent / "learning_rate.png").is_file()
    assert not (file.parent / "trial").exists()
    assert kept(made.identity) == made
    assert kept("another") is None


def test_a_run_that_does_not_fit_is_refused_with_the_override_that_does(plan: Plan) -> None:
    code, _, err = plan("trainer.memory_limit=0.000001 GB")
    assert code == 5
    assert err.startswith("error: step 1: memory peaked at") and "trainer.memory_limit=0.000001 GB" in err


def test_the_largest_micro_batch_is_told_as_overrides(plan: Plan) -> None:
    code, out, _ = plan("--find-batch", "trainer.memory_limit=1 GB", "trainer.accumulate=3")
    assert code == 0
    assert "the step of 6 rows as it is: trainer.micro_batch=6 trainer.accumulate=1" in out


def test_a_sweep_is_no_plan(plan: Plan) -> None:
    code, _, err = plan("-m", "seed=1,2")
    assert (code, err) == (2, "error: plan looks at one job: leave out -m\n")


class Widths:
    """Batches of one row, as wide as 10, 20, 30, … at cursor 0, 1, 2, …"""

    cursor = 0

    def next(self) -> Batch:
        self.cursor += 1
        row = np.zeros((1, 10 * self.cursor), np.int32)
        return Batch(row, row > 0, row, (str(self.cursor - 1),))

    def epochs(self, cursor: int) -> dict[str, float]:
        return {}


def test_the_sample_begins_with_the_widest_and_spans_the_run() -> None:
    """Of ten batches 10 … 100 wide, mean 55: the last, then 0, 2, 4, 6 and 9; the first two are cold, so the median of the rest is 60."""
    sample = _Sample(Widths(), of=10, count=6)
    assert [sample.next().row_ids for _ in range(6)] == [("9",), ("0",), ("2",), ("4",), ("6",), ("9",)]
    assert sample.ratio == pytest.approx(55 / np.median([30, 50, 70, 100]))


def test_the_score_is_what_happened_over_what_was_estimated() -> None:
    made: Any = Estimate("i", "d", 10, 1000.0, {}, 1, 1, {}, 2.0, 0.0, 0.0, {"training": 30.0, "evaluations": 10.0})
    history = [(1, {"memory/peak_gib": 1.0}), (2, {"memory/peak_gib": 3.0}), (2, {"val/loss": 1.0})]
    result = Result(step=10, tokens=900, best_step=2, best_loss=1.0, best_why="", reason="", history=history)
    assert {one.name: one.ratio for one in score(made, result, seconds=50.0)} == {"tokens": 0.9, "seconds": 1.25, "peak_memory": 1.5}
    assert "peak_memory" not in {one.name for one in score(made, replace(result, history=[]), 50.0)}
    assert "peak_memory" not in {one.name for one in score(made, result, 50.0, asked={3.0})}  # that of training is not known
    assert "peak_memory" in {one.name for one in score(made, result, 50.0, asked={2.5})}  # training went above it
