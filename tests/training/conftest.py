"""A toy run: a Qwen3 shape of a few thousand parameters, made-up token sequences of two sources, no tokenizer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forge  # noqa: F401  (before mlx)
from forge.spec import Data, Ledger, Plan

VOCAB = 23
ROW = 17  # tokens; the model sees 16


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """make_model(adapter=None, seed=0): `adapter` changes the model, as forge.models.adapters do."""
    import mlx.core as mx
    from mlx_lm.models import qwen3

    def make(adapter: Callable[[Any], None] | None = None, seed: int = 0) -> Any:
        mx.random.seed(seed)
        model = qwen3.Model(
            qwen3.ModelArgs(
                model_type="qwen3",
                hidden_size=16,
                num_hidden_layers=2,
                intermediate_size=32,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                rms_norm_eps=1e-6,
                vocab_size=VOCAB,
                max_position_embeddings=64,
                rope_theta=10000.0,
                tie_word_embeddings=True,
            )
        )
        if adapter:
            adapter(model)
        mx.eval(model.parameters())
        return model

    return make


@pytest.fixture
def make_data(pack_rows: Callable[..., Any]) -> Callable[..., Data]:
    """make_data(rows=4): batches of `rows` packed rows from 60 long and 60 short sequences that count upwards: learnable."""
    from forge.data.mix import Mixture

    def sequences(count: int, shortest: int, longest: int, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [(rng.integers(VOCAB) + np.arange(rng.integers(shortest, longest))) % VOCAB for _ in range(count)]

    def make(rows: int = 4) -> Data:
        train = {name: sequences(60, *span, seed) for seed, (name, span) in enumerate({"long": (20, 60), "short": (3, 9)}.items())}
        held_out = {name: sequences(6, *span, 10 + seed) for seed, (name, span) in enumerate({"long": (20, 60), "short": (3, 9)}.items())}
        packed = {name: pack_rows(s, [f"{name}{i}" for i in range(len(s))], ROW, name=name) for name, s in train.items()}
        mixture = Mixture(packed, {"long": 3.0, "short": 1.0}, rows, seed=0)
        return Data(
            train=mixture,
            valid={name: tuple(_batches(pack_rows(s, [name] * len(s), ROW, name=name), 3)) for name, s in held_out.items()},
            ledger=Ledger({}, digest="d", valid_digest="v", source_digests={}),
            epoch_tokens=sum(int(p.targets.sum()) for p in packed.values()),
            tokens_per_row=mixture.tokens_per_row,
            unigram={"long": 3.0, "short": 3.0},
            valid_bytes={name: sum(len(x) for x in s) for name, s in held_out.items()},
        )

    return make


def _batches(rows: Any, size: int) -> Iterator[Any]:
    return (rows.batch(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size))


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    def make(**changes: Any) -> Plan:
        settings: dict[str, Any] = {
            "total_steps": 12,
            "eval_every": 4,
            "save_every": 4,
            "log_every": 1,
            "accumulate": 1,
            "clip_norm": 1.0,
            "seed": 0,
            "lr": lambda step: 1e-2,
        }
        return Plan(**(settings | changes))

    return make


class Log:
    """An emit that remembers."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def __call__(self, metrics: Any, step: int) -> None:
        self.points.append((step, dict(metrics)))

    def series(self, key: str) -> list[tuple[int, float]]:
        return [(step, metrics[key]) for step, metrics in self.points if key in metrics]


@pytest.fixture
def train(make_model: Any, make_data: Any, make_plan: Any, tmp_path: Path) -> Callable[..., Any]:
    """train(folder="run", model=…, rows=…, objective=…, callbacks=…, update={…}, **plan) -> (Result, Log, model)."""
    from forge.training.checkpoint import Store
    from forge.training.engine import fit
    from forge.training.objectives import causal_lm
    from forge.training.optim import adamw
    from forge.training.update import Update

    def factory() -> Any:
        return adamw(lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)

    def run(
        folder: str = "run",
        model: Any = None,
        rows: int = 4,
        objective: Any = causal_lm,
        callbacks: Any = None,
        stop: Any = lambda: None,
        keep: int = 0,
        resume: Path | None = None,
        update: dict[str, Any] | None = None,
        base: Any = lambda measured: None,
        **plan: Any,
    ) -> Any:
        model = model if model is not None else make_model()
        log = Log()
        rule = Update(model, factory, **(update or {}))
        store = Store(tmp_path / folder, "run", {"configuration": "c", "data": "d", "base model": "b"}, keep)
        told: dict[str, Any] = {"resume": resume, "stop": stop, "base": base}
        result = fit(model, make_data(rows), objective, rule, make_plan(**plan), callbacks or {}, store, log, **told)
        return result, log, model

    return run
