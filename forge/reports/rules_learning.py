"""Rules about the learning rate and the length of a run. Formula and limits are in the docstrings; what has no source is our choice."""

import math
from collections.abc import Iterator

import numpy as np

from forge.reports.curves import scientific
from forge.reports.remedy import Advice, budget, number, rate, steps
from forge.reports.signs import Signs

FEWEST_REPORTS, FEWEST_EVALUATIONS = 20, 6  # fewer tell nothing


def learning_rate_too_high(signs: Signs) -> Iterator[Advice]:
    """Any of three. Three spikes or more (Signs.spikes), which large rates cause (Wortsman et al. 2023, arXiv 2309.14322). A rise of the
    mean loss (Signs.rise), unless a short warm-up explains it. Gradients clipped in 80 % of the reports after the warm-up and a tenth of
    the run, with a median norm in the last third of those twice that in the first; clipping alone is no sign, since AdamW's steps don't
    depend on the gradient's scale. Try half the rate.
    """
    reasons = []
    if len(signs.spikes) >= 3:
        reasons.append(f"train/loss spiked {len(signs.spikes)} times, first at step {signs.spikes[0]:,}")
    if signs.rise and not _by_warmup(signs):
        back = "and came down again" if signs.rise.healed else "and did not come down again"
        reasons.append(f"its mean rose by {signs.rise.nats:.2f} nats between steps {signs.rise.start:,} and {signs.rise.end:,} {back}")
    norms, clip = signs.norms(), number(signs.facts, "trainer.clip_norm")
    if clip is not None and len(norms) >= FEWEST_REPORTS and (norms > clip).mean() >= 0.8:
        first, last = (float(np.median(part)) for part in (norms[: len(norms) // 3], norms[-(len(norms) // 3) :]))
        if last >= 2 * first:
            reasons.append(f"{(norms > clip).mean():.0%} of the gradients were clipped and their norm grew from {first:.2g} to {last:.2g}")
    if reasons:
        yield Advice("learning_rate_too_high", "The learning rate is too high", "; ".join(reasons), rate(signs.facts, 0.5), "problem")


def warmup_too_short(signs: Signs) -> Iterator[Advice]:
    """The loss rises (Signs.rise) within the first quarter of the run and falls below again, after a warm-up of less than 5 % of the run.
    A longer one lets the weights reach flatter places first (Gilmer et al. 2021, arXiv 2110.04369). Try three times as long, 5 % at least.
    """
    if signs.rise and _by_warmup(signs):
        share = max(5, math.ceil(300 * signs.warmup / signs.last))
        why = f"the mean of train/loss rose by {signs.rise.nats:.2f} nats up to step {signs.rise.end:,} and fell again later; the warm-up "
        why += f"is {signs.warmup:,} of {signs.last:,} steps"
        yield Advice("warmup_too_short", "The warm-up is too short", why, f"schedule.warmup={share}%", "problem")


def learning_rate_too_low(signs: Signs) -> Iterator[Advice]:
    """val/loss falls in a straight line from the start on. With x the sum of the learning rates before an evaluation, over six of them or
    more from step 0 to the last with a rate of 70 % of the peak or more: the second half of x lowered the loss by 75 % or more of what the
    first did, each by five σ of its noise. On an exponential of constant X it is e^(-x/2X) of it: 75 % at x = 0.6 X. A falling rate lowers
    the loss by itself, so what comes later doesn't count. Only said of a complete run that fell to its end. The size of the updates is not
    logged, so it has no part in this. Try three times the rate.
    """
    rates = signs.rates_N
    if not signs.complete or not len(rates) or rates.max() <= 0:
        return
    high = signs.steps_N[rates >= 0.7 * rates.max()][-1]
    at, valid = (values[signs.eval_steps_M <= high] for values in (signs.eval_steps_M, signs.valid_M))
    if len(at) < FEWEST_EVALUATIONS or signs.valid_M[-1] > signs.valid_M.min() + 2 * signs.valid_noise:
        return
    x = np.interp(at, np.append(0, signs.steps_N), np.append(0, np.cumsum(rates)))
    middle = float(np.interp((x[0] + x[-1]) / 2, x, valid))
    first, second = float(valid[0]) - middle, middle - float(valid[-1])
    if min(first, second) > 5 * signs.valid_noise and second >= 0.75 * first:
        why = f"up to step {at[-1]:,.0f}, near the peak rate, val/loss fell evenly: by {first:.3f} nats, then by {second:.3f}"
        yield Advice("learning_rate_too_low", "The learning rate may be too low", why, rate(signs.facts, 3))


def overfitting(signs: Signs) -> Iterator[Advice]:
    """The lowest validation loss lies before 80 % of the run; the mean of the last fifth of the evaluations (two at least) is above it by
    0.01 nats and by 5 σ of their noise, of which some 2 are the luck of the lowest of many; and train/loss fell from there to the end, by
    two standard errors, and below where it had been. Compare Prechelt 1998, Early stopping: but when? Try a run of that length.
    """
    valid, count = signs.valid_M, len(signs.valid_M)
    if count < FEWEST_EVALUATIONS:
        return
    low = int(valid.argmin())
    step, at_end = int(signs.eval_steps_M[low]), float(valid[-max(2, count // 5) :].mean())
    if step > 0.8 * signs.last or step <= 0 or at_end - valid[low] <= max(0.01, 5 * signs.valid_noise):
        return
    after = signs.train_N[signs.steps_N > step]
    width = min(len(after) // 2, max(5, len(signs.train_N) // 10))
    if width < 5:
        return
    before, early, late = (float(part.mean()) for part in (signs.train_N[signs.steps_N <= step][-width:], after[:width], after[-width:]))
    if early - late <= 2 * signs.noise * (2 / width) ** 0.5 or late >= before:
        return
    why = f"val/loss rose from {valid[low]:.3f} at step {step:,} to {at_end:.3f} at the end (noise {signs.valid_noise:.3f}), while "
    why += f"train/loss fell from {early:.3f} to {late:.3f}"
    yield Advice("overfitting", f"Overfitting from step {step:,} on", why, steps(step), "problem")


def plateau(signs: Signs) -> Iterator[Advice]:
    """val/loss is flat in the last third of a complete run: a straight line through its n evaluations there, four at least, falls by less
    than 1 % of the whole fall (or 0.005 nats), two standard errors of σ√(12/n) included; and the whole fall is ten times the noise. Where
    the learning rate ended above half its peak, a cool-down usually gets further (Hägele et al. 2024, arXiv 2405.18392); else two thirds
    of the budget do as well.
    """
    late = signs.eval_steps_M > signs.last * 2 / 3
    if not signs.complete or late.sum() < 4 or len(signs.valid_M) < FEWEST_EVALUATIONS:
        return
    fall = float(signs.valid_M[0] - signs.valid_M.min())
    at, valid = signs.eval_steps_M[late], signs.valid_M[late]
    late_fall = float(-np.polyfit(at, valid, 1)[0] * (at[-1] - at[0]))
    error = signs.valid_noise * (12 / len(at)) ** 0.5
    if fall < 10 * signs.valid_noise or late_fall + 2 * error >= max(0.01 * fall, 0.005):
        return
    rates = signs.rates_N
    why = f"val/loss fell by {fall:.3f} nats in all and by {max(0.0, late_fall):.4f} in the last third (standard error {error:.4f})"
    if len(rates) and rates[-1] > rates.max() / 2:
        why += f"; the learning rate still was {scientific(float(rates[-1]))} at the end"
        yield Advice("plateau", "A plateau: let the learning rate fall", why, "schedule.cooldown=20%")
    else:
        yield Advice("plateau", "A plateau: the last third brought nothing", why, budget(signs.facts, 2 / 3))


def budget_too_short(signs: Signs) -> Iterator[Advice]:
    """val/loss would go on falling. With falls d₁ and d₂ over the second and the last third of the run, and each later third bringing
    r = d₂/d₁ (at most 1) of the one before, twice the budget brings d₂(r + r² + r³) more. Said where that is three times the noise, and
    0.1 nats, or 0.02 and a fifth of the whole fall. It extrapolates a run whose schedule has ended. Try twice the budget.
    """
    if not signs.complete or len(signs.valid_M) < FEWEST_EVALUATIONS:
        return
    at = np.interp([signs.last / 3, signs.last * 2 / 3, signs.last], signs.eval_steps_M, signs.valid_M)
    before, late = float(at[0] - at[1]), float(at[1] - at[2])
    if before <= 3 * signs.valid_noise or late <= 3 * signs.valid_noise:
        return
    r = min(1.0, late / before)
    gain, fall = late * (r + r**2 + r**3), float(signs.valid_M[0] - signs.valid_M.min())
    if gain > 3 * signs.valid_noise and (gain >= 0.1 or gain >= max(0.02, fall / 5)):
        why = f"val/loss fell by {before:.3f} nats in the second third and by {late:.3f} in the last: by that, twice as long brings about "
        yield Advice("budget_too_short", "The budget is too short", why + f"{gain:.2f} nats more", budget(signs.facts, 2))


def _by_warmup(signs: Signs) -> bool:
    rise = signs.rise
    early = rise is not None and rise.healed and rise.end <= signs.last / 4 and signs.warmup <= rise.end
    return early and len(signs.rates_N) > 0 and signs.warmup < 0.05 * max(signs.last, signs.facts.total_steps)
