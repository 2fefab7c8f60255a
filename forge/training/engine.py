"""The training loop. It knows no configuration, no tracker and no terminal: callables and frozen dataclasses come in, emit goes out.

One host synchronisation a step. Losses are sums over target tokens, divided once a step by their count.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_map

from forge.arrays import flat, scalar
from forge.errors import TrainingError
from forge.spec import Batch, Callback, Data, Emit, Plan, Result, Snapshot
from forge.training.checkpoint import State, Store, step_of
from forge.training.evaluate import evaluate

_GIB = 2**30


def fit(
    model: nn.Module,
    data: Data,
    objective: Callable[..., Any],
    optimizer: optimizers.Optimizer,
    plan: Plan,
    callbacks: Mapping[str, Callback],
    store: Store,
    emit: Emit,
    resume: Path | None = None,
    stop: Callable[[], str | None] = lambda: None,
    watch: Callable[[Snapshot], None] = lambda _: None,
) -> Result:
    """Train from the store's last checkpoint (or `resume`, or step 0) to the plan's end, or until a callback or `stop` gives a reason.

    `emit` gets the history of a resumed run once more: it drops what it has. `watch` is called after each evaluation.
    Raises TrainingError when a loss or gradient is not finite; the checkpoints saved before stay.
    """
    optimizer.init(model.trainable_parameters())
    state = store.resume(model, optimizer, resume)
    data.train.cursor = state.cursor
    for name, fields in state.callbacks.items():
        vars(callbacks[name]).update(fields)
    for step, metrics in state.history:
        emit(metrics, step)  # a kill may have come between a checkpoint and the sending of what it holds
    value_and_grad = nn.value_and_grad(model, objective)
    model.train()
    mx.reset_peak_memory()

    def settle(metrics: dict[str, float], evaluate_now: bool) -> str | None:
        """The end of each step: evaluate when due, tell, ask whether to stop, save. Returns the reason to stop."""
        state.loss = None
        if evaluate_now:
            metrics |= _evaluated(model, data, state.step, store)
            state.loss = metrics["val/loss"]
        if metrics:
            state.history.append((state.step, metrics))
            emit(metrics, state.step)
        snapshot = Snapshot(state.step, state.tokens, metrics, state.history, model)
        if evaluate_now:
            watch(snapshot)
        state.reason = "; ".join(why for callback in callbacks.values() if (why := callback(snapshot))) or None
        reason = state.reason or stop()
        if evaluate_now or reason or state.step % plan.save_every == 0:
            state.callbacks = {name: asdict(callback) for name, callback in callbacks.items()}  # type: ignore[call-overload]
            store.save(model, optimizer, state)
        return reason

    reason = state.reason if state.history else settle({}, evaluate_now=True)
    while reason is None and state.step < plan.total_steps:
        metrics = _step(model, data, value_and_grad, optimizer, plan, state, store)
        reason = settle(metrics, evaluate_now=state.step % plan.eval_every == 0 or state.step == plan.total_steps)
    best = store.best()
    assert best is not None, "step 0 is always evaluated and saved"
    return Result(state.step, state.tokens, step_of(best[0]), best[1], reason or "the budget is used up", state.history)


def _step(
    model: nn.Module,
    data: Data,
    value_and_grad: Callable[..., Any],
    optimizer: optimizers.Optimizer,
    plan: Plan,
    state: State,
    store: Store,
) -> dict[str, float]:
    """One optimizer step, which moves `state` on. Returns its metrics; empty where log_every leaves it out."""
    started = time.perf_counter()
    step = state.step + 1
    mx.random.seed((plan.seed << 32) + step)  # dropout is a function of (seed, step), so resuming needs no random state
    optimizer.learning_rate = plan.lr(step)
    batches = [data.train.next() for _ in range(plan.accumulate)]
    loss_sum, count, sums, gradients = _accumulate(value_and_grad, model, batches)
    gradients, norm = _normalise(gradients, count, plan.clip_norm)
    optimizer.update(model, gradients)
    mx.eval(loss_sum, count, sums, norm, model.trainable_parameters(), optimizer.state)

    targets = int(scalar(count))
    if targets == 0:
        raise TrainingError(f"step {step}: no token of its rows is a target: {_rows(batches)}; look at the data's masks")
    metrics = {"train/loss": scalar(loss_sum) / targets, "train/grad_norm": scalar(norm)}
    _require_finite(metrics, step, f"rows: {_rows(batches)}", store)
    state.step, state.cursor, state.tokens = step, data.train.cursor, state.tokens + targets
    for name, number in _by_source(batches):
        state.source_tokens[name] = state.source_tokens.get(name, 0) + number
    if step % plan.log_every and step != plan.total_steps:
        return {}
    metrics |= {f"train/{name}": scalar(value) / targets for name, value in sums.items()}
    metrics |= {"train/lr": plan.lr(step), "train/tokens": state.tokens, "train/epoch": state.tokens / data.epoch_tokens}
    metrics |= {f"train/epoch/{name}": epochs for name, epochs in data.train.epochs(state.cursor).items()}
    metrics |= {f"train/share/{name}": tokens / state.tokens for name, tokens in state.source_tokens.items()}
    return metrics | _speed(batches, time.perf_counter() - started)


def _evaluated(model: nn.Module, data: Data, step: int, store: Store) -> dict[str, float]:
    scores = evaluate(model, data)
    _require_finite({"val/loss": scores["val/loss"]}, step, "all validation text", store)
    return scores


def _accumulate(
    value_and_grad: Callable[..., Any], model: nn.Module, batches: list[Batch]
) -> tuple[mx.array, mx.array, dict[str, mx.array], Any]:
    """The sums over micro-batches of losses, target counts, further sums, and gradients of the summed loss. Never means."""
    (loss_sum, (count, sums)), gradients = value_and_grad(model, batches[0])
    for batch in batches[1:]:
        mx.eval(loss_sum, count, sums, gradients)  # frees one graph before the next is built
        (loss, (number, more)), gradient = value_and_grad(model, batch)
        loss_sum, count = loss_sum + loss, count + number
        sums = {name: value + more[name] for name, value in sums.items()}
        gradients = tree_map(mx.add, gradients, gradient)
    return loss_sum, count, sums, gradients


def _normalise(gradients: Any, count: mx.array, clip_norm: float) -> tuple[Any, mx.array]:
    """Gradients of the mean loss over `count` targets, scaled down to a global norm of at most `clip_norm`; and their norm before."""
    count = mx.maximum(count, 1)  # a step without targets must not put 0/0 into the weights
    squares = [mx.square(gradient.astype(mx.float32)).sum() for gradient in flat(gradients).values()]
    norm = mx.sqrt(mx.stack(squares).sum()) / count
    scale = mx.minimum(1.0, clip_norm / (norm + 1e-6)) / count
    return tree_map(lambda g: g * scale.astype(g.dtype), gradients), norm


def _require_finite(metrics: Mapping[str, float], step: int, where: str, store: Store) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"step {step}: {name} is {value}; {where}; the last good checkpoint is {store.last() or 'none yet'}. "
                "Lower optimizer.lr or trainer.clip_norm, or look at these rows and at the base model"
            )


def _rows(batches: list[Batch]) -> str:
    return " | ".join(row for batch in batches for row in batch.row_ids)


def _by_source(batches: list[Batch]) -> Iterator[tuple[str, int]]:
    """Each row's source and targets."""
    for batch in batches:
        yield from zip(batch.sources, batch.mask_BT.sum(axis=1).tolist(), strict=True)


def _speed(batches: list[Batch], seconds: float) -> dict[str, float]:
    """Real tokens: padding is none."""
    real = sum(int(np.count_nonzero(batch.segments_BT)) for batch in batches)
    return {
        "perf/tokens_per_s": real / seconds,
        "perf/targets_per_s": sum(batch.targets for batch in batches) / seconds,
        "perf/fill_share": real / sum(batch.tokens_BT.size for batch in batches),
        "perf/step_s": seconds,
        "memory/peak_gib": mx.get_peak_memory() / _GIB,
        "memory/active_gib": mx.get_active_memory() / _GIB,
    }
