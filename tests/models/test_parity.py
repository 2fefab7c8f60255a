"""Training here equals training with transformers and peft in torch, fp32: every loss and gradient within 1e-4, twenty AdamW steps deep.

The numbers in parity/*.json come from scripts/parity_reference.py, where each document ran alone. Here a Hugging Face folder with the same
weights is loaded, and forge's loop goes over the documents as it packs them.
"""

import json
import runpy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from forge.arrays import flat
from forge.models import Loaded, adapters, loaders
from forge.spec import Batch, Data, Ledger, Metrics, Plan
from forge.training.checkpoint import Store
from forge.training.engine import fit
from forge.training.gradients import Gradients
from forge.training.objectives import causal_lm
from forge.training.optim import adamw
from forge.training.update import Update

FOLDER = Path(__file__).parent / "parity"
cases = SimpleNamespace(**runpy.run_path(str(FOLDER / "cases.py")))
TOLERANCE = 1e-4
OBJECTIVE = partial(causal_lm, chunk=16)  # of the targets of a batch, so that there are several


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU where CUDA's products would be in TF32, 1e-3 apart. Attention there goes in several blocks even for rows so short."""
    monkeypatch.setattr("forge.training.attention._BLOCK", 8)
    before = mx.default_device()
    if mx.cuda.is_available():
        mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="module")
def tokenizer(make_tiny_model: Callable[..., Loaded]) -> Any:
    return make_tiny_model().tokenizer  # loaders want one in the folder; nothing here is text


@pytest.fixture(params=cases.CONFIGS)
def shape(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["full", "lora"])
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reference(shape: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{shape}.json").read_text())


@pytest.fixture
def model(shape: str, mode: str, reference: dict[str, Any], tokenizer: Any, tmp_path: Path) -> nn.Module:
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(cases.CONFIGS[shape]))
    weights = cases.weights(reference["shapes"])
    mx.save_safetensors(str(folder / "model.safetensors"), {name: mx.array(value) for name, value in weights.items()}, {"format": "pt"})
    model = loaders.local(lambda: iter(()), 0, lambda uri: (Path(uri), ""), path=str(folder)).model
    if mode == "full":
        adapters.full(model)
        return model
    adapters.lora(model, rank=cases.RANK, alpha=cases.ALPHA, dropout=0.0, targets="linear", layers=None)
    initial = cases.lora(reference["modules"])
    values = {forge_name(name, shape): mx.array(value.T) for name, value in initial.items()}  # mlx-lm multiplies from the right
    assert set(flat(model.trainable_parameters())) == set(values), "the layers that peft adapts, and no others"
    model.load_weights(list(values.items()), strict=False)
    return model


def forge_name(name: str, shape: str) -> str:
    return f"model.{name}" if shape == "gpt2" else name


def as_in_the_file(name: str, value: np.ndarray, shape: str) -> np.ndarray:
    """LoRA's factors are (rank, inputs) and (outputs, rank) in peft; GPT-2's file holds linear layers as (inputs, outputs)."""
    conv1d = shape == "gpt2" and name.startswith("h.") and value.ndim == 2
    return value.T if ".lora_" in name or conv1d else value


def batch(number: int) -> Batch:
    rows = cases.batches()[number]
    return Batch(rows.tokens, rows.mask, rows.segments, ("row",) * len(rows.tokens), ("all",) * len(rows.tokens))


class InOrder:
    """One stored batch a step."""

    cursor = 0

    def next(self) -> Batch:
        self.cursor += 1
        return batch(self.cursor - 1)

    def epochs(self, cursor: int) -> dict[str, float]:
        return {}


def train(model: nn.Module, folder: Path) -> list[dict[str, float]]:
    """The metrics of each step."""
    chosen = cases.OPTIMIZER
    valid = {"all": (batch(0),)}
    data = Data(InOrder(), valid, Ledger({}, "d", "v", {}), epoch_tokens=1000, tokens_per_row=20.0, unigram={}, valid_bytes={"all": 1})
    never = 10**6
    plan = Plan(cases.STEPS, never, never, log_every=1, accumulate=1, clip_norm=1e9, seed=0, lr=lambda step: chosen["lr"])
    steps: dict[int, dict[str, float]] = {}

    def emit(metrics: Metrics, step: int) -> None:
        steps[step] = dict(metrics)

    update = Update(model, partial(adamw, **chosen))
    fit(model, data, OBJECTIVE, update, plan, {}, Store(folder, "run", {}), emit)
    return [steps[step] for step in range(1, cases.STEPS + 1)]


def gradients(model: nn.Module) -> dict[str, np.ndarray]:
    """Of the mean loss of the first batch, by name."""
    _, count, _, gradient = Gradients(model, OBJECTIVE)(batch(0))
    return {name: np.array(value) for name, value in flat(tree_map(lambda g: g / count, gradient)).items()}


def require_equal(found: dict[str, np.ndarray], expected: dict[str, list[float]], shape: str) -> None:
    """Each tensor's norm and its product with noise, relative to the norm."""
    floor = 1e-6 * sum(norm**2 for norm, _ in expected.values()) ** 0.5  # what should be 0 is rounding on both sides
    assert set(found) == {forge_name(name, shape) for name in expected}
    for name, (norm, product) in expected.items():
        value = as_in_the_file(name, found[forge_name(name, shape)], shape)
        close = partial(pytest.approx, rel=0, abs=TOLERANCE * norm + floor)
        assert cases.fingerprint(name, value) == [close(norm), close(product)], name


def test_losses_and_gradients_are_those_of_transformers(
    shape: str, mode: str, model: nn.Module, reference: dict[str, Any], tmp_path: Path
) -> None:
    expected = reference[mode]
    require_equal(gradients(model), expected["before"], shape)
    steps = train(model, tmp_path / "run")
    assert [step["train/loss"] for step in steps] == pytest.approx(expected["losses"], rel=TOLERANCE)
    assert [step["train/grad_norm"] for step in steps] == pytest.approx(expected["norms"], rel=TOLERANCE)
    require_equal(gradients(model), expected["after"], shape)
