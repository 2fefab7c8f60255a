"""Is one of two models better on the same text? The difference of their losses with an interval, and a verdict in words.

Documents are the units that vary: tokens of one document are alike, so that taking them for independent would claim far too much. With
d the difference of a document's two sums and t its tokens the losses differ by R = Σd / Σt, a ratio of sums, in which sources are
strata: documents are drawn within each, since the mix is fixed.

One run against one: a percentile bootstrap of the documents, its levels widened as a t interval is against a normal one (Hesterberg 2015,
What Teachers Should Know About the Bootstrap, 4.3), since a bootstrap's own variance is too small. The variance is put right for
documents of much weight (HC2: MacKinnon & White 1985, Some heteroskedasticity-consistent covariance matrix estimators), its degrees of
freedom are Satterthwaite's (1946) with the fourth moment that the documents show: a few long ones count for little more than a few.
It speaks of these two runs: another seed may say otherwise.

Several seeds: seeds vary too, and two to five of them are too few to be drawn from, since a bootstrap of n values has (n-1)/n of their
variance and no tails. Their means get a t interval instead: of the differences seed by seed where both sides have the same seeds, which
share initial weights and order of the data, else Welch's (1947). Its variance is that of the seeds plus that of the documents, with
Satterthwaite's degrees of freedom; what seeds and documents do together is in both terms, so it errs on the wide side (as two-way
bootstraps do: Owen 2007, The pigeonhole bootstrap). Losses of seeds are taken for normal. Two seeds tell large differences only.

Cost: 10,000 resamples of 4,000 units take a second; of more documents, units are sums of some drawn at random. Memory: 20 MB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

FEWEST = 8  # documents, of like weight: with fewer nothing is told
_UNITS = 4000
_CHUNK = 2**20  # drawn at once
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Difference:
    """How much higher the second loss is than the first: below 0 the second is better. `low` to `high` holds the truth as often as the
    confidence says; `p` is that of a difference as far from 0 where there is none. All NaN where `unsure` says why nothing is told."""

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    unsure: str = ""


def between(
    first_RN: np.ndarray, second_RN: np.ndarray, sizes_N: np.ndarray, strata_N: np.ndarray, confidence: float = 0.95, matched: bool = False
) -> Difference:
    """Of two models, each in one run or in several with other seeds. losses_RN: of runs and documents, summed; sizes_N: tokens.

    matched: the runs of both are of the same seeds, in the same order.
    """
    difference_N = second_RN.mean(axis=0) - first_RN.mean(axis=0)
    value = float(difference_N.sum() / sizes_N.sum())
    if lost := int((~np.isfinite(difference_N)).sum()):
        return Difference(value, unsure=f"{lost:,} of {len(sizes_N):,} documents have a loss that is not finite")
    weight = float(sizes_N.sum() ** 2 / np.square(sizes_N).sum())  # Kish's effective number
    if weight < FEWEST:
        some = f"{len(sizes_N):,} documents" + (f" that weigh as {weight:.1f} equal ones" if len(sizes_N) >= FEWEST else "")
        return Difference(value, unsure=f"{some} are too few, {FEWEST} are needed; raise data.valid_fraction or evaluation.full_tokens")
    if not difference_N.any():
        return Difference(value, 0.0, 0.0, 1.0)
    strata_N = collapsed(strata_N)
    if len(first_RN) == len(second_RN) == 1:
        return _bootstrapped(difference_N, sizes_N, strata_N, confidence)
    first_R, second_R = (runs_RN.sum(axis=1) / sizes_N.sum() for runs_RN in (first_RN, second_RN))
    terms = [*_of_seeds(first_R, second_R, matched), _of_documents(difference_N, sizes_N, strata_N)]
    return _with_seeds(terms, value, confidence)


def adjusted(ps: Sequence[float]) -> list[float]:
    """Holm's p values (1979, A simple sequentially rejective multiple test procedure): the chance of even one false alarm is kept.

    adjusted([0.01, 0.04, 0.03]) is 3 · 0.01, then 2 · 0.03, then no less than that: [0.03, 0.06, 0.06]. NaN is no comparison.
    """
    found, highest = list(ps), 0.0
    ranked = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        found[place] = highest
    return found


def word(difference: Difference, p: float, confidence: float) -> str:
    """ "better", "worse" or "can't tell" of the second model."""
    if not p <= 1 - confidence + 1e-12:
        return "can't tell"
    return "better" if difference.value < 0 else "worse"


def collapsed(strata_N: np.ndarray) -> np.ndarray:
    """Strata, numbered from 0, of at least FEWEST documents where there are so many: a smaller one is put to the next smallest, since a
    variance can't be told from so few."""
    strata_N = strata_N.copy()
    while True:
        numbers, counts = np.unique(strata_N, return_counts=True)
        order = np.argsort(counts, kind="stable")
        if len(numbers) == 1 or counts[order[0]] >= FEWEST:
            return np.searchsorted(numbers, strata_N)
        strata_N[strata_N == numbers[order[0]]] = numbers[order[1]]


# ---- two runs ---------------------------------------------------------------------------------------------------------


def _bootstrapped(
    difference_N: np.ndarray, sizes_N: np.ndarray, strata_N: np.ndarray, confidence: float, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Percentile limits at widened levels, and the p value at which they would touch 0."""
    from scipy.special import stdtr, stdtrit

    draw = np.random.default_rng(seed)
    differences_U, sizes_U, strata_U = _units(difference_N, sizes_N, strata_N, draw)
    ratios = _resampled(differences_U, sizes_U, strata_U, resamples, draw)
    variance, freedom = _of_documents(differences_U, sizes_U, strata_U)
    own = float(np.square(_influence(differences_U, sizes_U, strata_U)).sum())  # what resampling gives
    widened = math.sqrt(variance / own) if own else 1.0
    low, high = (
        float(np.quantile(ratios, _NORMAL.cdf(widened * float(stdtrit(freedom, level)))))
        for level in ((1 - confidence) / 2, (1 + confidence) / 2)
    )
    value = float(difference_N.sum() / sizes_N.sum())
    z = abs(_z(ratios, 0.0))
    if min(ratios) > 0 or max(ratios) < 0:  # more than resamples can tell
        z = max(z, abs(value) / math.sqrt(own)) if own else math.inf
    return Difference(value, low, high, 2 * float(stdtr(freedom, -z / widened)))


def _units(difference_N: np.ndarray, sizes_N: np.ndarray, strata_N: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    """differences_U, sizes_U and strata_U, by stratum: of documents; where these are many, of sums of some drawn at random, whose ratio
    varies as theirs does."""
    parts = []
    for stratum in range(strata_N.max() + 1):
        members = draw.permutation(np.flatnonzero(strata_N == stratum))
        units = min(len(members), max(2 * FEWEST, round(_UNITS * len(members) / len(strata_N))))
        begins = np.linspace(0, len(members), units, endpoint=False).astype(int)
        sums = [np.add.reduceat(column[members], begins) for column in (difference_N, sizes_N)]
        parts.append((*sums, np.full(units, stratum)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _resampled(
    differences_U: np.ndarray, sizes_U: np.ndarray, strata_U: np.ndarray, resamples: int, draw: np.random.Generator
) -> np.ndarray:
    """The ratio in each resample."""
    sums = np.zeros((2, resamples))
    for stratum in range(strata_U.max() + 1):
        differences, sizes = differences_U[strata_U == stratum], sizes_U[strata_U == stratum]
        step = max(1, _CHUNK // len(sizes))
        for begin in range(0, resamples, step):
            rows = min(step, resamples - begin)
            chosen = draw.integers(len(sizes), size=(rows, len(sizes)), dtype=np.int32)
            sums[0, begin : begin + rows] += differences[chosen].sum(axis=1)
            sums[1, begin : begin + rows] += sizes[chosen].sum(axis=1)
    return sums[0] / sums[1]


def _z(ratios: np.ndarray, value: float) -> float:
    """The normal quantile of the share of ratios below `value`, which is kept off 0 and 1."""
    below = float((ratios < value).mean() + (ratios == value).mean() / 2)
    least = 0.5 / len(ratios)
    return _NORMAL.inv_cdf(min(max(below, least), 1 - least))


def _influence(difference_N: np.ndarray, sizes_N: np.ndarray, strata_N: np.ndarray) -> np.ndarray:
    """What each document adds to the ratio, off its stratum's mean (Cochran 1977, Sampling Techniques, 6.11)."""
    residual_N = (difference_N - difference_N.sum() / sizes_N.sum() * sizes_N) / sizes_N.sum()
    means = np.bincount(strata_N, residual_N) / np.bincount(strata_N)
    return residual_N - means[strata_N]


def _of_documents(difference_N: np.ndarray, sizes_N: np.ndarray, strata_N: np.ndarray) -> tuple[float, float]:
    """The ratio's variance over documents, and its degrees of freedom: 3 (Σl²)² / Σl⁴ of the influences l, which is N for normal ones."""
    counts_N = np.bincount(strata_N)[strata_N]
    squares_N = np.square(_influence(difference_N, sizes_N, strata_N))
    variance = float((squares_N * counts_N / np.maximum(counts_N - 1, 1) / (1 - sizes_N / sizes_N.sum())).sum())
    fourth = float(np.square(squares_N).sum())
    most = float(len(strata_N) - strata_N.max() - 1)
    return variance, min(most, 3 * float(squares_N.sum()) ** 2 / fourth) if fourth else most


# ---- seeds ------------------------------------------------------------------------------------------------------------


def _with_seeds(terms: Sequence[tuple[float, float]], value: float, confidence: float) -> Difference:
    """terms: what varies, each with a variance and its degrees of freedom."""
    from scipy.special import stdtr, stdtrit

    variance = sum(each for each, _ in terms)
    if variance == 0:
        return Difference(value, value, value, 0.0 if value else 1.0)
    freedom = variance**2 / sum(each**2 / degrees for each, degrees in terms)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance)
    return Difference(value, value - half, value + half, 2 * float(stdtr(freedom, -abs(value) / math.sqrt(variance))))


def _of_seeds(first_R: np.ndarray, second_R: np.ndarray, matched: bool) -> list[tuple[float, float]]:
    """Of the losses of each side's runs: the variance of the difference of their means. A side of one run is taken to vary as the other."""
    if matched:
        return [(float((second_R - first_R).var(ddof=1)) / len(first_R), len(first_R) - 1)]
    sides = (first_R, second_R)
    several = [each for each in sides if len(each) > 1]
    if len(several) == 2:
        return [(float(each.var(ddof=1)) / len(each), len(each) - 1) for each in sides]
    return [(float(several[0].var(ddof=1)) * sum(1 / len(each) for each in sides), len(several[0]) - 1)]
