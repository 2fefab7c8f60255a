"""The numbers behind the plots, each worked out by hand."""

import math

import numpy as np
import pytest

from forge.reports import curves


def test_a_straight_line_is_smoothed_to_itself():
    """Without lag, and to both ends."""
    line = 3 - 0.01 * np.arange(1000)
    assert curves.smooth(line) == pytest.approx(line)


def test_smoothing_fits_a_line_through_the_points_around_each():
    """Of 100 points the window reaches 10 to each side, a fifth of the way to the start, and as far as there are points."""
    values = np.random.default_rng(0).normal(size=100) + 50
    smooth = curves.smooth(values)
    for i, reach in ((7, 1), (20, 4), (60, 10), (97, 10), (99, 10)):
        around = np.arange(i - reach, min(i + reach, 99) + 1)
        assert smooth[i] == pytest.approx(np.polyval(np.polyfit(around, values[around], 1), i))
    assert smooth[:5] == pytest.approx(values[:5])


def test_too_few_points_are_not_smoothed():
    assert curves.smooth(np.array([4.0, 2.0, 8.0])).tolist() == [4, 2, 8]
    assert curves.smooth(np.array([])).tolist() == []


@pytest.mark.parametrize("spike", [50.0, -50.0])
def test_decimation_keeps_a_spike_and_invents_nothing(spike):
    x, y = np.arange(10_000.0), np.sin(np.arange(10_000.0))
    y[4321] = spike
    few_x, few_y = curves.decimate(x, y, limit=200)
    assert 4321 in few_x
    assert len(few_x) <= 200
    assert few_x[0] == 0 and few_x[-1] == 9999
    assert (np.diff(few_x) > 0).all()
    assert (few_y == y[few_x.astype(int)]).all()


def test_few_points_stay_as_they_are():
    x = np.arange(5.0)
    assert curves.decimate(x, x * 2, limit=5)[1].tolist() == [0, 2, 4, 6, 8]


def test_labels_move_apart_around_their_middle():
    """5, 5 and 5 with a gap of 2: 3, 5, 7 keep the mean at 5, and 20 is far enough to stay."""
    assert curves.spread([5, 20, 5, 5], 2, 0, 100) == pytest.approx([3, 20, 5, 7])


def test_labels_keep_their_distance_at_the_borders():
    """0.98, 1 and 1 under a ceiling of 1: the lowest has to go down to 0.8. 0 and 0.01 on the floor: 0 and 0.1."""
    assert curves.spread([1, 0.98, 1], 0.1, 0, 1) == pytest.approx([0.9, 0.8, 1.0])
    assert curves.spread([0.01, 0.0], 0.1, 0, 1) == pytest.approx([0.1, 0.0])


def test_any_labels_keep_distance_order_and_range():
    rng = np.random.default_rng(0)
    for _ in range(50):
        places = rng.random(9) ** 3
        out = np.array(curves.spread(places, 0.1, 0, 1))
        assert (np.argsort(out) == np.argsort(places)).all()
        assert np.diff(np.sort(out)).min() > 0.1 - 1e-9
        assert out.min() > -1e-9 and out.max() < 1 + 1e-9


def test_no_labels():
    assert curves.spread([], 1, 0, 1) == []


def test_nonfinite_values_are_skipped_and_counted():
    history = [(0, {"a": 1.0}), (1, {"a": math.nan}), (2, {"a": math.inf, "b": -math.inf}), (3, {"a": 4.0})]
    steps, values = curves.finite(history, "a")
    assert (steps.tolist(), values.tolist()) == ([0, 3], [1, 4])
    assert curves.count_nonfinite(history) == 3


def test_of_two_values_at_a_step_the_later_stands_and_steps_are_sorted():
    steps, values = curves.finite([(2, {"a": 1.0}), (1, {"a": 2.0}), (2, {"a": 3.0})], "a")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [2, 3])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (950, "950"),
        (1000, "1k"),
        (1200, "1.2k"),
        (12_500, "12.5k"),
        (999_999, "1M"),
        (3e9, "3G"),
        (-1200, "-1.2k"),
        (1e30, "1.0e+30"),
    ],
)
def test_compact(value, text):
    assert curves.compact(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89, "89 s"), (100, "2 min"), (3590, "1 h 0 min"), (12_000, "3 h 20 min"), (86_400, "1 d 0 h"), (187_200, "2 d 4 h")],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert curves.duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.0625, "+0.06"), (0, "+0.00"), (-1234, "-1.23k")])
def test_signed(value, text):
    assert curves.signed(value, 2) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (3e-4, "3e-4"), (2.5e-4, "2.5e-4"), (0.1, "1e-1"), (1, "1e0")])
def test_scientific(value, text):
    assert curves.scientific(value) == text


def test_a_flat_line_is_not_magnified():
    """Values 2.000 and 2.001: 1% of 2.001 is 0.02001 wide, with 6% of that as margin on either side."""
    low, high = curves.limits([2.0, 2.001])
    assert high - low == pytest.approx(0.02001 * 1.12)
    assert (low + high) / 2 == pytest.approx(2.0005)


def test_gap_uses_the_training_loss_up_to_the_last_evaluation():
    """Three points are not smoothed. The last evaluation, 2.5 at step 2, stands against 2.0 at step 2, not 1.0 at step 3."""
    history = [(0, {"val/loss": 9.0}), (1, {"train/loss": 3.0}), (2, {"train/loss": 2.0, "val/loss": 2.5}), (3, {"train/loss": 1.0})]
    assert curves.generalisation_gap(history) == pytest.approx(0.5)
    assert [array.tolist() for array in curves.gaps(history)] == [[2], [0.5]]  # there is no training loss yet at step 0
    assert curves.generalisation_gap(history[:1]) is None
    assert curves.generalisation_gap([(0, {"val/loss": 9.0}), (1, {"train/loss": 3.0})]) is None


def test_gap_takes_the_plain_cross_entropy_where_the_loss_holds_more():
    """2.5 of validation against 2.25 nats; the z-loss on top makes the objective 3.0."""
    history = [(1, {"train/loss": 3.0, "train/cross_entropy": 2.25}), (1, {"val/loss": 2.5})]
    assert curves.generalisation_gap(history) == pytest.approx(0.25)


def test_gap_weighs_the_sources_as_they_were_trained_on():
    """Points are not smoothed. Validation losses of 2 and 4 nats. Of 100 targets 80 and 20: 0.8 · 2 + 0.2 · 4 = 2.4. Of the next 100 40
    and 60 (120 and 80 of 200 in all): 0.4 · 2 + 0.6 · 4 = 3.2. A source of weight 0 is measured, and has no part."""
    valid = {"val/loss": 3.6, "val/loss/talk": 2.0, "val/loss/text": 4.0, "val/loss/other": 9.0}
    history = [
        (1, {"train/loss": 2.0, "train/tokens": 100, "train/share/talk": 0.8, "train/share/text": 0.2, **valid}),
        (2, {"train/loss": 2.0, "train/tokens": 200, "train/share/talk": 0.6, "train/share/text": 0.4, **valid}),
    ]
    assert curves.gaps(history)[1] == pytest.approx([0.4, 1.2])
    assert curves.gaps([(step, {**metrics, "val/loss/text": math.nan}) for step, metrics in history])[1] == pytest.approx([1.6, 1.6])


def test_gap_weighs_them_by_the_reports_that_the_training_loss_is_smoothed_over():
    """Of twenty, those of steps 18 to 20 at the end. One source gives 30 targets in each of the first 17 and none later, so the validation
    loss of the other, 1.5, stands alone against 1.0."""
    counts = [(30 * min(step, 17), 10 * step) for step in range(1, 21)]
    history = [
        (step, {"train/loss": 1.0, "train/tokens": a + b, "train/share/a": a / (a + b), "train/share/b": b / (a + b)})
        for step, (a, b) in enumerate(counts, start=1)
    ]
    history.append((20, {"val/loss": 3.0, "val/loss/a": 5.0, "val/loss/b": 1.5}))
    assert curves.generalisation_gap(history) == pytest.approx(0.5)


def test_best_step_is_the_checkpoint_or_else_the_lowest():
    history = [(0, {"val/loss": 9.0}), (5, {"val/loss": 2.0}), (9, {"val/loss": 3.0}), (10, {"val/loss": math.nan})]
    assert curves.best_step(history, None) == 5
    assert curves.best_step(history, 9) == 9
    assert curves.best_step([], None) is None
    assert curves.value_at(history, "val/loss", 9) == 3.0
    assert curves.value_at(history, "val/loss", 10) is None


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.2, 9, [0.2, 0.5, 1, 2, 5]),
        (0.2, 60, [0.3, 1, 3, 10, 30]),
        (1e-3, 2e6, [1e-3, 1e-1, 10, 1e3, 1e5]),
        (94, 260, [100, 150, 200]),
        (1, 1e300, [1, 1e64, 1e128, 1e192, 1e256]),
    ],
)
def test_log_ticks_are_few(low, high, ticks):
    assert curves.log_ticks(low, high) == pytest.approx(ticks)
