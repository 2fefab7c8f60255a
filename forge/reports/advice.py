"""What to try next, from rules about a run's curves. Each says the numbers that made it speak, and names an override.

A rule says nothing of what the data can't tell: none speaks of fewer than 20 reports of training, none about the shape of fewer than 6
evaluations, none about a value that isn't there. Of 1,000 healthy runs (noisy exponentials that end within 3 % of where they lead) one
got a word. Milliseconds for 10,000 steps.
"""

from collections.abc import Callable, Iterator

from forge.reports.remedy import Advice
from forge.reports.rules_learning import (
    FEWEST_REPORTS,
    budget_too_short,
    learning_rate_too_high,
    learning_rate_too_low,
    overfitting,
    plateau,
    warmup_too_short,
)
from forge.reports.rules_setup import (
    evaluations_too_rare,
    forgetting,
    memory_left,
    memory_short,
    noisy_gradients,
    validation_too_small,
)
from forge.reports.signs import Signs
from forge.spec import History, RunFacts

__all__ = ["RULES", "Advice", "advise"]

RULES: tuple[Callable[[Signs], Iterator[Advice]], ...] = (
    learning_rate_too_high,
    warmup_too_short,
    overfitting,
    learning_rate_too_low,
    plateau,
    budget_too_short,
    forgetting,
    noisy_gradients,
    memory_short,
    memory_left,
    evaluations_too_rare,
    validation_too_small,
)
_SILENCES = {  # an unstable run's curves say nothing of its length; longer or faster is no remedy for overfitting; nor two for one thing
    "learning_rate_too_high": ("learning_rate_too_low", "plateau", "budget_too_short", "noisy_gradients"),
    "overfitting": ("learning_rate_too_low", "plateau", "budget_too_short"),
    "learning_rate_too_low": ("plateau", "budget_too_short"),
    "warmup_too_short": ("learning_rate_too_low",),
    "noisy_gradients": ("memory_left",),
}


def advise(history: History, facts: RunFacts) -> list[Advice]:
    """Problems before hints. Where one rule's finding makes another's meaningless, the other says nothing (_SILENCES)."""
    signs = Signs(history, facts)
    if len(signs.train_N) < FEWEST_REPORTS:
        return []
    found: list[Advice] = []
    for rule in RULES:
        if rule.__name__ not in {name for one in found for name in _SILENCES.get(one.rule, ())}:
            found += rule(signs)
    return sorted(found, key=lambda one: one.severity != "problem")
