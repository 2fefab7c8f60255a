import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from forge.binding import Problems, spec, target
from forge.errors import ConfigError
from forge.settings import ScheduleSpec
from forge.training.schedules import constant, cosine, inverse_sqrt, learning_rate, linear, rewarmed_cosine
from forge.units import Clock, to_steps

CONF = sorted((Path(__file__).parents[2] / "conf/schedule").glob("*.yaml"))


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        (constant, {0: 1, 0.5: 1, 1: 1}),
        (partial(linear, final=0.2), {0: 1, 0.25: 0.8, 0.5: 0.6, 1: 0.2}),
        (partial(cosine, final=0.2), {0: 1, 0.5: 0.6, 1: 0.2}),  # 0.2 + 0.8 · (1 + cos 90°) / 2
        (partial(cosine, final=0.0), {1 / 3: 0.75}),  # (1 + cos 60°) / 2
        (partial(inverse_sqrt, timescale=0.1), {0: 1, 0.3: 0.5, 0.8: 1 / 3}),  # √(0.1 / 0.4), √(0.1 / 0.9)
        (partial(rewarmed_cosine, cycles=2, rewarm=0.2, final=0.0), {0: 1, 0.25: 0.5, 0.5: 0, 0.55: 0.5, 0.6: 1, 0.8: 0.5, 1: 0}),
        (partial(rewarmed_cosine, cycles=2, rewarm=0.2, final=0.5), {0.25: 0.75, 0.5: 0.5, 0.55: 0.75, 0.6: 1, 1: 0.5}),
        (partial(rewarmed_cosine, cycles=25, rewarm=0.0, final=0.1), {0.2: 0.1, 0.20001: 1, 7 / 25: 0.1, 1: 0.1}),  # 7 / 25 · 25 is over 7
        (partial(rewarmed_cosine, cycles=1, rewarm=0.2, final=0.2), {0: 1, 0.5: 0.6, 1: 0.2}),
    ],
)
def test_shapes_go_through_points_worked_out_by_hand(shape: Callable[[float], float], points: dict[float, float]) -> None:
    assert {t: shape(t) for t in points} == pytest.approx(points, abs=1e-6)


def test_warm_up_rises_in_equal_parts_and_the_last_step_reaches_the_end() -> None:
    """mlx-lm's joined schedules start the decay at the warm-up's end but count its length from 0, and never reach the end."""
    lr = learning_rate(lambda t: cosine(t, final=0.1), peak=2.0, total=10, warmup=4, cooldown=0)
    assert [lr(step) for step in (1, 2, 3, 4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert lr(7) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))  # t = 3/6
    assert lr(10) == pytest.approx(0.2)


def test_a_linear_cool_down_falls_in_equal_parts_towards_zero() -> None:
    lr = learning_rate(constant, peak=1.0, total=8, warmup=0, cooldown=3)
    assert [lr(step) for step in range(1, 9)] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_square_root_cool_down_is_quick_at_first() -> None:
    """Three steps on the way to 0 are x = 1/4, 2/4, 3/4, and 1 - √x = 0.5, 0.2929, 0.1340."""
    lr = learning_rate(constant, peak=2.0, total=8, warmup=0, cooldown=3, cooldown_shape="1-sqrt")
    assert [lr(step) for step in range(5, 9)] == pytest.approx([2, 1, 0.585786, 0.267949], abs=1e-6)


def test_a_cool_down_goes_on_from_where_the_shape_ends() -> None:
    """The shape's last step is 6, at 0.5 of the peak; the cool-down takes it to 2/3 and 1/3 of that."""
    lr = learning_rate(partial(linear, final=0.5), peak=1.0, total=8, warmup=2, cooldown=2)
    assert [lr(step) for step in range(1, 9)] == pytest.approx([0.5, 1, 0.875, 0.75, 0.625, 0.5, 1 / 3, 1 / 6])


def test_no_step_left_for_the_shape_is_an_error() -> None:
    with pytest.raises(ConfigError, match="6 warm-up and 4 cool-down steps leave none of the run's 10"):
        learning_rate(constant, peak=1.0, total=10, warmup=6, cooldown=4)


ENDS = {
    "constant": 1.0,
    "cosine": 0.1,
    "linear": 0.0,
    "inverse_sqrt": math.sqrt(0.1 / 1.1) / 21,  # of 200 steps 20 cool down
    "rewarmed_cosine": 0.1,
    "wsd": 1 - math.sqrt(40 / 41),
}


@pytest.mark.parametrize("path", CONF, ids=lambda path: path.stem)
def test_each_option_warms_up_to_the_peak_and_ends_where_it_says(path: Path) -> None:
    assert path.read_text().startswith("# ")
    problems, clock = Problems(), Clock(tokens_per_step=1, tokens_per_epoch=1, total_steps=200)
    schedule = spec(ScheduleSpec, OmegaConf.to_container(OmegaConf.load(path)), "schedule", problems)
    assert schedule is not None, problems
    shape = target(schedule.shape, "schedule.shape", problems)
    assert shape is not None, problems
    lr = learning_rate(shape, 3.0, 200, to_steps(schedule.warmup, clock), to_steps(schedule.cooldown, clock), schedule.cooldown_shape)
    rates = [lr(step) for step in range(1, 201)]
    assert rates[:6] == pytest.approx([0.5, 1, 1.5, 2, 2.5, 3])  # 3 % of 200 steps
    assert max(rates) == pytest.approx(3.0) and min(rates) >= 0
    assert rates[-1] == pytest.approx(3.0 * ENDS[path.stem], abs=1e-9)
