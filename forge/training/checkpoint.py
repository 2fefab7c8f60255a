"""Checkpoints: immutable folders that hold everything resume needs but the metrics so far, which all of a run share.

    <run>/history.jsonl                           every metric so far (forge.training.history)
    <run>/step-00000050/  weights.safetensors     the weights that were evaluated, and get released
                          training.safetensors    what else training goes on from: the optimizer's state, other copies of the weights
                          state.json              step, cursor, tokens, callbacks, validation loss; how much of the history is
                                                  its past; the run's id and stamp
                          sha256.json             of the files above, written last

The random state needs no file: the engine seeds it at each step from (seed, step).
A folder is written under another name, flushed to disk, and renamed, and renamed again before it is removed, so a kill at any moment
leaves whole ones only. A save costs a write and a read of the arrays, the metrics since the last one, and seven flushes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forge.arrays import flat, load, save
from forge.errors import TrainingError
from forge.paths import flush, within
from forge.spec import Metrics
from forge.training.choice import Choice, Rows, Saved, choose, lowest
from forge.training.history import History, Mark

Arrays = Mapping[str, mx.array]

Removed = Callable[[Path, str], None]  # what was removed, and why


@dataclass
class State:
    """Where a run is. `source_tokens`: the target tokens of each source so far; `seconds`: how long it has trained, all its lives
    together; of these, after step 0, `evaluating` were spent on evaluations and the saves that go with them, `stepping` on all else.
    `callbacks`: their fields by name. `loss` and `rows` are of these weights' evaluation, if there was one: nats a target, and each
    validation row's summed loss and targets. `reason` is a callback's, when it ended the run here.
    """

    step: int = 0
    cursor: int = 0
    tokens: int = 0
    source_tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stepping: float = 0.0
    evaluating: float = 0.0
    loss: float | None = None
    rows: Rows = field(default_factory=list)
    reason: str | None = None
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[tuple[int, Metrics]] = field(default_factory=list)


class Store:
    """The checkpoints of one run, in `folder`. `keep`: how many to keep besides the last, the best and the lowest.
    `removed` is told of each that was removed, and why.

    `stamp` says, by name, what a checkpoint belongs to ("configuration", "data", …): resume refuses one with another stamp.
    In a folder that holds checkpoints, resume comes before the first save.
    """

    def __init__(self, folder: Path, run_id: str, stamp: Mapping[str, str], keep: int = 0, removed: Removed = lambda path, why: None):
        self.folder, self._run_id, self._stamp, self._keep = folder, run_id, dict(stamp), keep
        self._history = History(folder)
        self._removed = removed
        self._evaluated = 0  # checkpoints saved with a loss, those since removed included
        self._begun = False

    def save(self, weights: Arrays, arrays: Arrays, state: State) -> Path:
        """Write a checkpoint, then remove those that need not be kept. Raises TrainingError where it can't be written (a full disk, …)."""
        assert self._begun or not steps(self.folder), f"{self.folder}: resume before saving, or the history of what is there is cut"
        final = path_of(self.folder, state.step)
        partial = final.with_name(f".{final.name}.partial")
        evaluated = self._evaluated + (state.loss is not None)
        try:
            if not self._begun:
                self.folder.mkdir(parents=True, exist_ok=True)
            mark = self._history.append(state.history)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            past = {"history": asdict(mark), "evaluated": evaluated, "run_id": self._run_id, "stamp": self._stamp}
            _write(partial, weights, arrays, vars(state) | past)
            if final.exists():  # not whole, or resume would have gone on from it or put it aside
                _remove(final)
            os.replace(partial, final)
            flush(self.folder)
            self._begun, self._evaluated = True, evaluated
            self._prune()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            why = error.strerror or error
            whole = f"{last} is whole" if (last := self.last()) else "there is none before it"
            raise TrainingError(
                f"step {state.step}: can't save to {final} ({why}); {whole}; make room or mend the folder, and resume"
            ) from error
        return final

    def at(self, step: int) -> Path:
        return path_of(self.folder, step)

    def last_step(self) -> int:
        return max(steps(self.folder), default=0)

    def last(self) -> Path | None:
        return last_in(self.folder)

    def evaluated(self) -> list[Saved]:
        """The checkpoints that are kept and that an evaluation saw, by step."""
        states = [(path, _read_state(path)) for path in (self.at(step) for step in steps(self.folder))]
        return [Saved(path, state["step"], state["loss"], state["rows"]) for path, state in states if state["loss"] is not None]

    def best(self) -> Choice | None:
        """The saved checkpoint to release, and why; None where none was evaluated."""
        saved = self.evaluated()
        return choose(saved, max(_read_state(one.path)["evaluated"] for one in saved)) if saved else None

    def resume(self, checkpoint: Path | None = None) -> tuple[State, dict[str, mx.array], dict[str, mx.array]] | None:
        """The state, weights and other arrays of `checkpoint` (else of the last one); None where there is nothing to resume.

        Clears away what a kill left half written. Going on from a named checkpoint abandons this run's later ones: they are renamed, so
        that none is taken for the last or the best, and their metrics are cut from the history. Raises TrainingError.
        """
        named, checkpoint = checkpoint, checkpoint or self.last()
        if checkpoint is not None:
            verify(checkpoint)
            stored = _read_state(checkpoint)
            for what, mark in self._stamp.items():
                if stored["stamp"].get(what) != mark:
                    raise TrainingError(f"{checkpoint}: the {what} is not the one it was saved under; start afresh with resume=null")
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if checkpoint is None:
            return None
        try:
            history = self._history.read(Mark(**stored["history"]), checkpoint.parent)
            if named:
                self._abandon_after(step_of(named))
            self._history.append(history)  # nothing new: cuts off what comes after
        except OSError as error:
            raise TrainingError(f"{self.folder}: can't be written ({error.strerror}); mend that, and resume") from error
        self._begun, self._evaluated = True, stored["evaluated"]
        state = State(**{each.name: stored[each.name] for each in fields(State) if each.name != "history"}, history=history)
        return state, load(checkpoint / "weights.safetensors"), load(checkpoint / "training.safetensors")

    def _abandon_after(self, step: int) -> None:
        for later in (later for later in steps(self.folder) if later > step):
            abandoned = self.folder / f"abandoned-{path_of(self.folder, later).name}"
            if abandoned.is_dir():
                shutil.rmtree(abandoned, ignore_errors=True)
                self._removed(abandoned, "a resume from before it, a second time")
            os.replace(path_of(self.folder, later), abandoned)
        flush(self.folder)  # before their history is cut

    def _prune(self) -> None:
        """Keeps the chosen one and the lowest: the next lowest may leave the noise of the first, and not that of the second."""
        saved = self.evaluated()
        spared = {path_of(self.folder, step) for step in steps(self.folder)[-1 - self._keep :]}
        if saved:
            spared |= {choose(saved, 0).path, lowest(saved).path}
        for path in {path_of(self.folder, step) for step in steps(self.folder)} - spared:
            _remove(path)
            self._removed(path, "neither the best nor among the last")


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """The checkpoint's trainable weights into `model`, which has the same adapter. Raises TrainingError when they don't fit."""
    put_weights(model, load(checkpoint / "weights.safetensors"), checkpoint)


def put_weights(model: nn.Module, weights: Arrays, checkpoint: Path) -> None:
    """load_weights() for weights that were read from `checkpoint` before."""
    expected = {name: value.shape for name, value in flat(model.trainable_parameters()).items()}
    if {name: value.shape for name, value in weights.items()} != expected:
        raise TrainingError(f"{checkpoint}: its weights are not those that this model and adapter train")
    model.load_weights(list(weights.items()), strict=False)
    mx.eval(model.parameters())


def verify(checkpoint: Path) -> None:
    """Raises TrainingError unless every file is what was written."""
    try:
        expected = json.loads((checkpoint / "sha256.json").read_text())
        broken = [name for name, digest in expected.items() if _sha256(within(checkpoint, name)) != digest]
    except (OSError, ValueError) as error:
        raise TrainingError(f"{checkpoint}: not a whole checkpoint ({error})") from error
    if broken:
        raise TrainingError(f"{checkpoint}: {', '.join(broken)} changed since it was saved; name an earlier checkpoint with resume=PATH")


def run_id(checkpoint: Path) -> str:
    """The run that saved it. Raises TrainingError where no checkpoint lies; resume verifies the rest."""
    return str(_read_state(checkpoint)["run_id"])


def step_of(checkpoint: Path) -> int:
    """Raises TrainingError where the folder is not named as a checkpoint is, as an abandoned one."""
    number = checkpoint.name.removeprefix("step-")
    if not number.isdecimal():
        raise TrainingError(f"{checkpoint}: not a checkpoint to go on from; those are named step-00000050")
    return int(number)


def steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in `folder`, ascending."""
    named = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())  # and not step-00000050.bak
    return sorted(step_of(path) for path in named if (path / "sha256.json").is_file())


def last_in(folder: Path) -> Path | None:
    """The last whole checkpoint in `folder`."""
    found = steps(folder)
    return path_of(folder, found[-1]) if found else None


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _read_state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / "state.json").read_text())
        return state | {"rows": [(loss, targets) for loss, targets in state["rows"]]}
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{checkpoint}: not a whole checkpoint ({error})") from error


def _write(folder: Path, weights: Arrays, arrays: Arrays, state: Mapping[str, Any]) -> None:
    save(folder / "weights.safetensors", weights)
    save(folder / "training.safetensors", arrays)
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "sha256.json").write_text(json.dumps({path.name: _sha256(path) for path in sorted(folder.iterdir())}))
    for path in (*folder.iterdir(), folder):
        flush(path)


def _remove(checkpoint: Path) -> None:
    """Under another name first: half removed it would be taken for a whole one."""
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    os.replace(checkpoint, removed)
    shutil.rmtree(removed, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
