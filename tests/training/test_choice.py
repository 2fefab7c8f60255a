"""Which checkpoint is the best. Numbers by hand."""

import math
from pathlib import Path
from statistics import stdev

import mlx.core as mx
import numpy as np
import pytest

import forge  # noqa: F401  (before mlx)
from forge.training import checkpoint
from forge.training.checkpoint import State, Store
from forge.training.choice import CAP, Saved, choose, lowest, noise


def saved(step: int, loss: float, rows: object = ()) -> Saved:
    return Saved(Path(f"step-{step}"), step, loss, rows)  # type: ignore[arg-type]


def test_the_noise_is_the_standard_error_of_the_mean_difference() -> None:
    """Rows of as many targets: the textbook's s / √n, of the differences in nats a target."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(3, 0.5, 40), rng.normal(3, 0.01, 40)
    other += one
    differences = [float(a - b) for a, b in zip(one, other, strict=True)]
    found = noise([(5 * float(x), 5) for x in one], [(5 * float(x), 5) for x in other])
    assert found == pytest.approx(stdev(differences) / math.sqrt(40))


def test_rows_count_by_their_targets() -> None:
    """A difference of 0.01 at every target is no noise, however many a row has; one row of 8 that is off by 0.8 in 36 targets is:
    D = 0.8/36; residuals 0.8 - 8 D = 0.6222 and -t·D, squares 0.3872 + 140 · 0.000494 = 0.4563; √(8/7 · 0.4563)/36 = 0.0201, capped."""
    targets = range(1, 9)
    base = [(3.0 * t, t) for t in targets]
    assert noise([(3.01 * t, t) for t in targets], base) == pytest.approx(0, abs=1e-12)
    off = [(3.0 * t + (0.8 if t == 8 else 0), t) for t in targets]
    assert noise(off, base) == CAP
    half = [(3.0 * t + (0.4 if t == 8 else 0), t) for t in targets]
    assert noise(half, base) == pytest.approx(0.01003, abs=5e-5)


@pytest.mark.parametrize("rows", [7, 0])
def test_too_few_rows_have_no_noise(rows: int) -> None:
    assert noise([(1.0 + n % 2, 1) for n in range(rows)], [(1.0, 1)] * rows) == 0.0


def test_rows_that_do_not_pair_have_no_noise() -> None:
    swings = [(1.0 + n % 2, 1) for n in range(9)]
    assert noise(swings, [(1.0, 1)] * 9) == CAP
    assert noise(swings, [(1.0, 2)] * 9) == noise(swings, [(1.0, 1)] * 10) == noise(swings, []) == 0.0


def rows(loss: float, tilt: float = 0.0) -> list[tuple[float, int]]:
    return [(loss + (tilt if n % 2 else -tilt), 1) for n in range(8)]


def test_within_the_noise_the_earliest_wins_and_says_why() -> None:
    """A tilt of 0.004 on 8 rows: √(8/7 · 8 · 0.004²) / 8 = 0.00151."""
    losses = {60: 3.1100, 90: 3.1023, 100: 3.1022}
    found = [saved(120, 3.1021, rows(3.1021, 0.004)), *(saved(step, loss, rows(loss)) for step, loss in losses.items())][::-1]
    choice = choose(found, 7)
    assert (choice.step, choice.loss, choice.path) == (90, 3.1023, Path("step-90"))
    assert choice.why == "step 90: 3.1023 nats, within the noise (0.0015) of the lowest, 3.1021 at step 120, and earlier"
    assert lowest(found).step == 120


def test_beyond_the_noise_and_later_the_lowest_wins() -> None:
    steady = [saved(90, 3.1023, rows(3.1023)), saved(120, 3.1021, rows(3.1021)), saved(150, 3.1021, rows(3.1021, 0.5))]
    assert choose(steady, 7).why == "step 120: 3.1021 nats, the lowest of 7 saved"


def test_the_earlier_of_equals_wins() -> None:
    assert choose([saved(2, 1.0), saved(1, 1.0), saved(3, 1.5)], 3).step == 1


def test_noise_never_excuses_more_than_the_cap() -> None:
    wild = [saved(1, 3.0 + CAP * 1.01, rows(3.0)), saved(2, 3.0 + CAP * 0.99, rows(3.0)), saved(3, 3.0, rows(3.0, 2.0))]
    assert choose(wild, 3).step == 2


@pytest.mark.parametrize("spread", [0.0, 0.03, 1.0])
def test_over_200_noisy_histories_the_chosen_one_is_never_far_above_the_lowest(spread: float) -> None:
    """validation 2e^(-t/150) + 0.6 + N(0, 0.01), 64 rows of 20 targets that scatter by `spread` nats; all are pruned as the store does."""
    earlier = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        kept: list[Saved] = []
        losses: dict[int, float] = {}
        for step in range(0, 1200, 50):
            loss = 2 * math.exp(-step / 150) + 0.6 + rng.normal(0, 0.01)
            scatter = rng.normal(0, spread, 64)
            each = [(20 * float(loss + x), 20) for x in scatter - scatter.mean()]
            losses[step] = loss
            kept.append(saved(step, loss, each))
            kept = [one for one in kept if one.path in (choose(kept, 0).path, lowest(kept).path, kept[-1].path)]
        best = choose(kept, len(losses))
        assert min(losses.values()) == lowest(kept).loss
        assert best.loss == losses[best.step] <= min(losses.values()) + 0.05
        earlier += best.loss > min(losses.values())
    assert (earlier > 20) == (spread > 0)  # the rule does something


def noisy(seed: int) -> list[tuple[int, float, list[tuple[float, int]]]]:
    """(step, loss, rows) of the evaluations every 10 of 300 steps of 2e^(-t/150) + 0.6 + N(0, 0.01): 40 rows of 1 to 60 targets whose
    means scatter by 0.3 nats, moved so that together they are the noisy loss."""
    rng = np.random.default_rng(seed)
    found = []
    targets = rng.integers(1, 61, 40)
    for step in range(0, 301, 10):
        loss = 2 * math.exp(-step / 150) + 0.6 + rng.normal(0, 0.01)
        means = loss + rng.normal(0, 0.3, 40)
        sums = (means + loss - (means * targets).sum() / targets.sum()) * targets
        found.append((step, float(sums.sum() / targets.sum()), [(float(a), int(b)) for a, b in zip(sums, targets, strict=True)]))
    return found


def test_of_200_noisy_runs_none_chooses_far_above_its_lowest() -> None:
    above = []
    for seed in range(200):
        every = [saved(step, loss, rows) for step, loss, rows in noisy(seed)]
        best = choose(every, len(every))
        assert any((best.path, best.step, best.loss) == (one.path, one.step, one.loss) for one in every)
        above.append(best.loss - lowest(every).loss)
    assert max(above) <= CAP < 0.05
    assert np.mean(np.array(above) > 0) > 0.1  # the rule does something


@pytest.mark.parametrize("keep", [0, 3])
def test_the_store_never_loses_the_one_to_choose(keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it removes on the way is neither the lowest nor what it then takes for the best, which is no further above than the noise."""
    monkeypatch.setattr(checkpoint, "flush", lambda path: None)  # thousands of them take a minute
    for seed in range(5):
        store, losses = Store(tmp_path / f"{keep}-{seed}", "id", {}, keep), []
        for step, loss, rows in noisy(seed):
            store.save({"w": mx.zeros(1)}, {}, State(step=step, loss=loss, rows=rows))
            losses.append(loss)
            best, kept = store.best(), checkpoint.steps(store.folder)
            assert best and best.path.is_dir() and best.step in kept
            assert best.loss == losses[best.step // 10] <= min(losses) + CAP
            assert 10 * losses.index(min(losses)) in kept
            assert len(kept) <= keep + 3
