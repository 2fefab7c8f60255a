"""The self-test's checks of training: each takes the toy, and gives whether all is well and what it saw."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge.arrays import flat
from forge.checks import toy
from forge.checks.toy import Toy, close, difference
from forge.models.quantise import multiply_unpacked, quantise
from forge.training.formulation import on_cpu
from forge.training.isolation import forward

Saw = tuple[bool, str]

_LEARNT = 0.3  # nats a target, after _STEPS on one batch; guessing among all tokens costs 5.8
_STEPS = 30
_SAME_ON_GPU = 1e-3  # of a loss: a GPU adds up in no fixed order


def overfits(test: Toy) -> Saw:
    """One batch, learnt by heart."""
    _, losses = toy.train(test, test.model().model, "overfit", _STEPS, same=True)
    return losses[-1] < _LEARNT, f"loss {losses[0]:.2f} to {losses[-1]:.3f} in {_STEPS} steps on one batch (limit {_LEARNT})"


def adapter_starts_as_the_base(test: Toy) -> Saw:
    loaded = test.model()
    tokens = mx.array(test.batch().tokens_BT)
    before = loaded.model(tokens)
    mx.eval(before)
    toy.lora(loaded.model)
    far = difference(before, loaded.model(tokens))
    return far <= close(), f"logits differ by {far:.1g} (limit {close():g})"


def masks_hold_the_end_of_turn(test: Toy) -> Saw:
    """Of each conversation, the targets spell the answer and the token that ends it, and nothing of the question."""
    rows = toy.conversations()
    found = test.encoder.encode(rows)
    end = test.encoder.eos_token_id
    for row, encoded in zip(rows, found, strict=True):
        targets = getattr(encoded, "targets", None)
        if targets is None:
            return False, f"{row.id} was not encoded as a conversation: {encoded}"
        learnt = np.asarray(encoded.ids)[targets].tolist()  # type: ignore[union-attr]
        said = test.encoder.decode([token for token in learnt if token != end]).strip()
        expected = row.messages[-1]["content"]
        if learnt.count(end) != 1 or said != expected:
            return False, f"{row.id}: {said!r} is learnt with {learnt.count(end)} end tokens, in place of {expected!r} with one"
    return True, f"{len(rows)} answers are learnt whole, each with its end token, and no question"


def packed_equals_unpacked(test: Toy) -> Saw:
    """A document's logits behind another one in its row, and alone."""
    model = test.model().model
    first, second = (mx.array(test.encoder.encode([row])[0].ids) for row in toy.conversations()[:2])  # type: ignore[union-attr]
    both, segments = mx.concatenate([first, second])[None], mx.array([[1] * first.size + [2] * second.size])
    packed = forward(model, both, segments)
    alone = mx.concatenate([forward(model, each[None], None) for each in (first, second)], axis=1)
    far = difference(alone, packed)
    return far <= close(), f"logits differ by {far:.1g} (limit {close():g})"


def resumes_as_if_never_stopped(test: Toy, steps: int = 8, killed: int = 5) -> Saw:
    """With dropout, so that the random state counts."""

    class Killed(BaseException):
        pass

    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == killed + 1:  # once before the first step
            raise Killed

    def model() -> nn.Module:
        found = test.model().model
        toy.lora(found, dropout=0.2)
        return found

    _, whole = toy.train(test, model(), "whole", steps)
    try:
        toy.train(test, model(), "killed", steps, stop=stop)
        return False, "the run that was to be killed came to its end"
    except Killed:
        _, resumed = toy.train(test, model(), "killed", steps)
    limit = 0.0 if on_cpu() else _SAME_ON_GPU
    differ = [step for step, (one, other) in enumerate(zip(whole, resumed, strict=True), 1) if not abs(one - other) <= limit * one]
    if differ:
        one, other = whole[differ[0] - 1], resumed[differ[0] - 1]
        return False, f"killed after step {killed}: the loss of step {differ[0]} is {other} after it, and {one} without"
    return True, f"killed after step {killed}: the losses of all {steps} steps are the same{' to the last digit' * on_cpu()}"


def quantised_base_is_untouched(test: Toy) -> Saw:
    """QLoRA's steps, and the packed weights before and after them."""
    loaded = test.model()
    quantise(loaded.model, loaded.config, {"bits": 4, "group_size": 32})
    if on_cpu():
        multiply_unpacked(loaded.model)
    toy.lora(loaded.model)
    own = set(flat(loaded.model.trainable_parameters()))
    before = {name: np.array(value) for name, value in flat(loaded.model.parameters()).items() if name not in own}
    packed = sum(value.dtype == np.uint32 for value in before.values())
    _, losses = toy.train(test, loaded.model, "quantised", 4)
    after = flat(loaded.model.parameters())
    changed = [name for name, value in before.items() if not np.array_equal(value, np.array(after[name]))]
    if changed or not packed or not losses[-1] < losses[0]:
        return False, f"{len(changed)} of {len(before)} frozen arrays changed ({packed} packed), loss {losses[0]:.3f} to {losses[-1]:.3f}"
    return True, f"{packed} packed layers of 4 bits are as before, while the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}"
