"""Durations are text with a unit ("100 steps", "3%", "2 epochs", "50M tokens"), converted to steps in this one place."""

import math
import re
from dataclasses import dataclass

from forge.errors import ConfigError

_PATTERN = re.compile(r"^\s*(\d+(?:_\d{3})*(?:\.\d+)?)\s*([kKMGB]?)\s*(%|steps?|tokens?|epochs?)\s*$")
_TIME = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|min|h|d)\s*$")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_SCALE = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}


@dataclass(frozen=True)
class Clock:
    """What turns a duration into steps: targets trained a step, targets in an epoch, and the whole run for "%"."""

    tokens_per_step: float
    tokens_per_epoch: float
    total_steps: int | None = None


def parse(text: object) -> tuple[float, str]:
    """ "2M tokens" -> (2000000.0, "tokens"). Raises ConfigError for anything else than the text of a number and a unit."""
    match = _PATTERN.match(text) if isinstance(text, str) else None
    if not match:
        raise ConfigError(f"{text!r} is not a duration: write a number and a unit, such as '100 steps', '3%', '2 epochs' or '50M tokens'")
    number, scale, unit = match.groups()
    if unit == "%" and scale:
        raise ConfigError(f"{text!r} is not a duration: '%' takes a plain number, such as '3%'")
    return float(number.replace("_", "")) * _SCALE[scale], unit if unit == "%" else unit.rstrip("s") + "s"


def seconds(text: str) -> float:
    """ "90 min" -> 5400.0. Raises ConfigError for anything else than a number above 0 and s, min, h or d."""
    match = _TIME.match(text)
    if not match or not float(match[1]):
        raise ConfigError(f"{text!r} is no time: write a number above 0 and a unit, such as '30 s', '90 min', '2 h' or '1 d'")
    return float(match[1]) * _SECONDS[match[2]]


def to_steps(text: str, clock: Clock) -> int:
    """The number of optimizer steps that `text` lasts, rounded to the nearest (tokens and epochs: up)."""
    value, unit = parse(text)
    if unit == "steps":
        return round(value)
    if unit == "%":
        if clock.total_steps is None:
            raise ConfigError(f"{text!r}: a share of the run can't define the run's own length; use steps, tokens or epochs")
        return round(value / 100 * clock.total_steps)
    tokens = value * (clock.tokens_per_epoch if unit == "epochs" else 1)
    return math.ceil(round(tokens / clock.tokens_per_step, 9))  # 0.07 * 10_000 is a little over 700
