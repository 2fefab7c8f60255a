"""The loss on held-out text: the same batches each time, every target counted, nothing drawn from any random stream.

Each set gives, under val/, final/ or test/: loss (nats a target), perplexity, and bits_per_byte (of the text's UTF-8, so that tokenizers
can be compared), together and as …/<source>. A source of weight 0 is measured, and counts in its own numbers only.
Cost: one forward pass; memory is that of one batch, and two numbers a row, or on the full set two and a name a document's piece.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from forge.spec import Batch, Data, Metrics, Scores
from forge.training.objectives import token_losses
from forge.training.world import ALONE, World


@dataclass(frozen=True)
class Full:
    """final/… metrics; and of each source its documents: name, summed loss (nats), targets, in the order of their names."""

    metrics: Metrics
    documents: Mapping[str, Sequence[tuple[str, float, int]]]


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


def full(model: nn.Module, data: Data, world: World = ALONE) -> Full:
    """final/… on all that evaluation.full_tokens takes of the validation rows, with each document's loss, by which two runs can be paired.

    The documents and their order are the same however rows are packed, batched and shared. One that was cut over several rows is one.
    """
    pieces: dict[str, list[tuple[str, float, int]]] = {}
    for name, batches in data.valid_full.items():
        per_batch = world.join([list(piece_losses(model, [batch])) for batch in world.share(batches)])
        pieces[name] = [(document, loss, targets) for batch in per_batch for document, loss, targets in batch]
    sums = _sums({name: [(loss, targets) for _, loss, targets in each] for name, each in pieces.items()}, data.full_bytes)
    return Full(_metrics("final", sums, data.unweighted), {name: _whole(each) for name, each in pieces.items()})


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
    with evaluating(model):
        for batch in batches:
            losses_B = np.array(token_losses(model, batch).sum(axis=1))
            yield from zip(losses_B.tolist(), batch.mask_BT[:, 1:].sum(axis=1).tolist(), strict=True)


def piece_losses(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[str, float, int]]:
    """Of each piece of a document in the rows: the document's name, its summed loss (nats) and targets, with dropout off meanwhile."""
    with evaluating(model):
        for batch in batches:
            losses_BT, mask_BT = np.array(token_losses(model, batch)), batch.mask_BT[:, 1:]
            for row, row_id in enumerate(batch.row_ids):
                segments_T = batch.segments_BT[row]
                names = document_names(row_id, np.bincount(segments_T)[1:].tolist())
                sums = np.bincount(segments_T[1:], losses_BT[row], minlength=len(names) + 1)[1:]
                targets = np.bincount(segments_T[1:], mask_BT[row], minlength=len(names) + 1)[1:]
                yield from zip(names, sums.tolist(), targets.astype(int).tolist(), strict=True)


def document_names(row_id: str, lengths: Sequence[int]) -> list[str]:
    """The documents in a row, from its name and the tokens of each: "a[0:3], b[7:9]" with 3 and 2 holds a and b.

    Where a row is not named so, each of its segments passes for a document: x#1, x#2, …
    """
    names, rest = [], row_id
    for length in lengths:
        ends = (found for found in re.finditer(r"\[(\d+):(\d+)\](?:, |\Z)", rest) if int(found[2]) - int(found[1]) == length)
        end = next(ends, None)  # a name may hold what looks like an end
        if end is None:
            break
        names.append(rest[: end.start()])
        rest = rest[end.end() :]
    return names if len(names) == len(lengths) and not rest else [f"{row_id}#{nth}" for nth in range(1, len(lengths) + 1)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
    counted = [row for name, each in rows.items() if name not in unweighted for row in each]
    return Scores(_metrics(prefix, _sums(rows, sizes), unweighted), counted)


def _sums(parts: Mapping[str, Sequence[tuple[float, int]]], sizes: Mapping[str, int]) -> dict[str, _Sums]:
    """By source, of its parts' losses and targets."""
    return {
        name: _Sums(sum(loss for loss, _ in each), sum(targets for _, targets in each), sizes.get(name, 0)) for name, each in parts.items()
    }


def _whole(pieces: Sequence[tuple[str, float, int]]) -> list[tuple[str, float, int]]:
    """The pieces of each document together, by name."""
    found: dict[str, tuple[float, int]] = {}
    for name, loss, targets in pieces:
        before, counted = found.get(name, (0.0, 0))
        found[name] = before + loss, counted + targets
    return [(name, *found[name]) for name in sorted(found)]


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
