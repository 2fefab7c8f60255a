"""Each rule has histories that it speaks of and others that it doesn't; what it names is worked out by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge.reports.advice import RULES, Advice, advise
from forge.spec import RunFacts
from forge.training.choice import Saved, choose

SETTINGS = {
    "optimizer.lr": 0.004,
    "trainer.clip_norm": 1.0,
    "trainer.micro_batch": 4,
    "trainer.accumulate": 8,
    "trainer.budget": "300 steps",
    "evaluation.max_tokens": 5000,
    "data.sources.new.weight": 3.0,
    "data.sources.old.weight": 1.0,
    "data.sources.seen.weight": 0.0,
}
Curve = Callable[[float], float]


def falling(step: float) -> float:
    """Within 3 % of where it leads after 300 steps: e^(-300/80) = 0.024."""
    return 2 * math.exp(-step / 80) + 1


def made_up(
    train: Curve = falling,
    valid: Curve | None = None,
    steps: int = 300,
    every: int = 15,
    warmup: int = 15,
    rate: Curve = lambda t: 1.0,
    noise: float = 0.05,
    valid_noise: float = 0.001,
    seed: int = 0,
    **others: Curve,
) -> list[tuple[int, dict[str, float]]]:
    """A whole run: reports at each step, evaluations from step 0 on. `rate`: of the progress t, after the warm-up."""
    rng = np.random.default_rng(seed)
    valid = valid or (lambda step: train(step) + 0.1)
    history = []
    for step in range(steps + 1):
        metrics: dict[str, float] = {}
        if step:
            lr = 0.004 * min(step / warmup if warmup else 1.0, rate(step / steps))
            metrics |= {"train/loss": train(step) + rng.normal(0, noise), "train/lr": lr}
            metrics |= {"train/grad_norm": 0.7 * math.exp(rng.normal(0, 0.2)), "memory/peak_gib": 5.0}
        if step % every == 0 or step == steps:
            metrics["val/loss"] = valid(step) + rng.normal(0, valid_noise)
        metrics |= {key.replace("__", "/"): curve(step) for key, curve in others.items() if step or not key.startswith("train")}
        history.append((step, metrics))
    return history


def facts(steps: int = 300, **changes: Any) -> RunFacts:
    return RunFacts("a run", "finished", steps, **({"settings": SETTINGS, "memory_gib": 10.0} | changes))


def only(found: list[Advice], rule: str) -> Advice:
    (one,) = found
    assert one.rule == rule, found
    return one


def wild(step: float, at: tuple[int, ...] = (100, 140, 200)) -> float:
    return falling(step) + 3 * (step in at)


def cosine(t: float) -> float:
    return 0.55 + 0.45 * math.cos(math.pi * t)


# ---- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [0, 1, 5])
def test_a_few_points_say_nothing(points: int) -> None:
    """Even of a loss that doubles, memory that is full and one evaluation."""
    history = [(step, {"train/loss": 2.0**step, "val/loss": 2.0**step, "memory/peak_gib": 9.9}) for step in range(points)]
    assert advise(history, facts(max(0, points - 1))) == []


def test_what_is_not_a_number_says_nothing() -> None:
    nowhere = [(step, dict.fromkeys(metrics, math.nan)) for step, metrics in made_up()]
    assert advise(nowhere, facts()) == []
    assert advise([(step, dict.fromkeys(metrics, math.inf)) for step, metrics in made_up()], facts()) == []
    holes = [(step, metrics | {"train/loss": math.nan} if step % 7 == 0 else metrics) for step, metrics in made_up()]
    assert advise(holes, facts()) == []


def test_settings_that_are_not_known_give_no_override() -> None:
    for history in (made_up(bump(120, 300, 1.5)), made_up(lambda step: 3 - step / 600), made_up(flat, rate=cosine)):
        (one,) = advise(history, RunFacts("a run", "finished", 300))
        assert one.override is None


def healthy(seed: int) -> tuple[list[tuple[int, dict[str, float]]], RunFacts]:
    """A noisy exponential that ends within 3 % of where it leads (3.5 to 5.5 time constants), at a constant or a falling rate."""
    rng = np.random.default_rng(seed)
    steps = int(rng.choice([100, 300, 1000]))
    tau, fall, end = steps / rng.uniform(3.5, 5.5), rng.uniform(1, 2.5), rng.uniform(0.5, 3)
    return made_up(
        lambda step: fall * math.exp(-step / tau) + end,
        steps=steps,
        every=steps // int(rng.choice([10, 20])),
        warmup=steps // int(rng.choice([10, 30])),
        rate=cosine if rng.random() < 0.5 else lambda t: 1.0,
        noise=rng.uniform(0.01, 0.1),
        valid_noise=rng.uniform(0.001, 0.01),
        seed=seed,
        val__forgetting__new=lambda step: -fall * step / steps,
        val__forgetting__old=lambda step: 0.02 * math.sin(step),
    ), facts(steps)


def test_no_rule_speaks_of_a_healthy_run() -> None:
    """0 false alarms in 50 runs: by the rule of three, below 6 % with 95 % confidence. (In 1,000 there is one, of the budget.)"""
    assert [found for seed in range(50) if (found := advise(*healthy(seed)))] == []


# ---- the learning rate ------------------------------------------------------------------------------------------------


def norms(*high: int) -> Curve:
    return lambda step: 9.0 if step in high else 0.7


def test_spikes_of_loss_and_gradient_halve_the_rate() -> None:
    one = only(advise(made_up(wild, valid=falling, train__grad_norm=norms(100, 140, 200)), facts()), "learning_rate_too_high")
    assert (one.severity, one.override) == ("problem", "optimizer.lr=2e-3")
    assert one.why == "train/loss spiked 3 times, first at step 100"


@pytest.mark.parametrize("high", [(100, 140), ()])
def test_two_spikes_or_odd_rows_are_none(high: tuple[int, ...]) -> None:
    spiked = (lambda step: wild(step, high)) if high else wild  # the loss alone, at three steps: data
    assert advise(made_up(spiked, valid=falling, train__grad_norm=norms(*high)), facts()) == []


def bump(start: int, end: int, height: float) -> Curve:
    return lambda step: falling(step) + (height if start < step <= end else 0.0)


def test_a_rise_that_stays_is_told_with_its_size() -> None:
    """From 1 + 2e^(-120/80) = 1.45 a rise by 1.5 nats, less what the curve falls until the block that is highest."""
    one = only(advise(made_up(bump(120, 300, 1.5)), facts()), "learning_rate_too_high")
    assert one.why.startswith("its mean rose by 1.4") and one.why.endswith("and did not come down again")


def test_gradients_that_are_clipped_and_grow() -> None:
    """Clipped at 1 from step 45 on, where it is 1.45: from a median of about 1.9 in the first third to 3.5 … in the last."""
    grown = made_up(train__grad_norm=lambda step: 1 + step / 100 + (step / 150) ** 3)
    assert "100% of the gradients were clipped" in only(advise(grown, facts()), "learning_rate_too_high").why
    assert advise(made_up(train__grad_norm=lambda step: 4.0 + step / 1000), facts()) == []
    assert advise(made_up(train__grad_norm=lambda step: 0.1 + step / 1000), facts()) == []


def test_an_early_rise_that_heals_is_the_warmup_s() -> None:
    """A warm-up of 3 of 300 steps, 1 %: three times is 3 %, and 5 % the least."""
    one = only(advise(made_up(bump(15, 60, 1.5), warmup=3), facts()), "warmup_too_short")
    assert (one.override, one.severity) == ("schedule.warmup=5%", "problem")
    assert one.why.endswith("the warm-up is 3 of 300 steps")
    longer = only(advise(made_up(bump(30, 60, 2.0), warmup=12), facts()), "warmup_too_short")
    assert longer.override == "schedule.warmup=12%"  # 12 of 300 is 4 %
    only(advise(made_up(bump(30, 60, 2.0), warmup=24), facts()), "learning_rate_too_high")  # 8 % are long enough
    only(advise(made_up(bump(15, 300, 3.0), warmup=3), facts()), "learning_rate_too_high")  # it never heals


@pytest.mark.parametrize("rate", [lambda t: 1.0, cosine])
def test_a_straight_line_asks_for_a_higher_rate_and_for_nothing_else(rate: Curve) -> None:
    """0.5 nats in 300 steps, evenly. That the budget is too short too would be a second remedy for the same."""
    one = only(advise(made_up(lambda step: 3 - step / 600, rate=rate), facts()), "learning_rate_too_low")
    assert (one.override, one.severity) == ("optimizer.lr=1.2e-2", "hint")


def test_a_line_that_bends_or_drowns_in_noise_does_not() -> None:
    bent = made_up(lambda step: 1 + 2 * math.exp(-step / 150))  # e^(-1) of the first half in the second
    assert "learning_rate_too_low" not in {one.rule for one in advise(bent, facts())}
    # Bent while the rate is high, up to step 117 (cos πt = 1/3), and lowered by its fall afterwards.
    annealed = made_up(lambda step: 3.5 + 0.5 * math.exp(-step / 30) - max(0, step - 117) / 300, rate=cosine)
    assert "learning_rate_too_low" not in {one.rule for one in advise(annealed, facts())}
    drowned = made_up(lambda step: 3 - step / 600, valid_noise=0.1)
    assert "learning_rate_too_low" not in {one.rule for one in advise(drowned, facts())}
    unfinished = made_up(lambda step: 3 - step / 600)
    assert advise(unfinished, facts(steps=600)) == []


# ---- how long ---------------------------------------------------------------------------------------------------------


def test_overfitting_is_told_from_its_step() -> None:
    """Lowest at 150: 2e^(-150/80) + 1.1 = 1.407; at the end, over the last four of 21 evaluations, 0.004 · 127.5 = 0.51 and 1.16 more."""
    rising = made_up(valid=lambda step: falling(min(step, 150)) + 0.1 + max(0, step - 150) * 0.004)
    one = only(advise(rising, facts()), "overfitting")
    assert one.headline == "Overfitting from step 150 on"
    assert (one.override, one.severity) == ("'trainer.budget=150 steps'", "problem")
    assert "val/loss rose from 1.4" in one.why


@pytest.mark.parametrize(
    ("train", "valid", "valid_noise"),
    [
        (falling, lambda step: falling(step) + 0.1 + max(0, step - 285) * 0.01, 0.001),  # the last evaluation alone
        (falling, lambda step: falling(step) + 0.1 + max(0, step - 200) * 2e-4, 0.02),  # within the noise
        (lambda step: falling(min(step, 150)), lambda step: falling(min(step, 150)) + max(0, step - 150) * 0.004, 0.001),  # train stands
    ],
)
def test_a_rise_of_validation_alone_is_not_overfitting(train: Curve, valid: Curve, valid_noise: float) -> None:
    assert "overfitting" not in {one.rule for one in advise(made_up(train, valid, valid_noise=valid_noise), facts())}


def flat(step: float) -> float:
    return 2 * math.exp(-step / 20) + 1


def test_on_a_plateau_a_high_rate_is_let_down_and_a_low_one_stopped() -> None:
    """Two thirds of 300 steps are 200."""
    one = only(advise(made_up(flat), facts()), "plateau")
    assert one.override == "schedule.cooldown=20%" and "the learning rate still was 4e-3" in one.why
    assert only(advise(made_up(flat, rate=cosine), facts()), "plateau").override == "'trainer.budget=200 steps'"


def test_what_still_falls_or_may_be_noise_is_no_plateau() -> None:
    assert advise(made_up(falling), facts()) == []
    assert advise(made_up(flat, valid_noise=0.1), facts()) == []
    assert advise(made_up(flat), facts(steps=400)) == []


def test_a_curve_that_was_cut_short_gets_twice_the_budget() -> None:
    """τ = 150: thirds of 100 steps fall to r = e^(-2/3) = 0.513; the last one by 2(e^(-4/3) - e^(-2)) = 0.2565, so that twice as long
    brings 0.2565 (0.513 + 0.264 + 0.135) = 0.234."""
    one = only(advise(made_up(lambda step: 2 * math.exp(-step / 150) + 1, valid_noise=0.0), facts()), "budget_too_short")
    assert one.override == "'trainer.budget=600 steps'"
    assert one.why.endswith("and by 0.257 in the last: by that, twice as long brings about 0.23 nats more")
    epochs = facts(settings={"trainer.budget": "1.5 epochs"})
    assert advise(made_up(lambda step: 2 * math.exp(-step / 150) + 1), epochs)[0].override == "'trainer.budget=3 epochs'"
    many = facts(settings={"trainer.budget": "617 epochs"})
    assert advise(made_up(lambda step: 2 * math.exp(-step / 150) + 1), many)[0].override == "'trainer.budget=1230 epochs'"  # not 1.23e+03


# ---- the data ---------------------------------------------------------------------------------------------------------

LEARNT: dict[str, Curve] = {"val__forgetting__new": lambda step: -step / 300}


@pytest.mark.parametrize(
    ("source", "override"),
    [("old", "data.sources.old.weight=2"), ("seen", "data.sources.seen.weight=0.211")],  # 5 % of all: 4 · 0.05/0.95
)
def test_a_source_that_is_forgotten_gets_more_weight(source: str, override: str) -> None:
    history = made_up(**LEARNT, **{f"val__forgetting__{source}": lambda step: step / 1000})
    one = only(advise(history, facts()), "forgetting")
    assert (one.headline, one.override, one.severity) == (f"{source} is being forgotten", override, "problem")
    assert one.why == "its validation loss is 0.300 nats above the base's, 0.299 one evaluation before"


def test_forgetting_counts_at_the_best_checkpoint() -> None:
    late = made_up(**LEARNT, val__forgetting__old=lambda step: max(0, step - 200) / 500)
    assert advise(late, facts(best_step=200)) == []
    assert advise(late, facts(best_step=300)) != []


def test_little_forgetting_or_of_all_is_none() -> None:
    assert advise(made_up(**LEARNT, val__forgetting__old=lambda step: 0.04), facts()) == []
    assert advise(made_up(val__forgetting__new=lambda s: 0.3, val__forgetting__old=lambda s: 0.2), facts()) == []


def test_gradients_that_jump_ask_for_more_rows() -> None:
    """By e^±1 in turn, and a loss of 1 to 3 with noise of 0.2. The peak is 5 of 10 GiB, so the rows come in more passes: 4 · 8."""
    jumping: dict[str, Curve] = {"train__grad_norm": lambda step: 0.3 * math.exp(step % 2)}
    one = only(advise(made_up(**jumping, noise=0.2), facts()), "noisy_gradients")
    assert one.override == "trainer.accumulate=32"
    assert only(advise(made_up(**jumping, noise=0.2), facts(memory_gib=100.0)), "noisy_gradients").override == "trainer.micro_batch=16"
    assert advise(made_up(**jumping, noise=0.01), facts()) == []
    assert advise(made_up(noise=0.2), facts()) == []


# ---- the machine and the evaluations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "changes", "found"),
    [
        (5.2, {}, ("memory_short", "trainer.micro_batch=2 trainer.accumulate=16")),
        (5.2, {"trainer.micro_batch": 1}, ("memory_short", "trainer.gradient_checkpointing=true")),
        (5.2, {"trainer.micro_batch": 1, "trainer.gradient_checkpointing": True}, ("memory_short", None)),
        (30.0, {}, ("memory_left", "trainer.micro_batch=16 trainer.accumulate=2")),  # 5 · 4 is below 24, 5 · 8 is not
        (500.0, {}, ("memory_left", "trainer.micro_batch=32 trainer.accumulate=1")),
        (30.0, {"trainer.accumulate": 1}, None),
        (10.0, {}, None),
        (None, {}, None),
    ],
)
def test_memory_that_is_short_or_left(limit: float | None, changes: dict[str, Any], found: Any) -> None:
    advice = advise(made_up(), facts(memory_gib=limit, settings=SETTINGS | changes))
    assert [(one.rule, one.override) for one in advice] == ([found] if found else [])


def test_few_evaluations_are_told_of_a_whole_run() -> None:
    for every in (100, 75):  # 3 and 4 of them
        one = only(advise(made_up(every=every), facts()), "evaluations_too_rare")
        assert one.override == "trainer.eval_every=10%"
    assert advise(made_up(every=100), facts(steps=900)) == []
    assert advise(made_up(every=60), facts()) == []


def test_a_validation_set_that_can_t_tell_is_too_small() -> None:
    """8 rows of one target, off by ±0.04 in turn: √(8/7 · 8 · 0.04²)/8 = 0.0151. The words are those of the choice."""

    def why(tilt: float) -> str:
        rows = [[(1.0, 1)] * 8, [(1.0 + (tilt if n % 2 else -tilt) - 1e-3, 1) for n in range(8)]]
        return choose([Saved(Path(), 150, 1.0, rows[0]), Saved(Path(), 300, 0.999, rows[1])], 2).why

    one = only(advise(made_up(), facts(best_why=why(0.04))), "validation_too_small")
    assert one.override == "evaluation.max_tokens=20000" and "0.015 nats" in one.why
    assert advise(made_up(), facts(best_why=why(0.004))) == []


# ---- together ---------------------------------------------------------------------------------------------------------


def test_problems_come_first() -> None:
    found = advise(made_up(flat, **LEARNT, val__forgetting__old=lambda step: step / 1000), facts())
    assert [(one.rule, one.severity) for one in found] == [("forgetting", "problem"), ("plateau", "hint")]


def test_no_two_rules_pull_the_same_setting_both_ways() -> None:
    """Random mixtures of all that is made up above."""
    up = {"learning_rate_too_low", "budget_too_short", "memory_left"}
    down = {"learning_rate_too_high", "overfitting", "plateau", "memory_short"}
    spoken = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        base = [falling, flat, wild, bump(120, 300, 1.5), bump(15, 60, 1.5), lambda step: 3 - step / 600][rng.integers(6)]
        slope = rng.choice([0.0, 0.004])
        history = made_up(
            base,
            valid=lambda step, base=base, slope=slope: base(step) + max(0, step - 150) * slope,  # type: ignore[misc]
            warmup=int(rng.choice([3, 30])),
            noise=rng.choice([0.02, 0.2]),
            train__grad_norm=lambda step, r=rng: math.exp(r.normal(0, 1)) + step / 100,  # type: ignore[misc]
            seed=seed,
        )
        rules = {one.rule for one in advise(history, facts(memory_gib=rng.choice([5.2, 30.0])))}
        spoken |= rules
        for one, other in (
            ("learning_rate_too_low", "learning_rate_too_high"),
            ("learning_rate_too_low", "warmup_too_short"),
            ("learning_rate_too_low", "overfitting"),
            ("budget_too_short", "overfitting"),
            ("budget_too_short", "plateau"),
            ("memory_left", "memory_short"),
            ("memory_left", "noisy_gradients"),
        ):
            assert not {one, other} <= rules, seed
    assert len(spoken & (up | down)) >= 5  # the mixtures do make rules speak


def test_every_rule_says_what_it_does() -> None:
    assert all(rule.__doc__ and len(rule.__doc__) > 100 for rule in RULES)
