import math
import re
import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from forge.errors import TrainingError
from forge.models.adapters import full, lora
from forge.training import engine
from forge.training.callbacks import EarlyStopping
from forge.training.engine import time_left
from forge.training.evaluate import Full, evaluate
from forge.training.objectives import causal_lm


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in tree_flatten(model.parameters())}


def test_training_lowers_the_validation_loss(train: Any) -> None:
    result, log, _ = train(total_steps=40, eval_every=10)
    losses = [loss for _, loss in log.series("val/loss")]
    assert losses[-1] < losses[0] - 1.0
    assert (result.step, result.reason) == (40, "the budget is used up")


def test_four_micro_batches_equal_one_batch(train: Any) -> None:
    """The tokens are the same; only the number of passes they take differs."""
    _, one, model_one = train("one", rows=8, accumulate=1, total_steps=6)
    _, four, model_four = train("four", rows=2, accumulate=4, total_steps=6)
    for key in ("train/loss", "train/grad_norm", "train/tokens"):
        assert [v for _, v in one.series(key)] == pytest.approx([v for _, v in four.series(key)], rel=1e-5)
    for name, value in weights(model_one).items():
        np.testing.assert_allclose(value, weights(model_four)[name], rtol=1e-4, atol=1e-5)


def test_the_logged_loss_is_the_mean_over_targets(train: Any, make_data: Any, make_model: Any) -> None:
    _, log, _ = train(total_steps=1)
    batch = make_data(4).train.next()
    loss_sum, (count, _) = causal_lm(make_model(), batch)
    assert log.series("train/loss") == [(1, pytest.approx(loss_sum.item() / batch.mask_BT[:, 1:].sum(), rel=1e-6))]
    assert log.series("train/tokens") == [(1, count.item())]


def test_the_gradient_is_clipped_to_the_limit_and_its_norm_is_the_one_before() -> None:
    from forge.training.gradients import normalise

    gradients = {"a": mx.array([3.0, 0.0]), "b": {"c": mx.array([[0.0, 4.0]])}}  # norm 5 summed over 2 targets: 2.5
    clipped, norm = normalise(gradients, mx.array(2), clip_norm=0.5)
    assert norm.item() == pytest.approx(2.5)
    assert np.array(clipped["a"]) == pytest.approx([0.3, 0.0], rel=1e-4)
    assert np.array(clipped["b"]["c"][0]) == pytest.approx([0.0, 0.4], rel=1e-4)
    kept, _ = normalise(gradients, mx.array(2), clip_norm=10.0)
    assert np.array(kept["a"]) == pytest.approx([1.5, 0.0])


def test_sums_and_means_of_sixteen_bit_gradients_are_taken_in_fp32() -> None:
    """600 times 1 is 600, where bf16 stops at 256; 2^-10 over 2^16 targets is 2^-26, below the least number of fp16, 2^-24."""
    from forge.training.gradients import accumulate, normalise

    def one(batch: Any) -> Any:
        return mx.array(0.0), mx.array(1), {}, {"w": mx.array([1.0], dtype=mx.bfloat16)}

    assert accumulate(one, [None] * 600)[3]["w"].item() == 600  # type: ignore[list-item]
    mean, _ = normalise({"w": mx.array([2.0**-10], dtype=mx.float16)}, mx.array(2**16), clip_norm=1.0)
    assert mean["w"].item() == 2.0**-26


def test_the_learning_rate_follows_the_plan(train: Any) -> None:
    _, log, _ = train(total_steps=5, lr=lambda step: step / 1000)
    assert log.series("train/lr") == [(step, step / 1000) for step in range(1, 6)]


@pytest.mark.parametrize("log_every", [1, 4])
def test_shares_and_speeds_are_those_of_the_batches(train: Any, make_data: Any, log_every: int) -> None:
    """The tokens are counted from the same batches, fetched once more: targets by source since step 1, and what is no padding."""
    _, log, _ = train(total_steps=8, accumulate=2, log_every=log_every)
    data, targets = make_data(4), {"long": 0, "short": 0}
    for step in range(1, 9):
        batches = [data.train.next() for _ in range(2)]
        for batch in batches:
            for name, mask in zip(batch.row_ids, batch.mask_BT, strict=True):
                targets["long" if name.startswith("long") else "short"] += int(mask.sum())
        if step % log_every:
            continue
        metrics = next(metrics for number, metrics in log.points if number == step)
        total = sum(targets.values())
        assert metrics["train/tokens"] == total
        assert {name: metrics[f"train/share/{name}"] for name in targets} == {name: count / total for name, count in targets.items()}
        tokens = sum(int((batch.segments_BT > 0).sum()) for batch in batches)
        assert metrics["perf/tokens_per_s"] * metrics["perf/step_s"] == pytest.approx(tokens)
        assert metrics["perf/targets_per_s"] * metrics["perf/step_s"] == pytest.approx(sum(int(batch.mask_BT.sum()) for batch in batches))
        assert metrics["perf/fill_share"] == pytest.approx(tokens / (8 * 17))  # two batches of four rows
    assert min(share for _, share in log.series("perf/fill_share")) < 1


def test_log_every_thins_the_training_metrics_and_nothing_else(train: Any) -> None:
    _, every, _ = train("every", total_steps=12)
    _, third, _ = train("third", total_steps=12, log_every=3)
    assert third.series("train/loss") == [point for point in every.series("train/loss") if point[0] % 3 == 0]
    assert third.series("val/loss") == every.series("val/loss")


def test_a_checkpoint_holds_the_weights_that_were_evaluated(train: Any, make_model: Any, make_data: Any, tmp_path: Any) -> None:
    """mlx-lm's validation at iteration N is of the weights before step N, while the file N is saved after it."""
    from forge.training.checkpoint import load_weights

    result, log, _ = train(total_steps=8)
    model = make_model(seed=5)
    load_weights(model, tmp_path / "run" / f"step-{result.best_step:08d}")
    assert evaluate(model, make_data()).metrics["val/loss"] == dict(log.series("val/loss"))[result.best_step] == result.best_loss


def test_the_best_step_is_that_of_the_lowest_saved_loss(train: Any) -> None:
    result, log, _ = train(total_steps=24, eval_every=3, lr=lambda step: 0.01 if step < 12 else 0.5)  # it falls apart half-way
    losses = log.series("val/loss")
    assert (result.best_step, result.best_loss) == min(losses, key=lambda point: point[1])
    assert result.best_step < 24


def test_not_finite_stops_with_step_rows_tensor_and_the_last_good_checkpoint(train: Any, make_data: Any, tmp_path: Any) -> None:
    data = make_data()
    sixth = [data.train.next() for _ in range(6)][-1].row_ids

    def breaks(model: Any, batch: Any) -> Any:
        loss_sum, rest = causal_lm(model, batch)
        return loss_sum * (math.nan if set(batch.row_ids) & set(sixth) else 1.0), rest

    rows, last = re.escape(" | ".join(sixth)), "step-00000004"
    with pytest.raises(TrainingError, match=rf"step 6: train/loss is nan; rows: {rows}; gradient model\.\S+ holds NaN.*{last}\.") as error:
        train(objective=breaks, total_steps=12)
    assert "optimizer.lr" in str(error.value)
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == [last]


def test_a_validation_loss_that_is_not_finite_stops_before_the_save(train: Any, make_model: Any, tmp_path: Any) -> None:
    broken = make_model()
    broken.model.norm.weight = broken.model.norm.weight * math.nan
    what = "step 0: val/loss is nan; all validation text; weight model.norm.weight holds NaN"
    with pytest.raises(TrainingError, match=rf"{what}.*the last good checkpoint is none yet"):
        train("broken", model=broken)
    assert not (tmp_path / "broken").exists()


def test_early_stopping_ends_the_run_with_its_reason(train: Any) -> None:
    result, log, _ = train(
        total_steps=100, eval_every=2, lr=lambda step: 1e-12, callbacks={"early": EarlyStopping(patience=3, min_delta=0.01)}
    )
    assert result.step == 6  # evaluations at 0 (sets the mark), 2, 4, 6
    assert result.reason.startswith("early stopping: 3 evaluations")
    assert len(log.series("val/loss")) == 4


def test_a_request_to_stop_saves_the_step_and_says_why(train: Any, tmp_path: Any) -> None:
    asked = iter([None, None, None, "stopped by SIGINT"])  # once before the first step
    result, _, _ = train(total_steps=100, stop=lambda: next(asked))
    assert (result.step, result.reason) == (3, "stopped by SIGINT")
    assert (tmp_path / "run" / "step-00000003").is_dir()


def test_only_the_adapter_changes(train: Any, make_model: Any) -> None:
    def adapter(model: Any) -> None:
        lora(model, rank=2, alpha=4.0, dropout=0.0, targets="linear", layers=None)

    before = weights(make_model(adapter))
    after = weights(train(model=make_model(adapter), total_steps=8)[2])
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed and all(name.endswith(("lora_a", "lora_b")) for name in changed)


def test_every_weight_changes_in_full_training(train: Any, make_model: Any) -> None:
    before = weights(make_model(full))
    after = weights(train(model=make_model(full), total_steps=8)[2])
    assert all(not np.array_equal(before[name], after[name]) for name in before)


@dataclass
class Count:
    seen: int = 0

    def __call__(self, snapshot: Any) -> None:
        self.seen += 1


def test_a_callback_sees_each_step_once(train: Any) -> None:
    count = Count()
    train(total_steps=7, callbacks={"count": count})
    assert count.seen == 1 + 7  # the evaluation before training, then each step


@pytest.mark.parametrize("eval_s", [0.5, 20.0])
@pytest.mark.parametrize("every", [10, 33, 100])
def test_the_time_left_is_that_of_the_steps_and_evaluations_to_come(every: int, eval_s: float) -> None:
    """Steps of 0.3 s; evaluations of `eval_s` and, after step 0, a save of 0.2 s: told right at each step, but for the saves before the
    first evaluation, which nobody has seen yet."""
    evaluated = {*range(every, 100, every), 100}
    for step in range(1, 101):
        done = len([at for at in evaluated if at < step])
        told = time_left(step, 100, every, 0.3 * step, (eval_s + 0.2) * done, eval_s)
        to_come = len([at for at in evaluated if at >= step])
        true = 0.3 * (100 - step) + to_come * (eval_s + 0.2 * (done > 0)) if step < 100 else 0.0
        assert told == pytest.approx(true), step


def test_the_time_of_the_bases_evaluation_is_without_what_else_it_is_asked(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers to held-out questions take half a second, its losses some milliseconds."""
    monkeypatch.setattr(engine, "full", lambda *given: Full({"final/loss": 1.0}, {"a": [("a", 1.0, 1)]}))
    history = train(total_steps=1, base=lambda measured: time.sleep(0.5))[0].history
    assert history[0][1]["perf/full_eval_s"] < 0.25


def test_the_time_left_leaves_out_what_came_before_the_first_step(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base takes two seconds to evaluate, the steps some milliseconds."""
    full = engine.full
    monkeypatch.setattr(engine, "full", lambda *given: time.sleep(2) or full(*given))
    history = train(total_steps=4, eval_every=2, log_every=1)[0].history
    left = [metrics["perf/eta_s"] for _, metrics in history if "perf/eta_s" in metrics]
    assert 0 < left[0] < 2 and left[-1] == 0
