"""Learning-rate shapes: schedule(t, *, knobs) -> multiplier in [0, 1] of the peak, t in [0, 1]. Plain arithmetic, no mlx.

learning_rate() puts warm-up before a shape and cool-down behind it, so that every shape has both.
"""

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from forge.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]


def constant(t: float) -> float:
    """1."""
    return 1.0


def cosine(t: float, *, final: Share) -> float:
    """final + (1 - final)(1 + cos πt)/2 (Loshchilov & Hutter 2016, one cycle). cosine(0.5, final=0.2) = 0.6."""
    return final + (1 - final) * (1 + math.cos(math.pi * t)) / 2


def learning_rate(shape: Callable[[float], float], peak: float, total: int, warmup: int, cooldown: int) -> Callable[[int], float]:
    """The learning rate of step 1, 2, … total.

    Warm-up rises in equal parts and reaches the peak at step `warmup`; the shape runs over the rest and has t = 1 at its
    last step; cool-down falls in equal parts towards 0, which the step after the last would have.
    Raises ConfigError when warm-up and cool-down leave no step for the shape.
    """
    middle = total - warmup - cooldown
    if middle < 1:
        raise ConfigError(f"schedule: {warmup} warm-up and {cooldown} cool-down steps leave none of the run's {total}; shorten them")

    def lr(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        remaining = total - step + 1
        falling = min(1.0, remaining / (cooldown + 1))
        return peak * shape(min(1.0, (step - warmup) / middle)) * falling

    return lr
