"""The training loop. It knows no configuration, no tracker and no terminal: callables and frozen dataclasses come in, emit goes out.

One host synchronisation a step, beside those of attention on a CPU (forge.training.host). Losses are sums over target tokens, divided once
a step by their count.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge.arrays import flat, scalar
from forge.errors import TrainingError
from forge.spec import Batch, Batches, Callback, Data, Emit, Metrics, Plan, Result, Snapshot
from forge.training import guards, memory
from forge.training.checkpoint import State, Store, put_weights
from forge.training.evaluate import Full, evaluate, forgetting, full
from forge.training.gradients import Gradients, accumulate, normalise
from forge.training.memory import UNBOUND, Bound
from forge.training.prefetch import Prefetched
from forge.training.recompute import recomputed
from forge.training.update import Update
from forge.training.world import ALONE, World


def fit(
    model: nn.Module,
    data: Data,
    objective: Callable[..., Any],
    update: Update,
    plan: Plan,
    callbacks: Mapping[str, Callback],
    store: Store,
    emit: Emit,
    *,
    resume: Path | None = None,
    stop: Callable[[], str | None] = lambda: None,
    watch: Callable[[Snapshot], None] = lambda _: None,
    base: Callable[[Full], None] = lambda _: None,
    bound: Bound = UNBOUND,
    world: World = ALONE,
) -> Result:
    """Train from the store's last checkpoint (or `resume`, or step 0) to the plan's end, or until a callback or `stop` gives a reason.

    `emit` gets the history of a resumed run once more: it drops what it has. `watch` is called after each evaluation, once its
    checkpoint is saved; `base` gets the scores of the model before its first step.
    Raises TrainingError when a loss or gradient is not finite, or memory runs out; the checkpoints saved before stay.
    """
    state = _resumed(model, data, update, callbacks, store, resume, world)
    for step, metrics in state.history:
        emit(metrics, step)  # a kill may have come between a checkpoint and the sending of what it holds
    model.train()
    mx.reset_peak_memory()
    with Prefetched(data.train) as batches, recomputed(model) if plan.gradient_checkpointing else nullcontext():
        loop = _Loop(
            model,
            data,
            batches,
            Gradients(model, objective),
            update,
            plan,
            callbacks,
            store,
            emit,
            stop,
            watch,
            base,
            bound,
            world,
            state,
        )
        reason = state.reason if state.history else loop.settle({}, evaluate_now=True)
        while reason is None and state.step < plan.total_steps:
            metrics = loop.step()
            reason = loop.settle(metrics, evaluate_now=state.step % plan.eval_every == 0 or state.step == plan.total_steps)
    step, loss, why = _chosen(store, world)
    return Result(state.step, state.tokens, step, loss, why, reason or "the budget is used up", state.history)


@dataclass
class _Loop:
    """What a step and its end have in common. `rows`: where the rows of the last step came from."""

    model: nn.Module
    data: Data
    batches: Batches
    gradients: Gradients
    update: Update
    plan: Plan
    callbacks: Mapping[str, Callback]
    store: Store
    emit: Emit
    stop: Callable[[], str | None]
    watch: Callable[[Snapshot], None]
    base: Callable[[Full], None]
    bound: Bound
    world: World
    state: State
    rows: tuple[str, ...] = ()
    counted: float = field(default_factory=time.perf_counter)  # up to when the run's seconds are

    def step(self) -> dict[str, float]:
        """One optimizer step, which moves the state on. Returns its metrics; empty where log_every leaves it out."""
        started = time.perf_counter()
        plan, state = self.plan, self.state
        step = state.step + 1
        # Dropout is a function of (seed, process, step), so resuming needs no random state.
        mx.random.seed(((plan.seed * self.world.size + self.world.rank) % 2**32 << 32) + step)
        batches = [self.batches.next() for _ in range(plan.accumulate)]
        self.rows = tuple(row for batch in batches for row in batch.row_ids)
        own = self.world.share_step(batches, self.gradients.together)
        with self.bound.told(step):
            loss_sum, count, sums, gradients = self.world.total(accumulate(self.gradients, own))
            gradients, norm = normalise(gradients, count, plan.clip_norm)
            self.update.apply(self.model, gradients, plan.lr(step))
            self.world.wait(loss_sum, count, sums, norm, self.update.pending())
        self.bound.check(step)

        targets = int(scalar(count))
        if targets == 0:
            raise TrainingError(f"step {step}: no token of its rows is a target: {' | '.join(self.rows)}; look at the data's masks")
        metrics = {"train/loss": scalar(loss_sum) / targets, "train/grad_norm": scalar(norm)}
        where = f"rows: {' | '.join(self.rows)}"
        guards.require_finite(step, metrics, where, lambda: {"frozen weight": self._frozen(), "gradient": gradients}, self.store.last)
        state.step, state.cursor, state.tokens = step, self.batches.cursor, state.tokens + targets
        for name, number in _by_source(batches):
            state.source_tokens[name] = state.source_tokens.get(name, 0) + number
        seconds = time.perf_counter() - started
        state.stepping += seconds
        if step % plan.log_every and step != plan.total_steps:
            return {}
        metrics |= {f"train/{name}": scalar(value) / targets for name, value in sums.items()}
        metrics |= {"train/lr": plan.lr(step), "train/tokens": state.tokens, "train/epoch": state.tokens / self.data.epoch_tokens}
        metrics |= {f"train/epoch/{name}": epochs for name, epochs in self.batches.epochs(state.cursor).items()}
        metrics |= {f"train/share/{name}": tokens / state.tokens for name, tokens in state.source_tokens.items()}
        metrics |= {**_speed(batches, seconds), **memory.metrics()}
        left = time_left(step, plan.total_steps, plan.eval_every, state.stepping, state.evaluating, state.history[0][1]["perf/eval_s"])
        return metrics | {"perf/eta_s": left}

    def settle(self, metrics: dict[str, float], evaluate_now: bool) -> str | None:
        """The end of each step: evaluate when due, tell, ask whether to stop, save. Returns the reason to stop."""
        state, started = self.state, time.perf_counter()
        state.loss, state.rows = None, ()
        with self.update.evaluated(self.model):
            if evaluate_now:
                metrics |= self._evaluate()
            state.seconds, self.counted = state.seconds + time.perf_counter() - self.counted, time.perf_counter()
            self._tell(metrics)
            snapshot = self._snapshot(metrics)
            reasons = [why for callback in self.callbacks.values() if (why := callback(snapshot))] if self.world.first else []
            state.reason = self.world.agree("; ".join(reasons) or None)
            if state.reason and state.loss is None:  # weights that no evaluation saw could not be chosen
                scores = self._evaluate()
                self._tell(scores)
                metrics = {**metrics, **scores}
            asked = self.stop()  # each process has to answer, so that they can agree
            reason = state.reason or asked
            if self.world.first and (state.loss is not None or reason or state.step % self.plan.save_every == 0):
                state.callbacks = {name: dict(vars(callback)) for name, callback in self.callbacks.items()}
                self.store.save(flat(self.model.trainable_parameters()), self.update.arrays, state)
            if "val/loss" in metrics:
                self.watch(self._snapshot(metrics))
        if state.step:
            seconds = time.perf_counter() - started
            state.evaluating, state.stepping = state.evaluating + seconds * evaluate_now, state.stepping + seconds * (not evaluate_now)
        return reason

    def _tell(self, metrics: dict[str, float]) -> None:
        if metrics:
            self.state.history.append((self.state.step, metrics))
            self.emit(metrics, self.state.step)

    def _snapshot(self, metrics: dict[str, float]) -> Snapshot:
        state = self.state
        return Snapshot(state.step, state.tokens, metrics, state.history, self.model, state.seconds, self.rows, self.plan.total_steps)

    def _evaluate(self) -> dict[str, float]:
        started = time.perf_counter()
        with self.bound.told(self.state.step):
            scores = evaluate(self.model, self.data, self.world)
        loss = {"val/loss": scores.metrics["val/loss"]}
        guards.require_finite(self.state.step, loss, "all validation text", lambda: {"weight": self.model.parameters()}, self.store.last)
        self.state.loss, self.state.rows = loss["val/loss"], scores.rows
        seconds = {"perf/eval_s": time.perf_counter() - started}
        if not self.state.history:
            return {**scores.metrics, **seconds, **self._base()}
        return {**scores.metrics, **seconds, **forgetting(scores.metrics, self.state.history[0][1])}

    def _base(self) -> dict[str, float]:
        """base/…: the model before its first step on the full set, which the best checkpoint is held against."""
        started = time.perf_counter()
        with self.bound.told(0):
            measured = full(self.model, self.data, self.world)
        seconds = time.perf_counter() - started
        if measured.documents:
            self.base(measured)
        scores = {key.replace("final/", "base/", 1): value for key, value in measured.metrics.items()}
        return {**scores, "perf/full_eval_s": seconds} if scores else {}

    def _frozen(self) -> dict[str, mx.array]:
        trained = flat(self.model.trainable_parameters())
        return {name: value for name, value in flat(self.model.parameters()).items() if name not in trained}


def _resumed(
    model: nn.Module, data: Data, update: Update, callbacks: Mapping[str, Callback], store: Store, checkpoint: Path | None, world: World
) -> State:
    """The state to go on from, with everything else put back where it was; a new one where there is nothing to resume.

    The first process reads, and gives what it found, or starts with, to the others.
    """
    state = State()
    if world.first and (found := store.resume(checkpoint)):
        state, weights, arrays = found
        put_weights(model, weights, store.folder)
        update.restore(model, arrays)
    if world.size > 1:
        state = State(**json.loads(world.agree(json.dumps(asdict(state))) or ""))
        weights, arrays = world.give((flat(model.trainable_parameters()), update.arrays))
        world.wait(weights, arrays)
        put_weights(model, weights, store.folder)
        update.restore(model, arrays)
    data.train.cursor = state.cursor
    for name, fields in state.callbacks.items():
        if name in callbacks:  # one that is no part of the experiment may be gone
            vars(callbacks[name]).update(fields)
    return state


def _chosen(store: Store, world: World) -> tuple[int, float, str]:
    """The best checkpoint's step, loss, and why it is: the first process looks."""
    best = store.best() if world.first else None
    assert best or not world.first, "step 0 is always evaluated and saved"
    step, loss, why = json.loads(world.agree(json.dumps([best.step, best.loss, best.why]) if best else None) or "")
    return step, loss, why


def _by_source(batches: list[Batch]) -> Iterator[tuple[str, int]]:
    """Each row's source and targets."""
    for batch in batches:
        yield from zip(batch.sources, batch.mask_BT.sum(axis=1).tolist(), strict=True)


def time_left(step: int, total: int, eval_every: int, stepping: float, evaluating: float, first: float) -> float:
    """Seconds until the last step and its evaluation are done, told after `step` of `total` steps and before their evaluation.

    `stepping`, `evaluating`: the seconds that steps and evaluations have taken since step 0; `first`: what the evaluation there took, which
    stands for the others until there is one. 0 after the last step.
    """
    if step == total:
        return 0.0
    done = (step - 1) // eval_every
    to_come = len({*range((done + 1) * eval_every, total, eval_every), total})
    return stepping / step * (total - step) + to_come * (evaluating / done if done else first)


def _speed(batches: list[Batch], seconds: float) -> Metrics:
    """Real tokens: padding is none."""
    real = sum(int(np.count_nonzero(batch.segments_BT)) for batch in batches)
    return {
        "perf/tokens_per_s": real / seconds,
        "perf/targets_per_s": sum(batch.targets for batch in batches) / seconds,
        "perf/fill_share": real / sum(batch.tokens_BT.size for batch in batches),
        "perf/step_s": seconds,
    }
