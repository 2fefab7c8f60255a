"""How far one model's answers lie from another's, token by token on held-out text, with one of the two in memory at a time.

The first leaves its logits on disk, 4 bytes a token of the vocabulary at each place: 1.2 GB for 2,048 places of 150,000 tokens.

Letters: B rows, T positions, N places, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forge.arrays import load, save, scalar
from forge.spec import Data
from forge.training.ends import hidden_states
from forge.training.objectives import shift

_CHUNK = 256  # places whose logits are in memory at once


@dataclass(frozen=True)
class Divergence:
    """`kl`: mean KL(reference ‖ model) in nats a token; `agreement`: the share of places where both find the same token likeliest;
    `difference`, `largest`: the largest distance of two logits, and the reference's logit furthest from 0; `finite`: whether all are."""

    kl: float
    agreement: float
    difference: float
    largest: float
    finite: bool
    places: int


def keep(model: nn.Module, data: Data, places: int, folder: Path) -> None:
    """Write the logits of `model` at `places` held-out targets, of each source that has a weight as many, to `folder`. Raises OSError."""
    folder.mkdir()
    for number, logits_NV in enumerate(_logits(model, data, places)):
        save(_file(folder, number), {"logits": logits_NV})


def diverge(model: nn.Module, data: Data, places: int, reference: Path) -> Divergence:
    """`model` against the one whose logits keep() has put into `reference`, at the same places."""
    kl = agreeing = difference = largest = 0.0
    count, finite = 0, True
    for number, q_NV in enumerate(_logits(model, data, places)):
        p_NV = load(_file(reference, number))["logits"]
        finite = finite and bool(mx.isfinite(q_NV).all().item())
        kl += scalar(_kl(p_NV, q_NV).sum())
        agreeing += scalar((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())
        difference = _larger(difference, scalar(mx.abs(p_NV - q_NV).max()))
        largest = _larger(largest, scalar(mx.abs(p_NV).max()))
        count += len(q_NV)
    return Divergence(max(kl / count, 0.0) if kl == kl else kl, agreeing / count, difference, largest, finite, count)


def _kl(p_NV: mx.array, q_NV: mx.array) -> mx.array:
    log_p_NV, log_q_NV = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (p_NV, q_NV))
    return (mx.exp(log_p_NV) * (log_p_NV - log_q_NV)).sum(-1)


def _larger(one: float, other: float) -> float:
    """NaN where either is: it may not pass for a small difference."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _logits(model: nn.Module, data: Data, places: int) -> Iterator[mx.array]:
    """fp32 logits_NV, a chunk at a time, as evaluation computes them; of each source's batches in a fixed order that favours no length."""
    model.eval()
    counted = [batches for name, batches in data.valid.items() if name not in data.unweighted]
    for batches in counted:
        left = math.ceil(places / len(counted))
        for number in np.random.RandomState(0).permutation(len(batches)).tolist():
            if left <= 0:
                break
            inputs_BT, _, mask_BT, segments_BT = shift(batches[number])
            hidden_BTD, head = hidden_states(model, inputs_BT, segments_BT)
            where_N = np.flatnonzero(np.array(mask_BT))[:left]
            left -= len(where_N)
            hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
            for start in range(0, len(where_N), _CHUNK):
                logits_NV = head(hidden_ND[mx.array(where_N[start : start + _CHUNK])]).astype(mx.float32)
                mx.eval(logits_NV)
                yield logits_NV


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.safetensors"
