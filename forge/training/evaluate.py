"""The loss on held-out text: the same batches each time, every target counted, nothing drawn from any random stream."""

import math
from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from forge.arrays import scalar
from forge.spec import Batch, Data
from forge.training.objectives import causal_lm


def evaluate(model: nn.Module, data: Data) -> dict[str, float]:
    """val/loss (nats a target, all sources together), val/loss/<source>, val/perplexity, val/bits_per_byte (of the text's UTF-8)."""
    sums = {name: loss_sum(model, batches) for name, batches in data.valid.items()}
    total = sum(loss for loss, _ in sums.values())
    mean = total / sum(count for _, count in sums.values())
    return {
        "val/loss": mean,
        "val/perplexity": math.exp(mean) if mean < 700 else math.inf,
        "val/bits_per_byte": total / math.log(2) / sum(data.valid_bytes.values()),
        **{f"val/loss/{name}": loss / count for name, (loss, count) in sums.items()},
    }


def scores_on_test(model: nn.Module, data: Data) -> dict[str, float]:
    """test/loss and test/loss/<source>, nats a target, on the rows that nothing else looks at; empty where none are kept aside."""
    sums = {name: loss_sum(model, batches) for name, batches in data.test.items()}
    if not sums:
        return {}
    mean = sum(loss for loss, _ in sums.values()) / sum(count for _, count in sums.values())
    return {"test/loss": mean, **{f"test/loss/{name}": loss / count for name, (loss, count) in sums.items()}}


def baseline(data: Data) -> dict[str, float]:
    """val/unigram_loss and val/unigram_loss/<source>: what token frequencies alone reach on the same targets."""
    counts = targets(data.valid)
    mean = sum(data.unigram[name] * count for name, count in counts.items()) / sum(counts.values())
    return {"val/unigram_loss": mean, **{f"val/unigram_loss/{name}": loss for name, loss in data.unigram.items()}}


def targets(valid: Mapping[str, Sequence[Batch]]) -> dict[str, int]:
    return {name: sum(batch.targets for batch in batches) for name, batches in valid.items()}


def loss_sum(model: nn.Module, batches: Sequence[Batch]) -> tuple[float, int]:
    """The summed loss (nats) and the number of targets, with dropout off."""
    was_training = model.training
    model.eval()
    try:
        total, count = 0.0, 0
        for batch in batches:
            loss, (number, _) = causal_lm(model, batch)
            mx.eval(loss, number)
            total, count = total + scalar(loss), count + int(scalar(number))
    finally:
        model.train(was_training)
    return total, count
