"""A recommendation, and the overrides that one may name: computed from the run's present settings, None where they aren't known."""

import math
import re
import shlex
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forge import units
from forge.errors import ConfigError
from forge.reports.curves import scientific
from forge.spec import RunFacts


@dataclass(frozen=True)
class Advice:
    """`why`: the numbers that made the rule speak; `override`: what to try, as it is typed in a shell, or None."""

    rule: str
    headline: str
    why: str
    override: str | None = None
    severity: Literal["problem", "hint"] = "hint"


def number(facts: RunFacts, name: str) -> float | None:
    """A setting that is a number."""
    value = facts.settings.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def rate(facts: RunFacts, factor: float) -> str | None:
    """So many times the peak learning rate."""
    for name in ("optimizer.lr", "optimizer.learning_rate"):
        if present := number(facts, name):
            return f"{name}={scientific(present * factor)}"
    return None


def steps(count: int) -> str:
    """A budget of that many steps."""
    return shlex.quote(f"trainer.budget={count} steps")


def budget(facts: RunFacts, factor: float) -> str | None:
    """So many times the budget, in the unit that it has."""
    try:
        present, unit = units.parse(facts.settings.get("trainer.budget"))
    except ConfigError:
        return None
    wanted = present * factor
    plain = np.format_float_positional(wanted, precision=3, fractional=False, trim="-")  # units take no exponent
    return shlex.quote(f"trainer.budget={plain if unit == 'epochs' else max(1, round(wanted))} {unit}")


def weight(facts: RunFacts, source: str) -> str | None:
    """Twice a source's weight; for a source of weight 0, 5 % of the tokens."""
    names = [match[1] for key in facts.settings if (match := re.fullmatch(r"data\.sources\.(.+)\.weight", key))]
    weights = {name: number(facts, f"data.sources.{name}.weight") or 0.0 for name in names}
    if source not in weights:
        return None
    return f"data.sources.{source}.weight={2 * weights[source] or sum(weights.values()) * 0.05 / 0.95:.3g}"


def passes(facts: RunFacts, factor: float) -> str | None:
    """So many times the rows a pass, with as many rows a step; None where that doesn't come out even."""
    rows, count = number(facts, "trainer.micro_batch"), number(facts, "trainer.accumulate")
    if not rows or not count or (rows * factor) % 1 or (count / factor) % 1:
        return None
    return f"trainer.micro_batch={rows * factor:.0f} trainer.accumulate={count / factor:.0f}"
