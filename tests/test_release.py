"""What gets registered is what was evaluated, and the alias moves only to a better model on the same tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from forge.arrays import flat
from forge.assemble import Parts
from forge.errors import ReleaseError
from forge.jobs import preflight
from forge.models import Loaded
from forge.models.adapters import full, lora
from forge.release import Released, make, release
from forge.release.promote import LOSS, TOKENIZER_DIGEST, VALID_DIGEST
from forge.spec import Data, Scores
from forge.tracking import store
from forge.tracking.run import run
from forge.training.checkpoint import State, Store
from forge.training.evaluate import evaluate


@pytest.fixture
def publish(home: Path, tmp_path: Path, make_tiny_model: Callable[..., Loaded], request: Any) -> Callable[..., tuple[Released, float]]:
    """publish(data, spread, …) registers an untrained model under the test's own name; (what release says, its validation loss).

    The larger `spread` the worse: it scales the weights, and a confident untrained model is confidently wrong.
    """
    settings = [f"release.name={request.node.name}", "release.max_degenerate=1", "release.answer_tokens=16", "release.answers=2"]
    (config,) = preflight(["+experiment=quickstart", *settings]).configs  # type: ignore[union-attr]

    def go(data: Data, spread: float, adapter: Callable[[Any], None] = full) -> tuple[Released, float]:
        loaded = make_tiny_model()
        loaded.model.update(tree_map(lambda weight: weight * spread, loaded.model.parameters()))
        adapter(loaded.model)
        with run(replace(config.tracking, experiment="release"), "i") as opened:
            saved = Store(tmp_path / opened.id, opened.id, {}).save(flat(loaded.model.trainable_parameters()), {}, State(step=3, loss=1.0))
            loss = evaluate(loaded.model, data).metrics["val/loss"]
            return release(config, Parts(loaded, data), saved, opened.id), loss

    return go


def bearer(name: str, alias: str = "champion") -> str:
    return str(store.connect(None).get_model_version_by_alias(name, alias).version)


def test_the_alias_moves_to_the_better_and_stays_with_it(publish: Any, toy_data: Data, request: Any) -> None:
    name = request.node.name
    first, first_loss = publish(toy_data, spread=3.0)
    assert first.alias == "champion" and bearer(name) == "1"
    better, loss = publish(toy_data, spread=1.0)
    assert loss < first_loss and better.alias == "champion" and bearer(name) == "2"
    assert f"{loss:.4f} is below {first_loss:.4f} of version 1" in better.reason
    worse, _ = publish(toy_data, spread=2.0)
    assert worse.alias != "champion" and bearer(name) == "2" and bearer(name, "challenger") == "3"
    assert worse.sentence().startswith(f"models:/{name}/3 is now challenger: version 2 stays champion: ")
    equal, _ = publish(toy_data, spread=1.0)
    assert equal.alias != "champion" and bearer(name) == "2" and bearer(name, "challenger") == "4"
    tags = store.connect(None).get_model_version(name, "3").tags
    assert "version 2 stays champion" in tags["forge.decision"]


def test_on_other_validation_tokens_the_champion_is_measured_again(publish: Any, toy_data: Data, request: Any) -> None:
    """Version 1's own record, on easier text, must not keep a better model from the alias, nor a worse one let through."""
    name = request.node.name
    publish(toy_data, spread=1.0)
    client = store.connect(None)
    client.set_model_version_tag(name, "1", VALID_DIGEST, "other tokens")
    client.set_model_version_tag(name, "1", LOSS, "99.0")
    worse, _ = publish(toy_data, spread=3.0)
    assert worse.alias != "champion" and bearer(name) == "1"
    client.set_model_version_tag(name, "1", LOSS, "0.01")
    better, _ = publish(toy_data, spread=0.5)
    assert better.alias == "champion" and bearer(name) == "3"


def test_losses_under_another_tokenizer_are_not_compared(publish: Any, toy_data: Data, request: Any) -> None:
    name = request.node.name
    publish(toy_data, spread=3.0)
    client = store.connect(None)
    client.set_model_version_tag(name, "1", VALID_DIGEST, "other tokens")
    client.set_model_version_tag(name, "1", TOKENIZER_DIGEST, "another tokenizer")
    second, _ = publish(toy_data, spread=1.0)
    assert second.alias != "champion" and bearer(name) == "1"
    assert "its tokenizer is another one" in second.reason


def test_an_adapter_is_fused_and_says_the_same(publish: Any, toy_data: Data) -> None:
    def adapter(model: Any) -> None:
        lora(model, rank=2, alpha=4.0, dropout=0.5, targets="linear", layers=None)
        mx.random.seed(1)
        for block in model.layers:
            block.self_attn.q_proj.lora_b = mx.random.normal(block.self_attn.q_proj.lora_b.shape)

    released, _ = publish(toy_data, spread=1.0, adapter=adapter)
    assert released.max_logit_difference < 1e-5


def test_an_adapter_on_a_16_bit_base_is_released(publish: Any, toy_data: Data) -> None:
    """Fusing rounds to bf16: that is no other model. Its loss is compared all the same."""

    def adapter(model: Any) -> None:
        model.set_dtype(mx.bfloat16)
        lora(model, rank=2, alpha=4.0, dropout=0.0, targets="linear", layers=None)
        mx.random.seed(1)
        for block in model.layers:
            block.self_attn.q_proj.lora_b = 0.1 * mx.random.normal(block.self_attn.q_proj.lora_b.shape)

    released, _ = publish(toy_data, spread=1.0, adapter=adapter)
    assert 1e-3 < released.max_logit_difference < 0.1


def test_not_a_number_is_not_released(publish: Any, toy_data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "evaluate", lambda model, data: Scores({"val/loss": float("nan")}, ()))
    with pytest.raises(ReleaseError, match="validation loss nan"):
        publish(toy_data, spread=1.0)


def test_a_model_that_changed_on_its_way_is_refused_and_not_registered(
    publish: Any, toy_data: Data, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make.fuse.load

    def spoiled(folder: Path) -> Any:
        model, tokenizer = real(folder)
        model.model.norm.weight = model.model.norm.weight * 1.01
        return model, tokenizer

    monkeypatch.setattr(make.fuse, "load", spoiled)
    with pytest.raises(ReleaseError, match=r"the saved model is not the evaluated one: logits differ by .* nothing was registered"):
        publish(toy_data, spread=1.0)
    assert store.connect(None).search_model_versions(f"name='{request.node.name}'") == []
