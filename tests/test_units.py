"""Durations to steps, with values worked out by hand."""

import pytest

from forge.errors import ConfigError
from forge.units import Clock, parse, seconds, to_steps

CLOCK = Clock(tokens_per_step=512, tokens_per_epoch=10_000, total_steps=400)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("100 steps", 100, "steps"),
        ("1 step", 1, "steps"),
        ("1_000 steps", 1000, "steps"),
        ("3%", 3, "%"),
        ("12.5 %", 12.5, "%"),
        ("2 epochs", 2, "epochs"),
        ("0.5 epoch", 0.5, "epochs"),
        ("7 tokens", 7, "tokens"),
        ("50k tokens", 50_000, "tokens"),
        ("50K tokens", 50_000, "tokens"),
        ("1.5M tokens", 1_500_000, "tokens"),
        ("2B tokens", 2_000_000_000, "tokens"),
        ("2G tokens", 2_000_000_000, "tokens"),
        ("  3steps ", 3, "steps"),
    ],
)
def test_a_number_and_a_unit_are_a_duration(text: str, value: float, unit: str) -> None:
    assert parse(text) == (value, unit)


@pytest.mark.parametrize(
    "text", ["", "100", "steps", "-1 steps", "1,000 steps", "1_00 steps", "3 percent", "5 m tokens", "1e3 steps", "3 steps!"]
)
def test_other_text_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigError, match="'50M tokens'") as refused:
        parse(text)
    assert str(refused.value).startswith(f"{text!r} is not a duration")


@pytest.mark.parametrize("value", [100, 1.5, None, True, ["3%"]])
def test_a_bare_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse(value)


def test_a_scaled_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="'%' takes a plain number"):
        parse("3M %")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("100 steps", 100),
        ("0 steps", 0),
        ("2k steps", 2000),
        ("3%", 12),  # 0.03 x 400
        ("12.5%", 50),
        ("0.1%", 0),  # 0.4
        ("0.2%", 1),  # 0.8
        ("512 tokens", 1),
        ("513 tokens", 2),
        ("50k tokens", 98),  # 97.66
        ("1 epochs", 20),  # 19.53
        ("2 epochs", 40),  # 39.06, and not twice 20 by rounding each
        ("2.5 epochs", 49),  # 48.83
    ],
)
def test_durations_in_steps(text: str, steps: int) -> None:
    assert to_steps(text, CLOCK) == steps


def test_a_fraction_of_tokens_a_step_still_counts() -> None:
    """Packed rows have a mean number of targets: 1000 tokens at 62.5 a step are 16 steps."""
    assert to_steps("1k tokens", Clock(tokens_per_step=62.5, tokens_per_epoch=1)) == 16


def test_an_exact_number_of_steps_gets_none_on_top() -> None:
    """0.07 of 10,000 tokens are 700, at 10 a step: 70."""
    assert to_steps("0.07 epochs", Clock(tokens_per_step=10, tokens_per_epoch=10_000)) == 70


def test_a_share_needs_the_run_s_length() -> None:
    with pytest.raises(ConfigError, match=r"'5%': a share of the run can't define the run's own length"):
        to_steps("5%", Clock(tokens_per_step=1, tokens_per_epoch=1))


@pytest.mark.parametrize(("text", "value"), [("30 s", 30), ("90 min", 5400), ("1.5h", 5400), (" 2 d ", 172_800)])
def test_a_time_in_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "90", "h", "-1 h", "0 min", "2 hours", "1:30 h", "5 m", "2 steps"])
def test_other_text_is_no_time(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no time: write a number above 0 and a unit, such as '30 s', '90 min'") as refused:
        seconds(text)
    assert str(refused.value).startswith(repr(text))
