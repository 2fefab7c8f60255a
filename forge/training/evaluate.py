"""The loss on held-out text: the same batches each time, every target counted, nothing drawn from any random stream.

Each set gives, under val/, final/ or test/: loss (nats a target), perplexity, and bits_per_byte (of the text's UTF-8, so that tokenizers
can be compared), together and as …/<source>. A source of weight 0 is measured, and counts in its own numbers only.
Cost: one forward pass; memory is that of one batch, and two numbers a row.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from forge.spec import Batch, Data, Metrics, Scores
from forge.training.objectives import token_losses
from forge.training.world import ALONE, World


@dataclass(frozen=True)
class _Sums:
    """Of one source: its summed loss (nats), targets, and the UTF-8 bytes that these spell."""

    loss: float
    targets: int
    bytes: int


def evaluate(model: nn.Module, data: Data, world: World = ALONE) -> Scores:
    """val/… on the fixed tokens of each evaluation. What is not finite is reported as it is, and perplexity may overflow to inf.

    The processes of `world` share the batches.
    """
    return _scores("val", model, data.valid, data.valid_bytes, data.unweighted, world)


def full_scores(model: nn.Module, data: Data, world: World = ALONE) -> Metrics:
    """final/… on all that evaluation.full_tokens takes of the validation rows."""
    return _scores("final", model, data.valid_full, data.full_bytes, data.unweighted, world).metrics


def scores_on_test(model: nn.Module, data: Data) -> Metrics:
    """test/… on the rows that nothing else looks at; empty where none are kept aside."""
    return _scores("test", model, data.test, data.test_bytes, data.unweighted, ALONE).metrics


def forgetting(scores: Metrics, base: Metrics) -> dict[str, float]:
    """What each source's loss has risen by (nats a target) since `base`, the same metrics of the model before its first step.

    val/loss/code 2.5 against 2.0 gives val/forgetting/code 0.5; final/ and test/ likewise. Below 0: learnt, not forgotten.
    """
    parts = ((key, *key.split("/loss/", 1)) for key in scores if "/loss/" in key and key in base)
    return {f"{prefix}/forgetting/{source}": scores[key] - base[key] for key, prefix, source in parts}


def baseline(data: Data) -> dict[str, float]:
    """val/unigram_loss and val/unigram_loss/<source>: what token frequencies alone reach on the same targets."""
    counts = {name: sum(batch.targets for batch in batches) for name, batches in data.valid.items() if name not in data.unweighted}
    mean = sum(data.unigram[name] * count for name, count in counts.items()) / sum(counts.values())
    return {"val/unigram_loss": mean, **{f"val/unigram_loss/{name}": loss for name, loss in data.unigram.items()}}


def row_losses(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[float, int]]:
    """The summed loss (nats) and the number of targets of each row, with dropout off while it is gone through."""
    with _evaluating(model):
        for batch in batches:
            losses_B = np.array(token_losses(model, batch).sum(axis=1))
            yield from zip(losses_B.tolist(), batch.mask_BT[:, 1:].sum(axis=1).tolist(), strict=True)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; each gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module._set_training_mode(training)


def _rows(model: nn.Module, batches: Sequence[Batch], world: World) -> list[tuple[float, int]]:
    """The losses of all rows, in the order of the batches whichever process took them."""
    per_batch = world.join([list(row_losses(model, [batch])) for batch in world.share(batches)])
    return [(loss, targets) for rows in per_batch for loss, targets in rows]


def _scores(
    prefix: str, model: nn.Module, sets: Mapping[str, Sequence[Batch]], sizes: Mapping[str, int], unweighted: frozenset[str], world: World
) -> Scores:
    rows = {name: _rows(model, batches, world) for name, batches in sets.items()}
    sums = {
        name: _Sums(sum(loss for loss, _ in each), sum(targets for _, targets in each), sizes.get(name, 0)) for name, each in rows.items()
    }
    counted = [row for name, each in rows.items() if name not in unweighted for row in each]
    return Scores(_metrics(prefix, sums, unweighted), counted)


def _metrics(prefix: str, sums: Mapping[str, _Sums], unweighted: frozenset[str]) -> dict[str, float]:
    """Together, which needs a source that counts, and by source. No bits per byte where the targets spell no text."""
    counted = [each for name, each in sums.items() if name not in unweighted]
    found: dict[str, float] = {}
    groups = {"": counted} if counted else {}
    for ending, group in (groups | {f"/{name}": [each] for name, each in sums.items()}).items():
        loss, size = sum(each.loss for each in group), sum(each.bytes for each in group)
        mean = loss / sum(each.targets for each in group)
        found[f"{prefix}/loss{ending}"] = mean
        found[f"{prefix}/perplexity{ending}"] = _exp(mean)
        if size:
            found[f"{prefix}/bits_per_byte{ending}"] = loss / math.log(2) / size
    return found


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
