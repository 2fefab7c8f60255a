"""KL, agreement and distance of two models' logits, against numpy in fp64."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from forge.release.divergence import diverge, keep
from forge.spec import Data
from forge.training.isolation import forward
from tests.release.conftest import Trained

ALL = 10**6


def logits(model: nn.Module, data: Data) -> np.ndarray:
    """At every held-out target, (N, V)."""
    model.eval()
    found = []
    for batch in (batch for batches in data.valid.values() for batch in batches):
        segments = mx.array(batch.segments_BT[:, :-1])
        whole = np.array(forward(model, mx.array(batch.tokens_BT[:, :-1]), segments), dtype=np.float64)
        found.append(whole[batch.mask_BT[:, 1:]])
    return np.concatenate(found)


def shaken(trained: Trained) -> nn.Module:
    model = trained.make().model
    norm = model.model.norm
    norm.weight = norm.weight * (1 + 0.3 * mx.array(np.random.RandomState(0).normal(size=64)))
    return model


def test_it_is_what_numpy_says(trained: Trained, tmp_path: Path) -> None:
    one, other = trained.make().model, shaken(trained)
    p, q = logits(one, trained.data), logits(other, trained.data)
    log_p, log_q = (x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True) for x in (p, q))
    keep(one, trained.data, ALL, tmp_path / "kept")
    found = diverge(other, trained.data, ALL, tmp_path / "kept")
    assert found.kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-4)
    assert found.agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert found.difference == pytest.approx(np.abs(p - q).max(), rel=1e-4)
    assert found.largest == pytest.approx(np.abs(p).max(), rel=1e-4)
    assert found.kl > 0.001 and 0.5 < found.agreement < 1 and found.places == len(p) and found.finite


def test_a_model_does_not_diverge_from_itself(trained: Trained, tmp_path: Path) -> None:
    keep(trained.make().model, trained.data, ALL, tmp_path / "kept")
    found = diverge(trained.make().model, trained.data, ALL, tmp_path / "kept")
    assert (found.kl, found.agreement, found.difference) == (0.0, 1.0, 0.0)


def test_each_source_gives_as_many_places(trained: Trained, tmp_path: Path) -> None:
    """7 of two sources: 4 of each, the same ones each time."""
    keep(trained.make().model, trained.data, 7, tmp_path / "kept")
    assert diverge(trained.make().model, trained.data, 7, tmp_path / "kept").places == 8


def test_a_source_of_weight_0_has_no_say(trained: Trained, tmp_path: Path) -> None:
    """Of two sources the talk alone counts: as if there were no other, and with all 7 places."""
    measured = replace(trained.data, unweighted=frozenset({"text"}))
    alone = replace(trained.data, valid={"talk": trained.data.valid["talk"]})
    found = []
    for name, data in (("measured", measured), ("alone", alone)):
        keep(trained.make().model, data, 7, tmp_path / name)
        found.append(diverge(shaken(trained), data, 7, tmp_path / name))
    assert found[0] == found[1] and found[0].places == 7


def test_what_is_not_finite_is_no_small_difference(trained: Trained, tmp_path: Path) -> None:
    keep(trained.make().model, trained.data, ALL, tmp_path / "kept")
    model = trained.make().model
    model.model.norm.weight = model.model.norm.weight * mx.array([np.nan] + [1.0] * 63)
    found = diverge(model, trained.data, ALL, tmp_path / "kept")
    assert not found.finite and np.isnan(found.kl) and np.isnan(found.difference)
