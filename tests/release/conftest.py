"""A model of 60,000 weights that has learnt to answer in a word and to stop, with conversations and plain text; and a way to release it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.optimizers import Adam

from forge import data
from forge.arrays import flat
from forge.assemble import Parts
from forge.config import Config
from forge.data import templates
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.jobs import preflight
from forge.models import Loaded, scratch
from forge.models.adapters import full
from forge.release import Released, release
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import Conversation, Data, Document, Packing
from forge.tracking.run import run
from forge.training.checkpoint import State, Store
from forge.training.evaluate import evaluate
from forge.training.objectives import causal_lm

_ANIMALS = ("cat", "dog", "owl", "fox", "hen", "cow", "pig", "rat", "bee", "ant", "elk", "emu")
_SIZES = {"vocab_size": 300, "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp_size": 64}
_TEMPLATE = templates.named("simple")


def _talk() -> list[Conversation]:
    rows = []
    for n in range(96):
        animal = _ANIMALS[n % len(_ANIMALS)]
        turns = ({"role": "user", "content": f"{n // 12}: {animal}?"}, {"role": "assistant", "content": f"a {animal}"})
        rows.append(Conversation(f"talk/{n}", turns, "made up"))
    return rows


def _text() -> list[Document]:
    lines = [f"the {one} saw the {other}" for one in _ANIMALS for other in _ANIMALS]
    return [Document(f"text/{n}", ", ".join(lines[n : n + 3]), "made up") for n in range(0, len(lines), 3)]


@dataclass(frozen=True)
class Trained:
    """`make()` gives the model anew, without an adapter."""

    data: Data
    make: Callable[[], Loaded]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    def new() -> Loaded:
        words = lambda: iter([row.text for row in (*_talk(), *_text())])  # noqa: E731
        loaded = scratch.build(words, 0, lambda uri: (Path(uri), ""), **_SIZES, max_positions=128)
        loaded.tokenizer.chat_template = _TEMPLATE
        return loaded

    loaded = new()
    spec = DataSpec({"talk": SourceSpec({}), "text": SourceSpec({})}, sequence_length=64, valid_fraction=0.25, split_seed=0)
    cache = Cache(tmp_path_factory.mktemp("cache"), 1.0)
    corpus = data.read(spec, {"talk": _talk, "text": _text}, {}, cache)
    encoder = Encoder(loaded.tokenizer, _TEMPLATE, "assistant")
    built = data.build(corpus, spec, EvaluationSpec(max_tokens=2000), encoder, cache, batch_rows=4, seed=0, packing=Packing(True, "a test"))
    weights = _train(loaded.model, built, steps=120)

    def make() -> Loaded:
        loaded = new()
        loaded.model.load_weights(list(weights.items()))
        loaded.model.eval()
        return loaded

    return Trained(built, make)


def _train(model: nn.Module, built: Data, steps: int) -> dict[str, mx.array]:
    optimizer = Adam(learning_rate=5e-3)

    def loss(batch: Any) -> mx.array:
        total, (count, _) = causal_lm(model, batch)
        return total / count

    for _ in range(steps):
        batch = built.train.next()
        _, gradients = nn.value_and_grad(model, lambda batch=batch: loss(batch))()
        optimizer.update(model, gradients)
        mx.eval(model.parameters())
    built.train.cursor = 0
    return {name: mx.array(value) for name, value in flat(model.parameters()).items()}


@dataclass(frozen=True)
class Publish:
    """publish(loaded, adapter=full, base=None, **release settings) saves a checkpoint of `loaded` in a run of its own and releases it.

    `base`: the validation loss that the run's history says the base had, on the same tokens.
    """

    config: Config
    data: Data
    folder: Path

    def __call__(
        self, loaded: Loaded, adapter: Callable[[Any], None] = full, base: float | None = None, fused: bool = True, **settings: Any
    ) -> Released:
        adapter(loaded.model)
        spec = replace(self.config.release, **settings)
        config = replace(self.config, release=spec)
        with run(replace(config.tracking, experiment="release"), "i") as opened:
            store = Store(self.folder / opened.id, opened.id, {"data": self.data.ledger.digest})
            loss = evaluate(loaded.model, self.data).metrics["val/loss"]
            history = [] if base is None else [(0, {"val/loss": base}), (3, {"val/loss": loss})]
            saved = store.save(flat(loaded.model.trainable_parameters()), {}, State(step=3, loss=loss, history=history))
            return release(config, Parts(loaded, self.data), saved, opened.id, fused=fused)


@pytest.fixture
def publish(home: Path, tmp_path: Path, trained: Trained, request: pytest.FixtureRequest) -> Publish:
    (config,) = preflight(["+experiment=quickstart", f"release.name={request.node.name[:60]}", "tracking.dashboard=false"]).configs  # type: ignore[union-attr]
    small = replace(config.release, answers=4, answer_tokens=24, calibration_tokens=1024)
    return Publish(replace(config, release=small), trained.data, tmp_path)
