"""Checkpoints: immutable folders that hold everything resume needs.

    <run>/step-00000050/  weights.safetensors     the trainable weights
                          optimizer.safetensors   the optimizer's state
                          state.json              step, cursor, tokens, callbacks, validation loss; the run's id and stamp
                          history.json            every metric emitted so far
                          sha256.json             of the files above, written last

The random state needs no file: the engine seeds it at each step from (seed, step).
A folder is written under another name, flushed to disk, and renamed, so a kill at any moment leaves whole ones only.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_unflatten

from forge.arrays import flat, load
from forge.errors import TrainingError
from forge.paths import flush
from forge.spec import Metrics


@dataclass
class State:
    """Where a run is. `source_tokens` holds the target tokens of each source so far, `callbacks` their fields by name. `loss` is the
    validation loss of these weights, if it was taken; `reason` is a callback's, when it ended the run here.
    """

    step: int = 0
    cursor: int = 0
    tokens: int = 0
    source_tokens: dict[str, int] = field(default_factory=dict)
    loss: float | None = None
    reason: str | None = None
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[tuple[int, Metrics]] = field(default_factory=list)


class Store:
    """The checkpoints of one run, in `folder`. `keep`: how many to keep besides the last and the best.

    `stamp` says, by name, what a checkpoint belongs to ("configuration", "data", …): resume refuses one with another stamp.
    """

    def __init__(self, folder: Path, run_id: str, stamp: Mapping[str, str], keep: int = 0):
        self.folder, self._run_id, self._stamp, self._keep = folder, run_id, dict(stamp), keep

    def save(self, model: nn.Module, optimizer: optimizers.Optimizer, state: State) -> Path:
        """Write a checkpoint, then delete those that are neither last, best nor kept. Raises TrainingError when the disk is full."""
        final = path_of(self.folder, state.step)
        partial = final.with_name(f".{final.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write(partial, model, optimizer, state, {"run_id": self._run_id, "stamp": self._stamp})
            if final.exists():  # saved by an earlier life of this run, from the same state
                shutil.rmtree(final)
            os.replace(partial, final)
            flush(self.folder)
        except (OSError, RuntimeError) as error:  # mlx raises the latter when a disk is full
            shutil.rmtree(partial, ignore_errors=True)
            why = getattr(error, "strerror", None) or error
            raise TrainingError(f"step {state.step}: can't save to {final} ({why}); the checkpoints before it are whole") from error
        self._prune()
        return final

    def at(self, step: int) -> Path:
        return path_of(self.folder, step)

    def last_step(self) -> int:
        return max(steps(self.folder), default=0)

    def last(self) -> Path | None:
        return last_in(self.folder)

    def best(self) -> tuple[Path, float] | None:
        """The saved checkpoint with the lowest validation loss, the earlier of equals."""
        found = [(_read_state(path_of(self.folder, step))["loss"], step) for step in steps(self.folder)]
        losses = [(loss, step) for loss, step in found if loss is not None]
        if not losses:
            return None
        loss, step = min(losses)
        return path_of(self.folder, step), loss

    def resume(self, model: nn.Module, optimizer: optimizers.Optimizer, checkpoint: Path | None = None) -> State:
        """Put `checkpoint` (else the last one; else nothing) into model and optimizer. Raises TrainingError.

        Going on from a named checkpoint abandons this run's later ones: they are renamed, so that none is taken for the last or the best.
        """
        named, checkpoint = checkpoint, checkpoint or self.last()
        if checkpoint is None:
            return State()
        verify(checkpoint)
        stored = _read_state(checkpoint)
        for what, mark in self._stamp.items():
            if stored["stamp"].get(what) != mark:
                raise TrainingError(f"{checkpoint}: the {what} is not the one it was saved under; start afresh with resume=null")
        load_weights(model, checkpoint)
        arrays = load(checkpoint / "optimizer.safetensors")
        optimizer.state = tree_unflatten(list(arrays.items()))
        history = [(step, metrics) for step, metrics in json.loads((checkpoint / "history.json").read_text())]
        if named:
            self._abandon_after(step_of(named))
        return State(
            **{key: stored[key] for key in ("step", "cursor", "tokens", "source_tokens", "loss", "reason", "callbacks")}, history=history
        )

    def _abandon_after(self, step: int) -> None:
        for later in (later for later in steps(self.folder) if later > step):
            abandoned = self.folder / f"abandoned-{path_of(self.folder, later).name}"
            shutil.rmtree(abandoned, ignore_errors=True)
            os.replace(path_of(self.folder, later), abandoned)

    def _prune(self) -> None:
        found = steps(self.folder)
        best = self.best()
        spared = {path_of(self.folder, step) for step in found[-1 - self._keep :]} | ({best[0]} if best else set())
        for path in {path_of(self.folder, step) for step in found} - spared:
            shutil.rmtree(path)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """The checkpoint's trainable weights into `model`, which has the same adapter. Raises TrainingError when they don't fit."""
    weights = load(checkpoint / "weights.safetensors")
    expected = {name: value.shape for name, value in flat(model.trainable_parameters()).items()}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise TrainingError(f"{checkpoint}: its weights are not those that this model and adapter train")
    model.load_weights(list(weights.items()), strict=False)
    mx.eval(model.parameters())


def verify(checkpoint: Path) -> None:
    """Raises TrainingError unless every file is what was written."""
    try:
        expected = json.loads((checkpoint / "sha256.json").read_text())
        broken = [name for name, digest in expected.items() if _sha256(checkpoint / name) != digest]
    except (OSError, ValueError) as error:
        raise TrainingError(f"{checkpoint}: not a whole checkpoint ({error})") from error
    if broken:
        raise TrainingError(f"{checkpoint}: {', '.join(broken)} changed since it was saved; name an earlier checkpoint with resume=PATH")


def run_id(checkpoint: Path) -> str:
    """The run that saved it. Raises TrainingError where no checkpoint lies; resume verifies the rest."""
    try:
        return str(_read_state(checkpoint)["run_id"])
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{checkpoint}: not a whole checkpoint ({error})") from error


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in `folder`, ascending."""
    return sorted(step_of(path) for path in folder.glob("step-*") if (path / "sha256.json").is_file())


def last_in(folder: Path) -> Path | None:
    """The last whole checkpoint in `folder`."""
    found = steps(folder)
    return path_of(folder, found[-1]) if found else None


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _read_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "state.json").read_text())


def _write(folder: Path, model: nn.Module, optimizer: optimizers.Optimizer, state: State, origin: Mapping[str, Any]) -> None:
    mx.save_safetensors(str(folder / "weights.safetensors"), flat(model.trainable_parameters()))
    mx.save_safetensors(str(folder / "optimizer.safetensors"), flat(optimizer.state))
    fields = dict(vars(state))  # asdict() would copy the whole history
    (folder / "history.json").write_text(json.dumps(fields.pop("history")))
    (folder / "state.json").write_text(json.dumps({**fields, **origin}))
    (folder / "sha256.json").write_text(json.dumps({path.name: _sha256(path) for path in sorted(folder.iterdir())}))
    for path in (*folder.iterdir(), folder):
        flush(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
