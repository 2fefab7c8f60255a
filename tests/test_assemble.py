"""What has to fit together before a run is built, and durations turned into steps."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from forge.assemble import assemble, plan, planned
from forge.config import Config
from forge.errors import ConfigError, DataError, ModelError
from forge.jobs import preflight
from forge.models import Loaded
from forge.spec import Data, Document


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))


def configured(*overrides: str) -> Config:
    found = preflight(["+experiment=quickstart", *overrides])
    assert found
    return found.configs[0]


def texts(source: str) -> list[Document]:
    return [Document(f"{source}{n}", f"{source}, text number {n} of a few", "made up") for n in range(20)]


def built(loader: Any, *overrides: str) -> Any:
    config = configured("data.sequence_length=32", *overrides)
    object.__setattr__(config, "sources", {name: partial(texts, name) for name in config.sources})
    object.__setattr__(config, "model", loader)
    return assemble(config, lambda uri: pytest.fail(uri))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(make_tiny_model: Callable[..., Loaded]) -> None:
    """MLX reads past the embedding without a word, and the loss is NaN or worse."""

    def loader(*_: Any) -> Loaded:
        loaded = make_tiny_model()
        loaded.model.model.embed_tokens.weight = loaded.model.model.embed_tokens.weight[:100]
        return loaded

    with pytest.raises(ModelError, match="the tokenizer's largest id is 287, but the model knows 100 tokens"):
        built(loader)


def test_a_row_longer_than_the_model_is_refused(make_tiny_model: Callable[..., Loaded]) -> None:
    with pytest.raises(ModelError, match=r"data\.sequence_length=257: the model has 256 positions; set it to 256 or less"):
        built(lambda *_: make_tiny_model(), "data.sequence_length=257")


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(ModelError, match=r"model\.heads=4 is no multiple of model\.kv_heads=3"):
        built(configured("model.kv_heads=3").model)


def test_durations_become_steps(toy_data: Data) -> None:
    """A budget of 20 steps: 10 % of it are 2; an epoch at 4 rows a step takes epoch_tokens / (4 · tokens_per_row) steps, rounded up."""
    settings = ["trainer.budget=20 steps", "trainer.eval_every=10%", "trainer.save_every=25%", "schedule.warmup=2 steps"]
    steps = plan(configured(*settings), toy_data, peak=0.5)
    assert (steps.total_steps, steps.eval_every, steps.save_every) == (20, 2, 5)
    assert [steps.lr(1), steps.lr(2)] == [0.25, 0.5]
    epoch = plan(configured("trainer.budget=1 epochs", "trainer.micro_batch=2", "trainer.accumulate=2"), toy_data, peak=0.5)
    assert epoch.total_steps == -(-toy_data.epoch_tokens // (4 * toy_data.tokens_per_row))


def test_a_warm_up_as_long_as_the_run_is_refused(toy_data: Data) -> None:
    with pytest.raises(ConfigError, match="20 warm-up and 0 cool-down steps leave none of the run's 20"):
        plan(configured("trainer.budget=20 steps", "schedule.warmup=20 steps"), toy_data, peak=0.5)


class Leaky(nn.Module):
    """Each position sees the mean of all before it, whatever it is told about documents."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(288, 8), []

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        return self.embedding.as_linear(mx.cumsum(self.embedding(tokens), axis=1))


def leaky(make_tiny_model: Callable[..., Loaded]) -> Callable[..., Loaded]:
    return lambda *_: dataclasses.replace(make_tiny_model(), model=Leaky(), config={"model_type": "leaky"})


@pytest.mark.parametrize(
    ("overrides", "packing"),
    [
        ([], "packed: qwen3 keeps packed documents apart"),
        (["data.packing=pack"], "packed: qwen3 keeps packed documents apart"),
        (["data.packing=bucket"], "bucketed by length: data.packing is bucket"),
    ],
)
def test_a_model_that_keeps_documents_apart_gets_packed_rows(make_tiny_model: Any, overrides: list[str], packing: str) -> None:
    data = built(lambda *_: make_tiny_model(), "data.sequence_length=80", *overrides).data
    assert data.ledger.packing == packing
    assert (data.train.next().segments_BT.max() > 1) == packing.startswith("packed")


def test_a_model_that_mixes_documents_gets_a_row_for_each(make_tiny_model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = built(leaky(make_tiny_model)).data
    assert data.train.next().segments_BT.max() == 1
    assert "rows are bucketed by length: leaky can't keep packed documents apart" in capsys.readouterr().out
    with pytest.raises(ModelError, match=r"data\.packing=pack: leaky can't keep packed documents apart; set data\.packing to auto"):
        built(leaky(make_tiny_model), "data.packing=pack")


def test_a_budget_beyond_the_cap_on_epochs_is_refused(make_tiny_model: Any) -> None:
    caps = [f"data.sources.{name}.max_epochs=2" for name in ("stdlib", "reference")]
    data = built(lambda *_: make_tiny_model(), *caps).data
    assert data.max_batches
    fitting = f"trainer.budget={data.max_batches} steps"
    account = planned(data, plan(configured(fitting), data, peak=0.5))
    assert all(0 < account.counts[f"data/{name}/epochs_planned"] <= 2 for name in ("stdlib", "reference"))
    assert data.train.cursor == 0
    with pytest.raises(DataError, match=rf"need {data.max_batches + 1} batches, and max_epochs leaves {data.max_batches}; raise"):
        plan(configured(f"trainer.budget={data.max_batches + 1} steps"), data, peak=0.5)


def test_rows_longer_than_a_window_that_mlx_lm_ignores_are_refused(make_tiny_model: Callable[..., Loaded]) -> None:
    """Mistral's layers see sliding_window positions; mlx-lm's see all, which would be another model."""

    def loader(*_: Any) -> Loaded:
        loaded = make_tiny_model()
        return dataclasses.replace(loaded, config={**loaded.config, "model_type": "mistral", "sliding_window": 16})

    with pytest.raises(ModelError, match=r"data\.sequence_length=32: its layers see 16 positions, .* set it to 16 or less"):
        built(loader)


def test_a_base_that_holds_nan_is_named_and_not_taken_for_one_that_mixes_documents(make_tiny_model: Callable[..., Loaded]) -> None:
    def loader(*_: Any) -> Loaded:
        loaded = make_tiny_model()
        loaded.model.model.norm.weight = loaded.model.model.norm.weight * float("nan")
        return loaded

    with pytest.raises(ModelError, match=r"the base gives no finite numbers: weight model\.norm\.weight holds NaN"):
        built(loader)
