"""Resuming: as if the run had never stopped."""

import shutil
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from forge.errors import TrainingError
from forge.models.adapters import lora
from forge.training import checkpoint
from forge.training.callbacks import EarlyStopping


def with_dropout(model: Any) -> None:
    lora(model, rank=2, alpha=4.0, dropout=0.3, targets="linear", layers=None)


class Killed(BaseException):
    pass


def kill_at(step: int) -> Any:
    """A `stop` that dies at a step, before the step's checkpoint."""
    seen = 0

    def stop() -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            raise Killed

    return stop


def timeless(history: Any) -> Any:
    return [(step, {key: value for key, value in metrics.items() if key.startswith(("train/", "val/"))}) for step, metrics in history]


@pytest.mark.parametrize("step", [1, 4, 5, 7, 12, 18])
def test_losses_after_a_kill_are_those_of_the_run_never_killed(train: Any, make_model: Any, step: int) -> None:
    """Dropout is on, so that the random state counts, and saves and evaluations fall on different steps."""
    plan = {"total_steps": 20, "save_every": 3, "eval_every": 5, "accumulate": 2, "lr": lambda s: 1e-2 / s}
    whole_result, whole, whole_model = train("whole", model=make_model(with_dropout), **plan)
    with pytest.raises(Killed):
        train("killed", model=make_model(with_dropout), stop=kill_at(step), **plan)
    result, resumed, model = train("killed", model=make_model(with_dropout), **plan)
    for key in ("train/loss", "train/grad_norm", "train/tokens", "train/share/long", "train/share/short", "val/loss"):
        assert len(whole.series(key)) > 4
        assert resumed.series(key) == whole.series(key), key
    assert timeless(result.history) == timeless(whole_result.history)
    for (name, value), (_, other) in zip(tree_flatten(model.parameters()), tree_flatten(whole_model.parameters()), strict=True):
        if "lora" in name:
            np.testing.assert_array_equal(np.array(value), np.array(other), err_msg=name)


def test_callbacks_go_on_where_they_were(train: Any) -> None:
    def early() -> dict[str, EarlyStopping]:
        return {"early": EarlyStopping(patience=4, min_delta=0.01)}

    plan = {"total_steps": 100, "eval_every": 2, "lr": lambda step: 1e-12}
    with pytest.raises(Killed):
        train("killed", callbacks=early(), stop=kill_at(5), **plan)
    result, _, _ = train("killed", callbacks=early(), **plan)
    assert result.step == 8  # flat at 2, 4, 6, 8


def test_a_finished_run_trains_nothing_more(train: Any) -> None:
    first, _, _ = train(total_steps=6)
    again, log, _ = train(total_steps=6, objective=None)  # would fail if it were called
    assert log.points == first.history
    assert (again.step, again.best_step, again.best_loss) == (first.step, first.best_step, first.best_loss)


def test_another_configuration_or_other_data_is_refused(train: Any, make_model: Any, tmp_path: Any) -> None:
    train(total_steps=4)
    stamp = {"configuration": "c", "data": "d", "base model": "b"}
    for what in stamp:
        store = checkpoint.Store(tmp_path / "run", "run", stamp | {what: "other"})
        with pytest.raises(TrainingError, match=f"the {what} is not the one it was saved under"):
            store.resume(make_model(), object())


def test_a_changed_file_is_found_out(train: Any, make_model: Any, tmp_path: Any) -> None:
    train(total_steps=4)
    weights = tmp_path / "run" / "step-00000004" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(TrainingError, match=r"weights\.safetensors changed since it was saved"):
        train(total_steps=8)


def test_half_a_checkpoint_is_not_taken_for_one(train: Any, tmp_path: Any) -> None:
    """What a kill during a save leaves: a folder under its other name. And one without its last file."""
    train(total_steps=4)
    saved = tmp_path / "run" / "step-00000004"
    shutil.copytree(saved, tmp_path / "run" / ".step-00000008.partial")
    shutil.copytree(saved, tmp_path / "run" / "step-00000009", ignore=shutil.ignore_patterns("sha256.json"))
    assert checkpoint.steps(tmp_path / "run") == [4]
    result, log, _ = train(total_steps=8)
    assert result.step == 8 and [step for step, _ in log.points] == list(range(9))


def test_a_full_disk_leaves_the_checkpoints_before_it_usable(train: Any, tmp_path: Any, monkeypatch: Any) -> None:
    real = checkpoint._write

    def full(folder: Any, model: Any, optimizer: Any, state: Any, stamp: Any) -> None:
        real(folder, model, optimizer, state, stamp)
        if state.step == 8:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(TrainingError, match=r"step 8: can't save .*No space left on device"):
        train(total_steps=12)
    monkeypatch.setattr(checkpoint, "_write", real)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000004"]
    assert train(total_steps=12)[0].step == 12


def test_a_disk_that_mlx_finds_full_is_one_line_too(train: Any, tmp_path: Any, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[write] Unable to write 8 bytes")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(TrainingError, match=r"step 0: can't save .*Unable to write 8 bytes"):
        train(total_steps=4)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_a_callback_ended_stays_ended(train: Any) -> None:
    def early() -> dict[str, EarlyStopping]:
        return {"early": EarlyStopping(patience=2, min_delta=0.01)}

    first, _, _ = train(callbacks=early(), total_steps=100, eval_every=2, lr=lambda step: 1e-12)
    again, _, _ = train(callbacks=early(), total_steps=100, eval_every=2, lr=lambda step: 1e-12)
    assert (again.step, again.reason) == (first.step, first.reason) == (4, first.reason)


def test_going_on_from_an_earlier_checkpoint_abandons_the_later_ones(train: Any, tmp_path: Any) -> None:
    falls_apart = {"eval_every": 3, "save_every": 3, "lr": lambda step: 0.01 if step < 12 else 0.5}
    train("whole", total_steps=18, keep=9, **falls_apart)
    whole, _, _ = train("run", total_steps=18, keep=9, **falls_apart)
    (tmp_path / "run" / "step-00000015" / "weights.safetensors").write_bytes(b"damaged")
    result, log, _ = train("run", total_steps=18, keep=9, resume=tmp_path / "run" / "step-00000009", **falls_apart)
    assert log.series("train/loss") == [(s, m["train/loss"]) for s, m in whole.history if "train/loss" in m]
    assert result.best_step == whole.best_step
    assert checkpoint.steps(tmp_path / "run") == checkpoint.steps(tmp_path / "whole")
    assert (tmp_path / "run" / "abandoned-step-00000015").is_dir()


def test_the_last_the_best_and_keep_more_are_kept(train: Any, tmp_path: Any) -> None:
    falls_apart = {"total_steps": 24, "eval_every": 3, "save_every": 3, "lr": lambda step: 0.01 if step < 12 else 0.5}
    result, _, _ = train("two", **falls_apart)
    assert checkpoint.steps(tmp_path / "two") == [result.best_step, 24]
    train("four", keep=2, **falls_apart)
    assert checkpoint.steps(tmp_path / "four") == [result.best_step, 18, 21, 24]
