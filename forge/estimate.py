"""What a run will take, measured: a few real steps, the evaluations and one checkpoint, thrown away afterwards.

The steps are taken at batches from all over the run, the widest of them first, so that neither the mean time nor the peak of the
memory is that of the first batches alone. Costs the start of a run, the evaluation of the base on the full set, and STEPS steps.
"""

import json
import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge import paths
from forge.arrays import flat, size
from forge.assemble import Parts, setup_of
from forge.config import Config
from forge.models import device, parameters, trainable_parameters
from forge.spec import Batch, Batches, Metrics, Plan, Result
from forge.training.checkpoint import State, Store
from forge.training.engine import fit
from forge.training.memory import limited
from forge.training.update import Update

STEPS = 6
_COLD = 2  # steps whose time does not count: in them the system hands out its memory
_LOOKED_AT = 200  # batches, for their mean and largest size
_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """A run's future. `memory` is MLX's by part, in GiB, and adds up to `peak_gib`; `seconds` by part."""

    identity: str
    device: str
    steps: int
    tokens: float
    epochs: Mapping[str, float]
    trainable: int
    parameters: int
    memory: Mapping[str, float]
    peak_gib: float
    checkpoint_gib: float
    disk_gib: float
    seconds: Mapping[str, float]

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Score:
    """One thing that was estimated. `ratio`: what it came to, over the estimate."""

    name: str
    words: str
    estimated: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.measured / self.estimated


def estimate(config: Config, parts: Parts, update: Update, steps: Plan) -> Estimate:
    """Raises what the run's first steps would raise. Changes the model in `parts`."""
    data, model, total = parts.data, parts.loaded.model, steps.total_steps
    sample = _Sample(data.train, total * steps.accumulate, STEPS * steps.accumulate)
    log: list[Metrics] = []
    trial = replace(steps, total_steps=min(STEPS, total), eval_every=total + 1, save_every=total + 1, log_every=1)
    with paths.scratch(_file(config.identity).parent / "trial") as folder:
        store = Store(folder, "estimate", {})
        with limited(config.trainer.memory_limit, setup_of(config, parts.loaded)) as bound:
            fit(model, replace(data, train=sample), config.objective, update, trial, {}, store, lambda m, _: log.append(m), bound=bound)
        started = time.perf_counter()
        saved = store.save(flat(model.trainable_parameters()), update.arrays, State(step=trial.total_steps + 1))
        save_s = time.perf_counter() - started
        checkpoint = sum(file.stat().st_size for file in saved.iterdir()) / _GIB
    step_s = statistics.median(_series(log, "perf/step_s")[_COLD:] or _series(log, "perf/step_s"))
    peak = max(_series(log, "memory/peak_gib"))
    weights = size(model.parameters()) / _GIB
    saves = {step for every in (steps.eval_every, steps.save_every) for step in range(0, total + 1, every)} | {total}
    evaluations = len({*range(0, total + 1, steps.eval_every), total})
    return Estimate(
        identity=config.identity,
        device=device.describe()["forge.device_name"],
        steps=total,
        tokens=total * steps.accumulate * config.trainer.micro_batch * data.tokens_per_row,
        epochs=dict(data.train.epochs(total * steps.accumulate)),
        trainable=trainable_parameters(model),
        parameters=parameters(model),
        memory=_by_part(weights, size(model.trainable_parameters()) / _GIB, size(update.arrays) / _GIB, peak),
        peak_gib=peak,
        checkpoint_gib=checkpoint,
        disk_gib=checkpoint * (4 + config.trainer.keep) + _released(model) / _GIB * config.release.enabled,
        seconds={
            "training": total * step_s * sample.ratio,
            "evaluations": evaluations * statistics.median(_series(log, "perf/eval_s")),
            "base and best on the full set": 2 * max(_series(log, "perf/full_eval_s"), default=0.0),
            "checkpoints": len(saves) * save_s,
        },
    )


def keep(made: Estimate) -> Path:
    """Write it where the run of the same configuration will find it."""
    file = _file(made.identity)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(made), indent=2))
    return file


def kept(identity: str) -> Estimate | None:
    """What was estimated for a configuration on this machine's kind of device, if anything was."""
    try:
        found = Estimate(**json.loads(_file(identity).read_text()))
    except (FileNotFoundError, TypeError, ValueError):  # none, or another version's
        return None
    return found if found.device == device.describe()["forge.device_name"] else None


def score(made: Estimate, result: Result, seconds: float, asked: Collection[float] = ()) -> list[Score]:
    """What was estimated against what happened. `seconds`: of the run up to its release, without those in which it answered questions: how
    long answers are decides them, which is not known before. `asked`: peaks of memory (GiB) that answers made; that of training is below
    them, and not known."""
    peak = max((metrics["memory/peak_gib"] for _, metrics in result.history if "memory/peak_gib" in metrics), default=None)
    return [
        Score("tokens", "target tokens", made.tokens, result.tokens),
        Score("seconds", "seconds", made.total_seconds, seconds),
        *([Score("peak_memory", "GiB of memory at most", made.peak_gib, peak)] if peak and peak not in asked else []),
    ]


class _Sample(Batches):
    """`count` batches of the run's first `of`: the largest of those looked at, then some from all over it.

    `ratio`: the mean size of a batch in the run over that of the ones given out after the cold ones.
    """

    def __init__(self, batches: Batches, of: int, count: int):
        self._batches, self.cursor = batches, 0
        looked_at = np.unique(np.linspace(0, of - 1, min(_LOOKED_AT, of)).astype(int)).tolist()
        sizes = {at: self._at(at).tokens_BT.size for at in looked_at}
        rest = [looked_at[i] for i in np.linspace(0, len(looked_at) - 1, max(1, count - 1)).astype(int)]
        self._cursors = [max(sizes, key=lambda at: sizes[at]), *rest]
        timed = self._cursors[_COLD * count // STEPS :] or self._cursors
        self.ratio = float(np.mean(list(sizes.values())) / np.median([sizes[at] for at in timed]))

    def next(self) -> Batch:
        batch = self._at(self._cursors[min(self.cursor, len(self._cursors) - 1)])
        self.cursor += 1
        return batch

    def epochs(self, cursor: int) -> Mapping[str, float]:
        return self._batches.epochs(cursor)

    def _at(self, cursor: int) -> Batch:
        self._batches.cursor = cursor
        return self._batches.next()


def _released(model: nn.Module) -> int:
    """Bytes of the fused model, which is not packed."""
    width = max(value.dtype.size for value in flat(model.parameters()).values() if mx.issubdtype(value.dtype, mx.floating))
    return parameters(model) * width


def _by_part(weights: float, gradients: float, state: float, peak: float) -> dict[str, float]:
    known = {"weights": weights, "gradients": gradients, "optimizer": state}
    return {**known, "activations and work space": max(0.0, peak - sum(known.values()))}


def _series(log: list[Metrics], key: str) -> list[float]:
    return [metrics[key] for metrics in log if key in metrics]


def _file(identity: str) -> Path:
    return paths.runs() / "plans" / identity / "plan.json"
