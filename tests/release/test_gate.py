"""What the gate refuses, and with which reason: planted faults in real models, and limits to the digit in made-up measurements."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge.arrays import flat
from forge.assemble import Parts
from forge.errors import ReleaseError
from forge.evaluation.answers import Answer
from forge.models import Loaded
from forge.models.adapters import full, lora
from forge.models.quantise import quantise
from forge.release import Released, gate, make, promote, release
from forge.release.divergence import Divergence
from forge.release.gate import Measured, Written, judge
from forge.settings import ReleaseSpec
from forge.tracking import registry, store
from forge.tracking.run import run
from forge.training.checkpoint import State, Store
from forge.training.evaluate import evaluate
from forge.training.formulation import on_cpu
from tests.release.conftest import Publish, Trained

_LIMITS = {"max_kl": 0.25, "min_agreement": 0.75, "max_loss_rise": 0.125, "max_regression": 0.0625}  # exact in floating point
SPEC = ReleaseSpec(enabled=True, name="a", alias="champion", max_logit_difference=1e-3, **_LIMITS)
FINE = Measured({"val/loss": 2.0}, Divergence(0.0, 1.0, 0.0, 9.0, True, 100), 10_000_000, 32.0, Written(8, 0, "", 4, 4))
SMALL = replace(FINE, bytes=2_000_000, against=replace(FINE.against, kl=0.25, agreement=0.75), scores={"val/loss": 2.125}, bits=4.5)


def changed(measured: Measured, **values: Any) -> Measured:
    against = {key: values.pop(key) for key in ("kl", "agreement", "finite") if key in values}
    scores = {"val/loss": values.pop("loss")} if "loss" in values else measured.scores
    return replace(measured, **values, scores=scores, against=replace(measured.against, **against))


def test_at_its_limits_a_model_passes() -> None:
    base = {"val/loss": 1.9375}
    assert judge(SPEC, FINE, base).passed
    assert judge(SPEC, FINE, base, SMALL).passed
    assert judge(replace(SPEC, max_size_gb=0.01), replace(FINE, written=Written(8, 4, "aaa", 4, 2)), base).passed


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"kl": 0.26}, "KL from the fused model 0.2600 nats a token (release.max_kl=0.25)"),
        ({"kl": math.nan}, "KL from the fused model nan nats a token (release.max_kl=0.25)"),
        ({"agreement": 0.74}, "the likeliest token is the fused model's at 74.0% of places (release.min_agreement=0.75)"),
        ({"loss": 2.126}, "validation loss 2.1260 is +0.1260 from the fused model's (release.max_loss_rise=0.125)"),
        ({"bytes": 10_000_000}, "it takes 10.0 MB, and the fused model 10.0 MB"),
        ({"finite": False}, "logits at 100 held-out tokens are not all finite"),
        (
            {"written": Written(8, 5, "aa", 4, 4)},
            "5 of 8 texts that it wrote are empty or one token for ever, such as 'aa' (release.max_degenerate=0.5)",
        ),
        ({"written": Written(8, 0, "", 5, 2)}, "2 of 5 answers ended by themselves within 128 tokens (release.min_ended=0.5)"),
    ],
)
def test_behind_a_limit_it_is_refused_for_that_reason(values: dict[str, Any], reason: str) -> None:
    assert judge(SPEC, FINE, None, changed(SMALL, **values)).reason == reason


def test_a_model_that_is_too_large_is_refused() -> None:
    reason = "it takes 0.010 GB on disk (release.max_size_gb=0.009)"
    assert judge(replace(SPEC, max_size_gb=0.009), FINE, None).reason == reason


def test_a_quantised_model_of_a_worse_one_than_the_base_is_refused_too() -> None:
    reason = "the tuned model's validation loss 2.0000 is 0.0700 above the base's 1.9300 (release.max_regression=0.0625)"
    for quantised in (None, SMALL):
        assert judge(SPEC, FINE, {"val/loss": 1.93}, quantised).reason == reason


def test_what_cannot_be_asked_is_said_and_not_held_against_it() -> None:
    verdict = judge(SPEC, replace(FINE, written=Written(0, 0, "", 0, 0)), None)
    assert verdict.passed
    assert {check.name for check in verdict.checks if check.passed is None} == {"no regression", "generation", "end of turn"}


@pytest.mark.parametrize(
    ("tokens", "text", "ended", "degenerate"),
    [
        ([5] * 16, "aaa", False, True),
        ([1, 2, 3, 4, 6, 7, 8, 9] + [5] * 8, "… aaa", False, True),
        ([1, 2, 3, 4, 6, 7, 8, 9, 1] + [5] * 7, "…", False, False),  # its second half begins with another one
        ([1, 2] * 8, "abab", False, False),
        ([5] * 16, "aaa", True, False),  # it ends: somebody may have asked for that
        ([5] * 15, "aaa", False, False),
        ([], "", True, True),
        ([3, 3], " \n", True, True),
        ([7], "yes", True, False),
    ],
)
def test_empty_and_one_token_for_ever(
    tokens: list[int], text: str, ended: bool, degenerate: bool, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "answers", lambda *_: [])
    monkeypatch.setattr(gate, "continuations", lambda *_: [Answer("s", "p", "r", text, tuple(tokens), ended)])
    found = gate.write(trained.make(), trained.data, SPEC)
    assert (found.texts, found.degenerate) == (1, int(degenerate))


def test_only_answers_that_could_have_ended_are_asked_to(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference of 9 tokens against half of 16 is too long to be held against anyone."""
    loaded = trained.make()
    long, short = "the cat saw the dog and the owl", "a cat"
    assert len(loaded.tokenizer.encode(long, add_special_tokens=False)) > 8
    made = [Answer("s", "p", reference, "x", (1,), False) for reference in (long, short)]
    monkeypatch.setattr(gate, "answers", lambda *_: made)
    monkeypatch.setattr(gate, "continuations", lambda *_: [])
    found = gate.write(loaded, trained.data, replace(SPEC, answer_tokens=16))
    assert (found.asked, found.ended) == (1, 0)


def test_what_a_source_of_weight_0_holds_is_not_asked(trained: Trained) -> None:
    """A base that is trained on text alone, with conversations beside it to be measured, need not end any answer."""
    loaded = trained.make()
    whole = gate.write(loaded, trained.data, SPEC)
    text = gate.write(loaded, replace(trained.data, unweighted=frozenset({"talk"})), SPEC)
    assert whole.asked > 0 and text.asked == 0 and 0 < text.texts < whole.texts


# ---- planted ----------------------------------------------------------------------------------------------------------


def require_refused(released: Released, reason: str) -> None:
    """One version, without an alias, that says why; and nothing else said."""
    client = store.connect(None)
    version = client.get_model_version(released.version.name, released.version.number)
    assert (released.refused, released.alias) == (True, None)
    assert version.aliases == [] and client.get_registered_model(released.version.name).aliases == {}
    assert version.tags["forge.gate"] == "refused" and reason in version.tags["forge.gate_reason"]
    assert released.reason == version.tags["forge.gate_reason"] == version.tags["forge.decision"]
    assert released.sentence().startswith(f"{released.version.uri} is refused by the gate and registered without alias: ")


def test_a_healthy_model_passes_and_so_does_its_8_bit_one(publish: Publish, trained: Trained) -> None:
    released = publish(trained.make(), base=5.0, quantise=["8bit-g32"])
    (packed,) = released.others
    assert released.alias == "champion" and packed.alias == "champion"
    assert packed.version.name == f"{released.version.name}-8bit-g32"
    tags = store.connect(None).get_model_version(packed.version.name, packed.version.number).tags
    assert tags["forge.gate"] == "passed" and tags["forge.quantisation"] == "8bit-g32"
    assert 8 < float(tags["forge.bits_per_weight"]) < 11 and float(tags["forge.kl"]) < 0.01


def test_a_bad_quantisation_is_refused_and_the_fused_model_is_not(
    publish: Publish, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make.recipes.quantise

    def bad(*given: Any) -> Loaded:
        made = real(*given)
        for layer in made.model.layers:
            layer.mlp.down_proj.scales = layer.mlp.down_proj.scales * 4
        return made

    monkeypatch.setattr(make.recipes, "quantise", bad)
    released = publish(trained.make(), base=5.0, quantise=["8bit-g32"])
    assert released.alias == "champion" and not released.refused
    require_refused(released.others[0], "KL from the fused model ")


def test_a_regression_is_refused(publish: Publish, trained: Trained) -> None:
    released = publish(trained.make(), base=0.5)
    require_refused(released, "above the base's 0.5000 (release.max_regression=0.01)")


def silence(model: Any) -> None:
    """The end token's row of the tied table at 0: its logit is 0 then, below others'."""
    table = model.model.embed_tokens
    table.weight = mx.concatenate([mx.zeros((1, 64)), table.weight[1:]])


def never_stops(loaded: Loaded) -> Loaded:
    silence(loaded.model)
    return loaded


def test_a_model_that_never_stops_is_refused(publish: Publish, trained: Trained) -> None:
    require_refused(publish(never_stops(trained.make())), "0 of 4 answers ended by themselves within 24 tokens (release.min_ended=0.5)")


def test_a_model_of_one_token_is_refused(publish: Publish, trained: Trained) -> None:
    loaded = trained.make()
    loaded.model.model.norm.weight = mx.zeros(64)  # all logits 0: the first token it is
    never_stops(loaded)
    reason = publish(loaded).reason
    assert "8 of 8 texts that it wrote are empty or one token for ever" in reason


def test_the_same_limits_moved_let_it_pass(publish: Publish, trained: Trained) -> None:
    released = publish(never_stops(trained.make()), base=0.1, min_ended=0.0, max_regression=100.0)
    assert released.alias == "champion"


def test_an_adapter_that_passes_changes_no_answer(publish: Publish, trained: Trained) -> None:
    def adapter(model: Any) -> None:
        lora(model, rank=2, alpha=4.0, dropout=0.5, targets="linear", layers=None)
        for block in model.layers:
            block.self_attn.q_proj.lora_b = 0.1 * mx.array(np.random.RandomState(0).normal(size=block.self_attn.q_proj.lora_b.shape))

    released = publish(trained.make(), adapter)
    assert released.alias == "champion" and released.max_logit_difference < 1e-4


def test_logits_that_moved_are_seen_where_the_loss_does_not_show_it(
    publish: Publish, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make.fuse.load

    def warmer(folder: Path) -> Any:
        model, tokenizer = real(folder)
        model.model.norm.weight = model.model.norm.weight * 1.0004
        return model, tokenizer

    monkeypatch.setattr(make.fuse, "load", warmer)
    with pytest.raises(ReleaseError, match=r"logits differ by 0\.00\d+ \(limit 0\.001\)"):
        publish(trained.make())


def test_the_run_keeps_the_table_and_each_versions_checks(publish: Publish, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    released = publish(trained.make(), base=5.0, quantise=["8bit-g32"])
    client, (packed,) = store.connect(None), released.others
    run_id = client.get_model_version(packed.version.name, packed.version.number).run_id
    place = f"release/{released.version.name}-{released.version.number}"
    table = json.loads(Path(client.download_artifacts(run_id, f"{place}/table.json")).read_text())
    assert [row[0] for row in table["data"]] == ["base", "checkpoint", "fused", "8bit-g32"]
    checks = json.loads(Path(client.download_artifacts(run_id, f"{place}/gate.json")).read_text())
    assert set(checks) == {released.version.uri, packed.version.uri}
    told = capsys.readouterr().out
    assert "8bit-g32" in told and "passed" in told and "validation loss" in told


def test_a_quantised_model_of_a_quantised_base_says_how_it_is_quantised_itself(publish: Publish, trained: Trained) -> None:
    """Readers of the folder would take what its base says for the bits of all layers that are not named."""

    def adapter(model: Any) -> None:
        lora(model, rank=2, alpha=4.0, dropout=0.0, targets="linear", layers=None)

    loaded = trained.make()
    base = replace(loaded, config=quantise(loaded.model, loaded.config, {"bits": 8, "group_size": 32}))
    released = publish(base, adapter, fused=False, quantise=["4bit-g32"], max_loss_rise=9, max_kl=9, min_agreement=0)
    folder, _ = registry.fetch(None, released.version.uri)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == {"group_size": 32, "bits": 4, "mode": "affine"}


def test_a_quantised_champion_is_measured_as_its_rival_was(publish: Publish, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its weights unpacked on a CPU: MLX's own product with packed ones takes 75 times as long, under the lock of the aliases."""
    settings: dict[str, Any] = {"fused": False, "quantise": ["8bit-g32"]}
    first = publish(trained.make(), **settings)
    store.connect(None).set_model_version_tag(first.version.name, first.version.number, promote.VALID_DIGEST, "other tokens")
    seen: list[bool] = []

    def evaluated(model: Any, data: Any) -> Any:
        seen.append(any(type(module) is nn.QuantizedLinear for module in model.modules()))
        return evaluate(model, data)

    monkeypatch.setattr(promote, "evaluate", evaluated)
    publish(trained.make(), **settings)
    assert seen == [not on_cpu()]


def test_a_release_that_was_cut_short_registers_nothing_twice(publish: Publish, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the aliases moved, and again just behind that."""
    config, loaded = publish.config, trained.make()
    full(loaded.model)
    with run(replace(config.tracking, experiment="release"), "i") as opened:
        place = Store(publish.folder / opened.id, opened.id, {"data": publish.data.ledger.digest})
        saved = place.save(flat(loaded.model.trainable_parameters()), {}, State(step=3, loss=1.0))

        def go(**settings: Any) -> Released:
            anew = trained.make()
            full(anew.model)
            return release(config, Parts(anew, publish.data), saved, opened.id, **settings)

        for killed in ("decide", "tag"):
            with monkeypatch.context() as patch:
                patch.setattr(promote if killed == "decide" else registry, killed, _killed)
                with pytest.raises(KeyboardInterrupt):
                    go()
        found = go()
        assert (found.version.number, found.alias) == ("1", "champion")
        assert len(store.connect(None).search_model_versions(f"name = '{config.release.name}'")) == 1
        assert go(anew=True).version.number == "2"  # as it is typed


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt
