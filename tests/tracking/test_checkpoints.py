"""Checkpoints as MLflow logged models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge import paths
from forge.spec import Data
from forge.tracking import store, tries
from forge.tracking.run import Run, run

LOSSES = {0: 5.0, 5: 3.0, 10: 2.0, 15: 2.5}


def ranked(run_id: str) -> list[Any]:
    """The run's checkpoints, the lowest validation loss first, as MLflow ranks them."""
    client = store.connect(None)
    found = client.get_run(run_id).info.experiment_id
    order = [{"field_name": "metrics.val/loss", "ascending": True}]
    return list(client.search_logged_models([found], f"source_run_id = '{run_id}'", order_by=order))


def summary(run_id: str) -> list[tuple[str, str, dict[str, float]]]:
    return [(m.params["step"], str(m.status), {x.key: x.value for x in m.metrics}) for m in ranked(run_id)]


def losses(run_id: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in store.connect(None).get_metric_history(run_id, "val/loss")]


def evaluate(opened: Run, *steps: int, losses: dict[int, float] = LOSSES) -> None:
    for step in steps:
        opened.log({"val/loss": losses[step], "val/perplexity": float("inf"), "train/loss": 1.0}, step)


def at(*steps: int) -> dict[int, Path]:
    return {step: Path(f"/somewhere/step-{step:08d}") for step in steps}


def test_those_on_disk_are_ranked_by_their_loss_and_the_chosen_one_is_tagged(make_spec: Any) -> None:
    with run(make_spec(), "i") as opened:
        for kept in ((0,), (0, 5), (5, 10), (10, 15)):
            evaluate(opened, kept[-1])
            opened.checkpoints(at(*kept))
        opened.best(15)
        opened.best(10)
    assert summary(opened.id) == [("10", "READY", {"val/loss": 2.0}), ("15", "READY", {"val/loss": 2.5})]
    assert [m.tags["forge.checkpoint"] for m in ranked(opened.id)] == ["/somewhere/step-00000010", "/somewhere/step-00000015"]
    assert [m.tags["forge.best"] for m in ranked(opened.id)] == ["true", "false"]
    assert losses(opened.id) == list(LOSSES.items())  # the run has each once
    outputs = store.connect(None).get_run(opened.id).outputs.model_outputs
    assert sorted(output.step for output in outputs) == [0, 5, 10, 15]


def test_a_resumed_run_makes_none_twice_and_those_that_are_missing(make_spec: Any) -> None:
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "i") as first:
        evaluate(first, 0, 5, 10)
        first.checkpoints(at(0, 5))
        raise KeyboardInterrupt  # before the model of step 10 was made
    with run(make_spec(), "i", resume_id=first.id) as second:
        evaluate(second, 0, 5, 10, 15)  # the history once more
        second.checkpoints(at(5, 10, 15))
    assert [step for step, _, _ in summary(first.id)] == ["10", "15", "5"]
    assert losses(first.id) == list(LOSSES.items())


def test_another_checkpoint_of_a_step_takes_the_place_of_an_abandoned_one(make_spec: Any) -> None:
    with pytest.raises(KeyboardInterrupt), run(make_spec(), "i") as first:
        evaluate(first, 0, 5, 10)
        first.checkpoints(at(5, 10))
        raise KeyboardInterrupt
    with run(make_spec(), "i", resume_id=first.id) as second:  # from step 5 with another learning rate, say
        evaluate(second, 0, 5)
        evaluate(second, 10, losses={10: 1.5})
        second.checkpoints(at(5, 10))
    assert summary(first.id) == [("10", "READY", {"val/loss": 1.5}), ("5", "READY", {"val/loss": 3.0})]


@pytest.mark.parametrize("call", ["create_logged_model", "log_batch", "log_outputs", "finalize_logged_model", "delete_logged_model"])
def test_a_call_that_fails_is_made_again_and_nothing_twice(make_spec: Any, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(tries, "PAUSES_S", (0.0,))
    with run(make_spec(), "i") as opened:
        client = opened._checkpoints.client
        real, failed = getattr(client, call), []

        def once(*arguments: Any, **more: Any) -> Any:
            if not failed and (call != "log_batch" or any(m.model_id for m in more.get("metrics", []))):
                failed.append(True)
                raise ConnectionError("down")
            return real(*arguments, **more)

        monkeypatch.setattr(client, call, once)
        evaluate(opened, 0, 5)
        opened.checkpoints(at(0))
        opened.checkpoints(at(5))
    assert failed and summary(opened.id) == [("5", "READY", {"val/loss": 3.0})]
    assert losses(opened.id) == [(0, 5.0), (5, 3.0)]
    assert len(store.connect(None).get_run(opened.id).outputs.model_outputs) == 2
    assert "forge.lost_metrics" not in store.connect(None).get_run(opened.id).data.tags


def test_the_folder_of_a_model_holds_the_weights_of_its_loss(make_spec: Any, make_tiny_model: Callable[..., Any], toy_data: Data) -> None:
    from forge.spec import Plan
    from forge.training.checkpoint import Store, load_weights
    from forge.training.engine import fit
    from forge.training.evaluate import evaluate
    from forge.training.objectives import causal_lm
    from forge.training.optim import adamw
    from forge.training.update import Update

    model = make_tiny_model().model
    update = Update(model, lambda: adamw(lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1))
    plan = Plan(12, 3, 4, 1, 1, 1.0, 0, lambda step: 1e-2)
    with run(make_spec(), "i") as opened:
        saved = Store(paths.checkpoints(opened.id), opened.id, {}, keep=1)

        def watch(_: object) -> None:
            opened.checkpoints({one.step: one.path for one in saved.evaluated()})

        opened.best(fit(model, toy_data, causal_lm, update, plan, {}, saved, opened.log, watch=watch).best_step)
    found = ranked(opened.id)
    assert {m.params["step"] for m in found} == {str(one.step) for one in saved.evaluated()} and len(found) >= 2
    assert [m.tags["forge.best"] for m in found].count("true") == 1
    for logged in found:
        load_weights(model, Path(logged.tags["forge.checkpoint"]))
        given = {m.key: m.value for m in logged.metrics if "/forgetting/" not in m.key}  # that one is held against the base
        assert given == pytest.approx(evaluate(model, toy_data).metrics, rel=1e-6) and given["val/loss"] > 0
