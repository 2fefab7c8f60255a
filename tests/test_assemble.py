"""What has to fit together before a run is built, and durations turned into steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from forge.assemble import assemble, plan
from forge.config import Config
from forge.errors import ConfigError, ModelError
from forge.jobs import preflight
from forge.models import Loaded
from forge.spec import Data, Document


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
