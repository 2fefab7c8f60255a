"""What the self-test trains: conversations that are made up, and a model of some 50,000 random weights that learns them in a second.

They go the way of a real run: forge.data reads, tokenises and packs them into a cache, forge.training.engine trains and saves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge import data
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.templates import named
from forge.models import Loaded, adapters, cast, scratch
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import Batch, Conversation, Data, Metrics, Packing, Plan, Result
from forge.training.checkpoint import Store
from forge.training.engine import fit
from forge.training.formulation import on_cpu
from forge.training.objectives import causal_lm
from forge.training.optim import adamw
from forge.training.update import Update

ROW = 64  # positions
_ROWS = 4
_COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "pink")
_THINGS = ("hat", "door", "boat", "stone", "leaf", "lamp", "coat", "cup")
_SIZES = {"vocab_size": 320, "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "mlp_size": 128}


@dataclass(frozen=True)
class Toy:
    """`folder`: where it may write. `seed` makes another model of the same tokenizer."""

    folder: Path
    data: Data
    encoder: Encoder

    def model(self, seed: int = 0) -> Loaded:
        loaded = _model(seed)
        cast(loaded.model, mx.float32)
        return loaded

    def batch(self, width: int = ROW) -> Batch:
        self.data.train.cursor = 0
        return self.data.train.next().take(range(_ROWS), width + 1)


def make(folder: Path) -> Toy:
    encoder = Encoder(_model(0).tokenizer, named("simple"), "assistant")
    sources = {"toy": SourceSpec({}, over_length="truncate_right")}
    spec = DataSpec(sources, sequence_length=ROW, valid_fraction=0.25, split_seed=0)
    cache = Cache(folder / "cache", 1.0)
    corpus = data.read(spec, {"toy": conversations}, {}, cache)
    packing = Packing(True, "the self-test")
    return Toy(folder, data.build(corpus, spec, EvaluationSpec(max_tokens=2000), encoder, cache, _ROWS, 0, packing), encoder)


def conversations() -> list[Conversation]:
    """What colour each thing has."""
    pairs = [(colour, thing) for colour in _COLOURS for thing in _THINGS]
    said = [(f"Say {thing}, {colour}.", f"The {thing} is {colour}.") for colour, thing in pairs]
    turns = [({"role": "user", "content": question}, {"role": "assistant", "content": answer}) for question, answer in said]
    return [Conversation(f"toy/{number}", each, "made up") for number, each in enumerate(turns)]


def lora(model: nn.Module, dropout: float = 0.0) -> None:
    adapters.lora(model, rank=4, alpha=8.0, dropout=dropout, targets="linear", layers=None)


def train(
    toy: Toy, model: nn.Module, name: str, steps: int, *, lr: float = 1e-2, same: bool = False, stop: Callable[[], str | None] | None = None
) -> tuple[Result, list[float]]:
    """The engine's result, and the loss of each step. `same`: on one batch only. Goes on where a run called `name` was before."""
    losses: dict[int, float] = {}

    def emit(metrics: Metrics, step: int) -> None:
        if "train/loss" in metrics:
            losses[step] = metrics["train/loss"]

    def optimizer() -> Any:
        return adamw(lr=lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.0)

    plan = Plan(steps, eval_every=steps, save_every=2, log_every=1, accumulate=1, clip_norm=1.0, seed=0, lr=lambda step: lr)
    rows = replace(toy.data, train=_Same(toy.batch())) if same else toy.data
    rows.train.cursor = 0
    store = Store(toy.folder / name, name, {"self-test": "1"})
    result = fit(model, rows, causal_lm, Update(model, optimizer), plan, {}, store, emit, stop=stop or (lambda: None))
    return result, [losses[step] for step in sorted(losses)]


def difference(one: mx.array, other: mx.array) -> float:
    """The largest between two arrays, as a share of the first's largest value. NaN where one holds any."""
    a, b = np.array(one.astype(mx.float32)), np.array(other.astype(mx.float32))
    return float(np.abs(a - b).max() / np.abs(a).max())


def close() -> float:
    """How far logits may differ that are computed in two ways in fp32: CUDA's products round to the 10 bits of TF32."""
    return 1e-4 if on_cpu() else 5e-3


class _Same:
    """An endless sequence of one batch."""

    def __init__(self, batch: Batch):
        self.cursor, self._batch = 0, batch

    def next(self) -> Batch:
        self.cursor += 1
        return self._batch

    def epochs(self, cursor: int) -> Mapping[str, float]:
        return {}


def _model(seed: int) -> Loaded:
    def unused(uri: str) -> tuple[Path, str]:
        raise AssertionError(f"a model from scratch fetches nothing: {uri}")

    return scratch.build(lambda: (row.text for row in conversations()), seed, unused, **_SIZES, max_positions=128)
