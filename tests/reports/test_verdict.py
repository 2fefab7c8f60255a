"""Which of two models is better: right on planted differences, as sure as it says, and as independent formulas have it."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from forge.reports import verdict
from forge.reports.verdict import Difference, adjusted, between, collapsed

NORMAL = NormalDist()
Planted = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def plant(draw: np.random.Generator, documents: int, change: float, noise: float = 0.06) -> Planted:
    """losses of two models, sizes and strata: lengths lognormal with a heavy tail, levels lognormal by document, the second model's loss
    off by `change` as a share, and noise a token that shrinks with a document's length, but never below a third."""
    sizes_N = np.maximum(4, draw.lognormal(5, 1.1, documents)).round()
    strata_N = np.sort(draw.choice(3, size=documents, p=[0.6, 0.3, 0.1]))
    first_N = sizes_N * draw.lognormal(0.9, 0.25, documents) * (1 + 0.1 * strata_N)
    spread_N = noise * np.sqrt(1 / 9 + 8 / 9 / np.sqrt(sizes_N / 4))
    return first_N, first_N * (1 + change + draw.normal(0, spread_N)), sizes_N, strata_N


def told(first_N: np.ndarray, second_N: np.ndarray, sizes_N: np.ndarray, strata_N: np.ndarray) -> str:
    found = between(first_N[None], second_N[None], sizes_N, strata_N)
    return verdict.word(found, found.p, 0.95)


def test_verdicts_on_a_hundred_planted_pairs_are_right_as_often_as_they_claim() -> None:
    """50 without a difference: at most as many false alarms as chance allows. 50 with one of 1 %, better and worse in turn: found as often
    as their own noise, which is known here, lets a test of this size find them; none is told the wrong way round."""
    draw = np.random.default_rng(0)
    same = [told(*plant(draw, int(draw.integers(100, 600)), 0.0)) for _ in range(50)]
    assert sum(word != "can't tell" for word in same) <= stats.binom.ppf(0.99, 50, 0.05)

    found, power = 0, []
    for number in range(50):
        change = 0.01 if number % 2 else -0.01
        first_N, second_N, sizes_N, strata_N = plant(draw, int(draw.integers(100, 600)), change)
        word = told(first_N, second_N, sizes_N, strata_N)
        assert word != ("better" if change > 0 else "worse")
        found += word != "can't tell"
        spread_N = 0.06 * np.sqrt(1 / 9 + 8 / 9 / np.sqrt(sizes_N / 4))
        z = 0.01 * first_N.sum() / math.sqrt(np.square(first_N * spread_N).sum())
        power.append(NORMAL.cdf(z - NORMAL.inv_cdf(0.975)))
    assert 25 < sum(power) < 49  # some are hard
    assert found >= sum(power) - 2.33 * math.sqrt(sum(each * (1 - each) for each in power))


@pytest.mark.parametrize("documents", [30, 100])
def test_intervals_hold_the_truth_as_often_as_they_say(documents: int) -> None:
    """Also where a few long documents make up much of the text: 95 % of the tries within what chance allows."""
    draw, held, tries = np.random.default_rng(1), 0, 0
    for _ in range(250):
        first_N, second_N, sizes_N, strata_N = plant(draw, documents, 0.0)
        found = between(first_N[None], second_N[None], sizes_N, strata_N)
        tries += not found.unsure
        held += found.low <= 0 <= found.high
        assert (found.p > 0.05) == (not found.low > 0 and not found.high < 0) or found.unsure
    assert tries > 180
    assert stats.binom.ppf(0.01, tries, 0.95) <= held <= stats.binom.ppf(0.999, tries, 0.95)


def ratio(difference: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
    return difference.sum(axis=axis) / sizes.sum(axis=axis)


def test_limits_are_those_of_another_implementation() -> None:
    """scipy's percentile bootstrap of the ratio, which they come to where documents are many and alike."""
    draw = np.random.default_rng(7)
    sizes_N = draw.integers(20, 200, 1500).astype(float)
    difference_N = sizes_N * (draw.normal(0, 0.3, 1500) + draw.lognormal(0, 0.4, 1500) - 1)
    found = between(np.zeros((1, 1500)), difference_N[None], sizes_N, np.zeros(1500, int))
    draws = np.random.default_rng(0)
    theirs = stats.bootstrap((difference_N, sizes_N), ratio, paired=True, n_resamples=9999, batch=500, method="percentile", rng=draws)
    assert found.value == pytest.approx(difference_N.sum() / sizes_N.sum())
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.03 * (found.high - found.low))


def test_sources_are_strata() -> None:
    """Against the variance of the combined ratio, worked out source by source. They differ, which is no noise: the mix is fixed."""
    first_N, second_N, sizes_N, strata_N = plant(np.random.default_rng(2), 400, 0.0)
    sizes_N = np.minimum(sizes_N, 300)
    second_N = second_N + sizes_N * np.array([-0.3, 0.5, 0.02])[strata_N]
    difference_N = second_N - first_N
    found = between(first_N[None], second_N[None], sizes_N, strata_N)
    variance, unstratified = 0.0, (difference_N - found.value * sizes_N).var(ddof=1) * 400 / sizes_N.sum() ** 2
    for stratum in range(3):
        residual = (difference_N - found.value * sizes_N)[strata_N == stratum]
        variance += len(residual) * residual.var(ddof=1) / sizes_N.sum() ** 2
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.08)
    assert variance < 0.6 * unstratified
    several = between(np.stack([first_N, first_N]), np.stack([second_N, second_N]), sizes_N, strata_N)  # seeds that don't differ
    assert several.high - several.low == pytest.approx(2 * 1.966 * math.sqrt(variance), rel=0.02)


def test_p_is_the_level_at_which_the_interval_touches_zero() -> None:
    """Of skewed differences, one with the mean below 0 and one above."""
    draw = np.random.default_rng(7)
    sizes_N = draw.integers(20, 200, 60).astype(float)
    share_N = draw.lognormal(0, 0.8, 60)
    for middle in (0.85, 1.15):
        difference_N = sizes_N * (share_N - middle * (share_N * sizes_N).sum() / sizes_N.sum())
        found = between(np.zeros((1, 60)), difference_N[None], sizes_N, np.zeros(60, int))
        assert 0.01 < found.p < 0.3
        touching = between(np.zeros((1, 60)), difference_N[None], sizes_N, np.zeros(60, int), confidence=1 - found.p)
        assert min(abs(touching.low), abs(touching.high)) < 0.005 * (found.high - found.low)


def test_many_documents_give_the_same_as_their_sums() -> None:
    """30,000 are resampled as 4,000 sums."""
    first_N, second_N, sizes_N, _ = plant(np.random.default_rng(3), 30_000, 0.001)
    found = between(first_N[None], second_N[None], sizes_N, np.zeros(30_000, int))
    residual = second_N - first_N - found.value * sizes_N
    error = residual.std(ddof=1) * math.sqrt(30_000) / sizes_N.sum()
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), abs=0.15 * error)


def seeded(draw: np.random.Generator, runs: int, losses_N: np.ndarray, between_seeds: float) -> np.ndarray:
    """losses_RN: each run off by a share of its own, and each document by noise."""
    shares_RN = draw.normal(0, between_seeds, (runs, 1)) + draw.normal(0, 0.02, (runs, len(losses_N)))
    return losses_N * (1 + shares_RN)


@pytest.mark.parametrize(("runs", "between_seeds"), [((2, 2), 0.004), ((3, 3), 0.004), ((5, 3), 0.0), ((1, 4), 0.004)])
def test_with_seeds_intervals_hold_the_truth_as_often_as_they_say(runs: tuple[int, int], between_seeds: float) -> None:
    draw = np.random.default_rng(4)
    held = 0
    for _ in range(1000):
        first_N, second_N, sizes_N, strata_N = plant(draw, 150, 0.0, noise=0.02)
        losses = [seeded(draw, count, each_N, between_seeds) for count, each_N in zip(runs, (first_N, second_N), strict=True)]
        found = between(*losses, sizes_N, strata_N)
        held += found.low <= 0 <= found.high
        assert (found.p > 0.05) == (found.low <= 0 <= found.high)
    assert held >= stats.binom.ppf(0.01, 1000, 0.95)


@pytest.mark.parametrize("count", [2, 4])
def test_runs_of_the_same_seeds_are_paired(count: int) -> None:
    """Seeds move both sides by ten times the difference to be told. Without noise of documents it is the t test of pairs."""
    draw, held, told_apart = np.random.default_rng(5), 0, 0
    for _ in range(1000):
        first_N, second_N, sizes_N, strata_N = plant(draw, 150, 0.0, noise=0.02)
        seeds = draw.normal(0, 0.03, (count, 1))
        losses = [each_N * (1 + seeds) + seeded(draw, count, each_N, 0.001) - each_N for each_N in (first_N, second_N)]
        found = between(*losses, sizes_N, strata_N, matched=True)
        held += found.low <= 0 <= found.high
        found = between(losses[0], 0.99 * losses[1], sizes_N, strata_N, matched=True)
        told_apart += verdict.word(found, found.p, 0.95) == "better"
    assert held >= stats.binom.ppf(0.01, 1000, 0.95)
    assert told_apart > (700 if count == 4 else 150)

    first, second = [2.0, 2.1, 1.9], [1.98, 2.07, 1.89]
    sizes_N = np.arange(5.0, 35.0)
    found = between(np.outer(first, sizes_N), np.outer(second, sizes_N), sizes_N, np.zeros(30, int), matched=True)
    assert found.p == pytest.approx(stats.ttest_rel(second, first).pvalue)


def test_where_documents_have_no_noise_seeds_are_judged_by_a_t_test() -> None:
    """Welch's; and where one side is a single run, the one that takes the variances for equal."""
    sizes_N, strata_N = np.arange(5.0, 35.0), np.zeros(30, int)
    first, second = [2.0, 2.01, 1.98, 2.02], [1.96, 1.95, 1.99]
    found = between(np.outer(first, sizes_N), np.outer(second, sizes_N), sizes_N, strata_N)
    theirs = stats.ttest_ind(second, first, equal_var=False)
    assert (found.value, found.p) == pytest.approx((np.mean(second) - np.mean(first), theirs.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    found = between(np.outer(first, sizes_N), np.outer(second[:1], sizes_N), sizes_N, strata_N)
    assert found.p == pytest.approx(stats.ttest_ind(second[:1], first).pvalue)


def test_what_can_not_be_told_says_why() -> None:
    sizes_N, strata_N = np.array([10.0] * 8), np.zeros(8, int)
    losses_N = np.arange(8.0)

    def found(first_N: np.ndarray, second_N: np.ndarray, sizes_N: np.ndarray) -> Difference:
        return between(first_N[None], second_N[None], sizes_N, strata_N[: len(sizes_N)])

    assert "7 documents are too few, 8 are needed" in found(losses_N[:7], losses_N[:7] + 1, sizes_N[:7]).unsure
    # (70 + 1000)² / (7 · 10² + 1000²)
    assert "8 documents that weigh as 1.1 equal ones" in found(losses_N, losses_N + 1, np.array([10.0] * 7 + [1000.0])).unsure
    assert "1 of 8 documents have a loss that is not finite" in found(losses_N, np.array([math.nan, *losses_N[1:]]), sizes_N).unsure
    assert found(losses_N, losses_N, sizes_N) == Difference(0.0, 0.0, 0.0, 1.0)
    assert verdict.word(found(losses_N, losses_N, sizes_N), math.nan, 0.95) == "can't tell"


def test_what_no_resample_crosses_is_as_sure_as_a_t_test_has_it() -> None:
    """30 documents of one size: differences of -1 and -3 in turn are -2 on average, 10.77 standard errors below 0."""
    found = between(np.zeros((1, 30)), np.tile([-1.0, -3.0], 15)[None], np.ones(30), np.zeros(30, int))
    theirs = stats.ttest_1samp(np.tile([-1.0, -3.0], 15), 0).pvalue
    assert theirs < 1e-10 and found.p == pytest.approx(theirs, rel=1) and found.high < -1.5


def test_a_constant_difference_is_certain() -> None:
    sizes_N = np.arange(1.0, 21.0)
    found = between(sizes_N[None], 2 * sizes_N[None], sizes_N, np.zeros(20, int))
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1)) and found.p < 0.01


def test_corrected_p_by_hand() -> None:
    assert adjusted([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjusted([0.9, 0.02]) == pytest.approx([0.9, 0.04])
    with_nan = adjusted([0.02, math.nan, 0.6])
    assert with_nan[::2] == pytest.approx([0.04, 0.6]) and math.isnan(with_nan[1])


@pytest.mark.parametrize(
    ("counts", "sizes"), [((20, 3, 9), (20, 12)), ((3, 3, 30), (6 + 30,)), ((2, 2, 2), (6,)), ((8, 8), (8, 8)), ((4, 4, 9), (8, 9))]
)
def test_small_strata_are_put_together(counts: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    found = collapsed(np.repeat(np.arange(10, 10 + len(counts)), counts))
    assert sorted(np.bincount(found).tolist()) == sorted(sizes)


def test_the_verdict_follows_sign_and_confidence() -> None:
    say: Callable[..., str] = lambda value, p, confidence: verdict.word(Difference(value), p, confidence)  # noqa: E731
    assert [say(-1, 0.04, 0.95), say(1, 0.04, 0.95), say(1, 0.04, 0.99)] == ["better", "worse", "can't tell"]
