"""Rules about the data, the batch, the machine and the evaluations. Formula and limits are in the docstrings, as in rules_learning."""

import math
import re
from collections.abc import Iterator

import numpy as np

from forge.reports.curves import finite
from forge.reports.remedy import Advice, number, passes, weight
from forge.reports.rules_learning import FEWEST_REPORTS
from forge.reports.signs import Signs, robust_jitter


def forgetting(signs: Signs) -> Iterator[Advice]:
    """A source's val/forgetting, at the best checkpoint or else at the end, is above 0.05 nats (5 % in perplexity) and at the evaluation
    before it too, while another source's loss fell. A little of a source goes far: 5 % of the tokens kept a model of general text (Ibrahim
    et al. 2024, arXiv 2403.08763). Try twice the weight; for a source that is only measured, 5 % of all.
    """
    prefix = "val/forgetting/"
    names = sorted({key.removeprefix(prefix) for _, metrics in signs.history for key in metrics if key.startswith(prefix)})
    last: dict[str, list[float]] = {}
    for name in names:
        at, values_M = finite(signs.history, prefix + name)
        best = signs.last if signs.facts.best_step is None else signs.facts.best_step
        last[name] = [float(value) for value in values_M[at <= best][-2:]]
    if not any(values and values[-1] < 0 for values in last.values()):
        return
    for name, values in last.items():
        if len(values) == 2 and min(values) > 0.05:
            why = f"its validation loss is {values[-1]:.3f} nats above the base's, {values[-2]:.3f} one evaluation before"
            yield Advice("forgetting", f"{name} is being forgotten", why, weight(signs.facts, name), "problem")


def noisy_gradients(signs: Signs) -> Iterator[Advice]:
    """After the warm-up and a tenth of the run, the gradient's norm changes from report to report by a factor of e^0.5 or more (1 σ of its
    logarithm), and train/loss by 5 % of itself. A hint alone: the gradient noise scale, which would tell the batch that pays (McCandlish
    et al. 2018, arXiv 1812.06162), needs norms at two batch sizes. Try four times the rows a step: in larger passes where the whole peak
    times four is below 80 % of the memory, else in more, which takes four times as long a step.
    """
    norms = signs.norms()
    if len(norms) < FEWEST_REPORTS or norms.min() <= 0:
        return
    spread, share = robust_jitter(np.log(norms)), signs.noise / abs(float(np.median(signs.train_N)))
    if spread >= 0.5 and share >= 0.05:
        peak, limit = signs.peak("memory/peak_gib"), signs.facts.memory_gib
        name = "trainer.micro_batch" if peak and limit and 4 * peak <= 0.8 * limit else "trainer.accumulate"
        present = number(signs.facts, name)
        why = f"from step to step (1 σ) the gradient's norm changes by a factor of {math.exp(spread):.1f} and train/loss by {share:.0%}; "
        why += "the gradient noise scale itself is not measured"
        yield Advice("noisy_gradients", "The batch may be too small", why, f"{name}={4 * present:.0f}" if present else None)


def memory_short(signs: Signs) -> Iterator[Advice]:
    """memory/peak_gib is above 90 % of what MLX may use. Try half the rows a pass, the same rows a step; with one row, recomputation."""
    peak, limit = signs.peak("memory/peak_gib"), signs.facts.memory_gib
    if peak and limit and peak > 0.9 * limit:
        recompute = None if signs.facts.settings.get("trainer.gradient_checkpointing") else "trainer.gradient_checkpointing=true"
        why = f"the peak is {peak:.2f} of {limit:.2f} GiB ({peak / limit:.0%}); a longer row may end the run"
        yield Advice("memory_short", "Memory is nearly used up", why, passes(signs.facts, 0.5) or recompute, "problem")


def memory_left(signs: Signs) -> Iterator[Advice]:
    """memory/peak_gib is below 40 % of what MLX may use, and a step takes several passes: fewer of more rows are the same step, sooner. The
    largest power of two that divides the passes and keeps the whole peak times it below 80 %. Where a step is one pass, more rows would be
    another step, and whether that pays can't be told from here; `python -m forge.plan --find-batch` finds how many fit.
    """
    peak, limit = signs.peak("memory/peak_gib"), signs.facts.memory_gib
    if not peak or not limit or peak >= 0.4 * limit:
        return
    factor = 1
    while 2 * factor * peak <= 0.8 * limit and passes(signs.facts, 2 * factor):
        factor *= 2
    if factor > 1:
        why = f"the peak is {peak:.2f} of {limit:.2f} GiB ({peak / limit:.0%}), and a step takes several passes"
        yield Advice("memory_left", "Memory is left for larger passes", why, passes(signs.facts, factor))


def evaluations_too_rare(signs: Signs) -> Iterator[Advice]:
    """A complete run of 50 steps or more was evaluated fewer than five times after step 0: the best checkpoint is one of so few."""
    count = int((signs.eval_steps_M > 0).sum())
    if signs.complete and signs.last >= 50 and count < 5:
        why = f"{signs.last:,} steps were evaluated {count} times; the best checkpoint is chosen among so many"
        yield Advice("evaluations_too_rare", "Too few evaluations to choose by", why, "trainer.eval_every=10%")


def validation_too_small(signs: Signs) -> Iterator[Advice]:
    """The best checkpoint was chosen as within the noise of the lowest, and that noise, the standard error of the paired difference on the
    validation rows (forge.training.choice), is 0.01 nats or more: smaller differences can't be told. Four times the tokens halve it.
    """
    noise = re.search(r"within the noise \(([\d.e-]+)\)", signs.facts.best_why)
    if noise and float(noise[1]) >= 0.01:
        tokens = number(signs.facts, "evaluation.max_tokens")
        why = f"the difference of two checkpoints has a standard error of {float(noise[1]):.2g} nats; more targets lower it"
        override = f"evaluation.max_tokens={4 * int(tokens)}" if tokens else None
        yield Advice("validation_too_small", "The validation set can't tell the best ones apart", why, override)
