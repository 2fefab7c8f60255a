import math

import pytest

from forge.errors import ConfigError
from forge.training.schedules import constant, cosine, learning_rate


def test_cosine_falls_from_one_to_final() -> None:
    assert cosine(0.0, final=0.2) == pytest.approx(1.0)
    assert cosine(0.5, final=0.2) == pytest.approx(0.6)  # 0.2 + 0.8 · (1 + cos 90°) / 2
    assert cosine(1.0, final=0.2) == pytest.approx(0.2)
    assert cosine(1 / 3, final=0.0) == pytest.approx(0.75)  # (1 + cos 60°) / 2


def test_warm_up_rises_in_equal_parts_and_the_last_step_reaches_the_end() -> None:
    """mlx-lm's joined schedules start the decay at the warm-up's end but count its length from 0, and never reach the end."""
    lr = learning_rate(lambda t: cosine(t, final=0.1), peak=2.0, total=10, warmup=4, cooldown=0)
    assert [lr(step) for step in (1, 2, 3, 4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert lr(7) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))  # t = 3/6
    assert lr(10) == pytest.approx(0.2)


def test_cool_down_falls_in_equal_parts_towards_zero() -> None:
    lr = learning_rate(constant, peak=1.0, total=8, warmup=0, cooldown=3)
    assert [lr(step) for step in range(1, 9)] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_no_step_left_for_the_shape_is_an_error() -> None:
    with pytest.raises(ConfigError, match="6 warm-up and 4 cool-down steps leave none of the run's 10"):
        learning_rate(constant, peak=1.0, total=10, warmup=6, cooldown=4)
