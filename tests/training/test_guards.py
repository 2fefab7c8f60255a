"""What says where numbers stopped being numbers."""

import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import forge  # noqa: F401  (before mlx)
from forge.errors import TrainingError
from forge.training.guards import culprit, require_finite

NAN, INF = math.nan, math.inf
SOUND = {"embed": mx.array([1.0, 2.0]), "layers": [{"w": mx.array([3.0])}, {"w": mx.array([4.0], dtype=mx.bfloat16)}]}


def unused() -> Any:
    raise AssertionError("looked at while all is finite")


def test_while_all_is_finite_nothing_is_looked_at() -> None:
    require_finite(1, {"train/loss": 1e30, "train/grad_norm": 0.0}, "rows", unused, unused)


@pytest.mark.parametrize(("loss", "norm", "named"), [(NAN, 1.0, "train/loss is nan"), (1.0, INF, "train/grad_norm is inf")])
def test_the_line_names_step_rows_tensor_and_the_last_good_checkpoint(loss: float, norm: float, named: str) -> None:
    gradient = {"embed": mx.array([1.0, 2.0]), "layers": [{"w": mx.array([-INF])}, {"w": mx.array([NAN])}]}
    with pytest.raises(TrainingError) as error:
        require_finite(
            7,
            {"train/loss": loss, "train/grad_norm": norm},
            "rows: a/1 | b/2:3 | c/4",
            lambda: {"weight": SOUND, "gradient": gradient},
            lambda: Path("run/step-00000006"),
        )
    assert str(error.value) == (
        f"step 7: {named}; rows: a/1 | b/2:3 | c/4; gradient layers.0.w holds infinity, the first of 2 among 3; the last good checkpoint "
        "is run/step-00000006. Lower optimizer.lr or trainer.clip_norm, or look at these rows and at the base model"
    )


def test_where_nothing_was_saved_it_says_so() -> None:
    with pytest.raises(TrainingError, match="the last good checkpoint is none yet"):
        require_finite(1, {"val/loss": NAN}, "all validation text", lambda: {"weight": SOUND}, lambda: None)


def test_a_weight_is_named_before_the_gradients_that_it_spoils() -> None:
    broken = {"packed": mx.array([2**32 - 1], dtype=mx.uint32), "w": mx.array([1.0, NAN, INF])}
    assert culprit({"weight": broken, "gradient": {"w": mx.array([NAN])}}, "train/loss") == "weight w holds NaN, the first of 1 among 1"


def test_a_loss_that_is_not_finite_on_its_own_is_told_apart() -> None:
    found = culprit({"weight": SOUND, "gradient": SOUND}, "train/loss")
    assert found == "every weight and every gradient is finite, only train/loss is not"
