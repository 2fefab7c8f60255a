"""Learning-rate shapes: schedule(t, *, knobs) -> multiplier in [0, 1] of the peak, t in [0, 1]. Plain arithmetic, no mlx.

learning_rate() puts warm-up before a shape and cool-down behind it, so that every shape has both: t is a share of what lies between.
"""

import math
from collections.abc import Callable
from typing import Literal

from forge.errors import ConfigError
from forge.values import Count, Part, Positive, Share

Cooldown = Literal["linear", "1-sqrt"]


def constant(t: float) -> float:
    """1."""
    return 1.0


def linear(t: float, *, final: Share) -> float:
    """1 - (1 - final) t. linear(0.5, final=0.2) = 0.6."""
    return 1 - (1 - final) * t


def cosine(t: float, *, final: Share) -> float:
    """final + (1 - final)(1 + cos πt)/2 (Loshchilov & Hutter 2016, one cycle). cosine(0.5, final=0.2) = 0.6."""
    return final + (1 - final) * (1 + math.cos(math.pi * t)) / 2


def inverse_sqrt(t: float, *, timescale: Positive) -> float:
    """√(timescale / (timescale + t)) (Zhai et al. 2021, arXiv 2106.04560): half the peak after three timescales.

    It needs no end, and reaches none: add a cool-down.
    """
    return math.sqrt(timescale / (timescale + t))


def rewarmed_cosine(t: float, *, cycles: Count, rewarm: Part, final: Share) -> float:
    """A cosine from 1 to `final` in each of `cycles` equal parts; in all but the first, the first `rewarm` of the part rises back to 1.

    rewarm=0 is SGDR (Loshchilov & Hutter 2016, arXiv 1608.03983); a gradual rise spares the optimizer the jump.
    With two cycles, rewarm=0.2, final=0: 0.5 at t = 0.25 (half of the first cosine), 0 at 0.5, 0.5 at 0.55, 1 at 0.6, 0 at 1.
    """
    position = round(t * cycles, 9)  # 7 / 25 · 25 is a little over 7, which is the end of a cycle and not the beginning of one
    cycle = max(math.ceil(position) - 1, 0)
    within, rising = position - cycle, rewarm if cycle else 0.0
    if within < rising:
        return final + (1 - final) * within / rising
    return cosine((within - rising) / (1 - rising), final=final)


def learning_rate(
    shape: Callable[[float], float], peak: float, total: int, warmup: int, cooldown: int, cooldown_shape: Cooldown = "linear"
) -> Callable[[int], float]:
    """The learning rate of step 1, 2, … total.

    Warm-up rises in equal parts and reaches the peak at step `warmup`; the shape runs over the rest and has t = 1 at its
    last step; cool-down multiplies that by 1 - x (linear) or 1 - √x (Hägele et al. 2024, arXiv 2405.18392), where x grows in equal
    parts to 1, and so the rate falls to 0, at the step after the last.
    Raises ConfigError when warm-up and cool-down leave no step for the shape.
    """
    middle = total - warmup - cooldown
    if middle < 1:
        raise ConfigError(f"schedule: {warmup} warm-up and {cooldown} cool-down steps leave none of the run's {total}; shorten them")

    def lr(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        x = max(0, step - warmup - middle) / (cooldown + 1)
        return peak * shape(min(1.0, (step - warmup) / middle)) * (1 - (x if cooldown_shape == "linear" else math.sqrt(x)))

    return lr
