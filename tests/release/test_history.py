"""The base's loss counts where it was measured on the same tokens, and a history that a kill cut short is read up to there."""

from pathlib import Path

import mlx.core as mx

from forge.release.history import past
from forge.training.checkpoint import State, Store

BASE = {"val/loss": 8.0, "val/loss/a": 8.5}


def save(folder: Path, history: list[tuple[int, dict[str, float]]]) -> Path:
    return Store(folder, "run", {"data": "this text"}).save({"w": mx.zeros(1)}, {}, State(step=4, loss=2.0, history=history))


def test_the_base_is_step_0(tmp_path: Path) -> None:
    saved = save(tmp_path, [(0, BASE), (2, {"train/loss": 3.0}), (4, {"val/loss": 2.0})])
    found = past(saved, "this text")
    assert found.base == BASE and (found.step, found.loss) == (4, 2.0)
    assert [step for step, _ in found.history] == [0, 2, 4]


def test_on_other_text_it_says_nothing_of_the_base(tmp_path: Path) -> None:
    assert past(save(tmp_path, [(0, BASE)]), "other text").base is None


def test_a_run_that_measured_no_base_has_none(tmp_path: Path) -> None:
    assert past(save(tmp_path, [(2, {"val/loss": 3.0})]), "this text").base is None


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    saved = save(tmp_path, [(0, BASE)])
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write('[6, {"val/lo')
    assert [step for step, _ in past(saved, "this text").history] == [0]


def test_without_a_history_there_is_a_checkpoint_all_the_same(tmp_path: Path) -> None:
    saved = save(tmp_path, [(0, BASE)])
    (tmp_path / "history.jsonl").unlink()
    found = past(saved, "this text")
    assert (found.history, found.base, found.loss) == ([], None, 2.0)
