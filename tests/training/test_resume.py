"""Resuming: as if the run had never stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

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


def test_half_a_checkpoint_is_not_taken_for_one(train: Any, tmp_path: Any) -> None:
    """What a kill during a save leaves: a folder under its other name. And one without its last file."""
    train(total_steps=4)
    saved = tmp_path / "run" / "step-00000004"
    shutil.copytree(saved, tmp_path / "run" / ".step-00000008.partial")
    shutil.copytree(saved, tmp_path / "run" / "step-00000009", ignore=shutil.ignore_patterns("sha256.json"))
    assert checkpoint.steps(tmp_path / "run") == [4]
    result, log, _ = train(total_steps=8)
    assert result.step == 8 and [step for step, _ in log.points] == list(range(9))


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


class Lives:
    """One run's lives as processes, one after another."""

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, **environment: str) -> subprocess.Popen[str]:
        test = Path(__file__).with_name("one_life.py")
        command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", f"--basetemp={self.folder}-tmp", str(test)]
        variables = os.environ | {"RUN": str(self.folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=variables, stdout=subprocess.PIPE, text=True)

    def end(self) -> None:
        life = self.begin()
        output, _ = life.communicate()
        assert life.returncode == 0, output

    def kill_after(self, steps: int, seconds: float) -> None:
        with self.begin() as life:
            assert life.stdout is not None
            seen = 0
            for line in life.stdout:
                seen += line.strip().isdecimal()
                if seen == steps:
                    break
            time.sleep(seconds)
            life.kill()
        assert life.returncode == -signal.SIGKILL

    def die_at(self, call: int) -> None:
        life = self.begin(DIE_AT=str(call))
        output, _ = life.communicate()
        assert life.returncode == -signal.SIGKILL, output

    def history(self) -> Any:
        return timeless([json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()])

    def last_digests(self) -> dict[str, str]:
        last = checkpoint.last_in(self.folder)
        assert last is not None
        return {name: digest for name, digest in json.loads((last / "sha256.json").read_text()).items() if name.endswith(".safetensors")}


@pytest.mark.slow
def test_twenty_kills_at_random_moments_leave_the_run_as_if_there_had_been_none(tmp_path: Path) -> None:
    """Half of them come at a call of a save or of what it removes, each before it has taken effect; the others at any time."""
    whole, killed = Lives(tmp_path / "whole"), Lives(tmp_path / "killed")
    whole.end()
    chance = random.Random(0)
    for _ in range(10):
        killed.kill_after(chance.randint(1, 6), chance.uniform(0, 0.03))
        killed.die_at(chance.randint(0, 60))
    before = checkpoint.steps(killed.folder)[-1]
    assert 20 < before < 200
    killed.end()
    assert [step for step, _ in killed.history()] == list(range(201))
    assert killed.history() == whole.history()
    assert killed.last_digests() == whole.last_digests()
    assert checkpoint.steps(killed.folder) == checkpoint.steps(whole.folder)
    assert sorted(path.name for path in killed.folder.iterdir()) == sorted(path.name for path in whole.folder.iterdir())
