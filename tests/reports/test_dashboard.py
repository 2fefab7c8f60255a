"""The dashboard for runs of every length, checked on the drawn figure: what is said, where it lies, and that nothing overlaps."""

import functools
import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from forge.reports import html
from forge.reports.dashboard import draw
from forge.reports.palette import DARK, LIGHT
from forge.reports.remedy import Advice
from forge.reports.svg import inline
from forge.spec import RunFacts

CONFIG = {"model": "some-organisation/a-model-with-a-rather-long-name-4bit", "lr": "3e-4", "note": "$\\nope$ is no formula\nnext 日本"}


def made_up(steps, sources=("reference", "stdlib"), every=50, start=10.0):
    """A run whose loss falls as start / (1 + step/50) + 2, with evaluations."""
    rng = np.random.default_rng(0)
    history = []
    for step in range(steps + 1):
        loss = start / (1 + step / 50) + 2
        metrics = {}
        if step:
            metrics |= {"train/loss": loss + rng.normal() / 10, "train/lr": 3e-4, "train/grad_norm": rng.lognormal(), "perf/step_s": 0.5}
            metrics |= {"train/tokens": step * 4096.0, "train/epoch": step / 900, "perf/tokens_per_s": 8000 + rng.normal() * 300}
            metrics |= {"memory/peak_gib": 9.5, "memory/active_gib": 7.0}
        if step % every == 0:
            metrics |= {"val/loss": loss + 0.1, "val/perplexity": math.exp(loss + 0.1), "val/bits_per_byte": loss / 2.4}
            metrics |= {f"val/loss/{name}": loss + 0.02 * i for i, name in enumerate(sources)}
        history.append((step, metrics))
    return history


def facts(steps=400, **changes):
    known = {
        "title": "a run",
        "status": "running",
        "total_steps": steps,
        "config": CONFIG,
        "planned_lr": [3e-4] * steps,
        "unigram_loss": 5.5,
    }
    return RunFacts(**(known | changes))


@functools.lru_cache(maxsize=2)  # figures are large
def drawn_texts(figure):
    """(panel, text, box in pixels) of all that can be read. Tick labels outside the axis limits are not drawn."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = []
    for ax in figure.axes:
        if not ax.axison:
            ticks = []
        else:
            ticks = [tick.label1 for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_major_ticks() if between(tick.get_loc(), axis)]
        hidden = {id(text) for axis in (ax.xaxis, ax.yaxis) for text in axis.findobj(Text)} - {id(ax.xaxis.label)}
        texts = [text for text in ax.findobj(Text) if id(text) not in hidden] + ticks
        # Text.get_window_extent: an annotation's own would include its leader line.
        found += [(ax.get_label(), text.get_text(), Text.get_window_extent(text, renderer)) for text in texts if text.get_text()]
    return found


def between(place, axis):
    low, high = sorted(axis.get_view_interval())
    return low <= place <= high


def words(figure, panel=None):
    return [text for label, text, _ in drawn_texts(figure) if panel in (None, label)]


def panel(figure, name):
    (ax,) = [ax for ax in figure.axes if ax.get_label() == name]
    return ax


def line_values(figure, name):
    return np.concatenate([line.get_ydata() for line in panel(figure, name).lines])


def advised(count, length=60):
    return [Advice("a rule", f"headline {i} " + "w" * length, "0.1 against 0.2", f"lr={i}e-4", "problem") for i in range(count)]


LIMITED = {"settings": {"trainer.clip_norm": 1.0}, "memory_gib": 10.0}
SAVED = [(step, 3.0 + step / 1000) for step in range(0, 401, 50)]
FULL = {"saved": SAVED, "best_step": 50, "best_why": "step 50: within the noise (0.01) of the lowest, 3.0 at step 0, and earlier " * 3}
SPIKES = [(step, {"train/grad_norm": 1e3 if step % 40 == 0 else 0.1, "train/loss": 2.0, "val/loss": 2 + step / 40}) for step in range(90)]
PANELS = {"summary", "loss", "sources", "gap", "perplexity", "lr", "grad_norm", "throughput", "memory"}
DIVERGED = [(step, {name: value * 1e9 for name, value in metrics.items()}) for step, metrics in made_up(60)]
WORDY = facts(title="word-" * 40, status="because " * 40, config={f"key{i}" * 9: "v" * 90 for i in range(60)})
CASES = {
    "nothing": ([], facts(planned_lr=())),
    "plan only": ([], facts()),
    "evaluation at step 0": (made_up(0), facts()),
    "one step": (made_up(1)[1:], facts()),
    "two": (made_up(1, every=1), facts(best_step=0)),
    "twelve": (made_up(12, every=3), facts(12, best_step=12)),
    "running": (made_up(400), facts(1200, best_step=400)),
    "best first": (made_up(400), facts(best_step=0)),
    "baseline far above": (made_up(400, start=0.2), facts(best_step=200, unigram_loss=7.2)),
    "long": (made_up(10_000), facts(10_000, best_step=10_000)),
    "many sources": (made_up(100, [f"source {i} of many" for i in range(30)]), facts(100)),
    "usual words": (made_up(100, [f"customer-support-log{i}" for i in range(4)]), facts(100)),
    "long words": (made_up(100, ["s" * 60]), WORDY),
    "diverged": (DIVERGED, facts(60, best_step=50)),
    "all there is": (made_up(400), facts(1200, **LIMITED, **FULL), advised(9)),
    "long words of all": (made_up(100, ["s" * 60]), replace(WORDY, **LIMITED, **FULL), advised(2, 300)),
    "memorising": (SPIKES, facts(100, **LIMITED)),
    "NaN throughout": ([(step, {**m, "train/loss": math.nan, "train/grad_norm": math.inf}) for step, m in made_up(60)], facts()),
    "no validation": ([(step, {k: v for k, v in m.items() if not k.startswith("val")}) for step, m in made_up(50)], facts()),
}


def shown(case, theme="light"):
    history, known, *advice = CASES[case]
    return draw(history, known, theme, *advice)


@pytest.mark.parametrize("case", CASES)
def test_all_text_lies_inside_and_apart(case):
    figure = shown(case)
    assert {panel for panel, _, _ in drawn_texts(figure)} == PANELS | ({"advice"} if len(CASES[case]) > 2 else set())
    assert_readable(figure)


@pytest.mark.parametrize("case", ["nothing", "many sources", "long words of all", "memorising"])
def test_so_it_does_in_the_panels_of_a_page(case):
    for name in PANELS - {"summary"}:
        assert_readable(html.panel(name, *CASES[case][:2]))


def assert_readable(figure):
    texts = drawn_texts(figure)
    for panel, text, box in texts:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{panel}: {text!r} leaves the figure"
    for (panel, text, box), (other_panel, other_text, other) in itertools.combinations(texts, 2):
        # One pixel is the antialiasing around the glyphs.
        across = min(box.x1, other.x1) - max(box.x0, other.x0) > 1
        down = min(box.y1, other.y1) - max(box.y0, other.y0) > 1
        assert not (across and down), f"{panel}: {text!r} overlaps {other_panel}: {other_text!r}"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_names_of_twenty_characters_are_whole_at_line_ends_and_the_loss_keeps_its_room_from_short_ones(count):
    names = ["customer-support-log", "documentation_python", "wikipedia-german-en2", "instructions_and_txt"][:count]
    history = made_up(100, names)
    for figure in (draw(history, facts(100)), html.panel("sources", history, facts(100))):
        assert {text.partition(" ")[2] for text in words(figure, "sources") if text[-1].isalnum() and "." in text} >= {*names}
    wide, narrow = (panel(draw(made_up(100, some), facts(100)), "loss").bbox.width for some in (["web"] * count, names))
    assert narrow < wide == panel(draw(made_up(100, []), facts(100)), "loss").bbox.width


def test_panels_without_data_say_so():
    figure = draw([], facts(planned_lr=()))
    assert words(figure).count("no data yet") == 8
    assert "no data yet" not in words(draw(made_up(100), facts(100)))


@pytest.mark.parametrize("case", ["nothing", "one step", "two", "long", "many sources", "long words of all"])
def test_any_history_is_drawn_with_few_points(case):
    figure = shown(case)
    figure.canvas.draw()
    assert all(len(line.get_xdata()) <= 2000 for ax in figure.axes for line in ax.lines)


def test_the_numbers_in_words():
    """Best 3.0 at step 2 against a unigram of 5.5: 2.5 below. The gap is that of step 3: 3.4 - 3.1, unsmoothed."""
    history = [
        (0, {"val/loss": 9.0}),
        (1, {"train/loss": 6.0, "train/tokens": 600.0, "train/epoch": 0.25}),
        (2, {"train/loss": 4.0, "val/loss": 3.0, "val/perplexity": 20.09, "val/bits_per_byte": 1.25}),
        (3, {"train/loss": 3.1, "val/loss": 3.4, "train/tokens": 1234.0, "train/epoch": 0.5, "perf/tokens_per_s": 1500.0}),
        (4, {"train/loss": 2.0, "perf/tokens_per_s": 2500.0}),
    ]
    figure = draw(history, facts(8, best_step=2, config={"seed": "17"}))
    said = words(figure, "summary")
    pairs = dict(itertools.pairwise(said))
    assert said[0] == "a run" and said[1] == "running"
    assert pairs["step"] == "4 of 8 (50%)"
    assert (pairs["tokens"], pairs["epochs"]) == ("1.23k", "0.50")
    assert pairs["best loss"] == "3.000 at step 2"
    assert (pairs["perplexity"], pairs["bits per byte"]) == ("20.09", "1.250")
    assert pairs["below unigram"] == "2.500 nats"
    assert pairs["generalisation gap"] == "+0.300 nats"
    assert pairs["seed"] == "17"
    assert "best 3.00 at step 2" in words(figure, "loss")
    assert {"3.40 validation", "2.00 train", "5.50 unigram"} <= set(words(figure, "loss"))
    assert "median 2k" in words(figure, "throughput")


@pytest.mark.parametrize("best", [0, 50, 200, 350, 400])
def test_the_best_label_stays_in_its_panel(best):
    figure = draw(made_up(400), facts(best_step=best))
    ax = panel(figure, "loss")
    (box,) = [box for _, text, box in drawn_texts(figure) if text.startswith("best ") and text.endswith(f"at step {best}")]
    assert ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 + 1


def test_without_a_checkpoint_nothing_is_called_best():
    said = words(draw(made_up(100), facts(100)))
    assert "lowest loss" in said and not any("best" in text for text in said)


def test_a_checkpoint_never_evaluated_gets_no_number():
    pairs = dict(itertools.pairwise(words(draw(made_up(100), facts(100, best_step=33)), "summary")))
    assert (pairs["best loss"], pairs["perplexity"], pairs["below unigram"]) == ("–", "–", "–")


def test_nonfinite_values_are_not_drawn_and_are_reported():
    history = [
        *made_up(60),
        (61, dict.fromkeys(made_up(60)[50][1], math.nan)),
        (62, {"train/loss": math.inf, "train/grad_norm": -math.inf}),
    ]
    figure = draw(history, facts(100, unigram_loss=math.nan))
    for panel in PANELS - {"summary"}:
        assert np.isfinite(line_values(figure, panel)).all()
    said = words(figure, "summary")
    assert said[said.index("NaN or infinite, not drawn") + 1] == str(len(made_up(60)[50][1]) + 2)
    assert not any("nan" in text or "inf" in text for text in words(figure) if "NaN or infinite" not in text)


def test_a_history_of_nothing_finite_has_no_data():
    assert words(draw([(1, {"train/loss": math.nan, "val/loss/a": math.inf})], facts(planned_lr=()))).count("no data yet") == 8


def test_a_spike_of_the_raw_loss_is_named_and_does_not_flatten_the_curve():
    history = made_up(400)
    history[300][1]["train/loss"] = 500.0
    figure = draw(history, facts())
    ax = panel(figure, "loss")
    assert ax.get_ylim()[1] < 100
    assert 500.0 in line_values(figure, "loss")
    assert any("raw reaches 500.0" in text for text in words(figure, "loss"))


def test_the_gap_over_time_stands_before_its_thresholds():
    history = [(step, {"train/loss": 2.0, "val/loss": 2.0 + step / 10}) for step in range(8)]
    figure = draw(history, facts())
    ax = panel(figure, "gap")
    assert {"drifting apart", "memorising", "validation minus train, now +0.70"} <= set(words(figure, "gap"))
    assert [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches] == [pytest.approx((0.2, 0.5)), pytest.approx((0.5, 0.756))]
    assert next(line for line in ax.lines if len(line.get_xdata()) == 8).get_ydata() == pytest.approx(np.arange(8) / 10)


def test_checkpoints_that_are_kept_are_listed_with_the_best():
    """Of nine the last five, and the best, which is earlier."""
    said = words(draw(made_up(400), facts(**FULL)), "summary")
    start = said.index("Checkpoints") + 1
    assert said[start : start + 4] == ["step 50, best", "3.0500 nats", "step 200", "3.2000 nats"]
    assert "… 3 more" in said and "step 150" not in said


def test_time_left_is_the_engine_s():
    pairs = dict(itertools.pairwise(words(draw([(1, {"perf/eta_s": 12_000.0})], facts()), "summary")))
    assert pairs["time left"] == "3 h 20 min"


def test_a_fall_at_the_start_does_not_flatten_a_long_run():
    """10 / (1 + step/50) + 2 is 12 at first, and below 3 after a twentieth of 10,000 steps."""
    figure = draw(made_up(10_000), facts(10_000, unigram_loss=None))
    assert panel(figure, "loss").get_ylim()[1] < 4 and panel(figure, "sources").get_ylim()[1] < 4
    assert "nats per token; starts at 12.0" in words(figure, "sources")
    assert all(line.get_clip_on() for line in panel(figure, "loss").lines if len(line.get_xdata()) > 2)
    assert panel(draw(made_up(400), facts()), "loss").get_ylim()[1] > 12  # here the fall is what there is to see


def test_three_recommendations_at_most():
    figure = draw(made_up(100), facts(100), advice=advised(5))
    assert [text[:10] for text in words(figure, "advice") if text.startswith("headline")] == ["headline 0", "headline 1", "headline 2"]
    assert "lr=2e-4" in words(figure, "advice")
    assert figure.get_size_inches()[1] > draw(made_up(100), facts(100)).get_size_inches()[1]


@pytest.mark.parametrize(("theme", "palette"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize("case", ["all there is", "many sources"])
def test_a_theme_has_its_own_colours_and_no_other(case, theme, palette):
    drawn = inline(shown(case, theme), palette, "")
    assert set(re.findall(r'(?:fill|stroke)="([^"]*)"', drawn)) <= {"none", *(f"var(--{name})" for name in palette.named)}


def test_needs_no_pyplot_tracker_or_model():
    code = "import sys, forge.reports.dashboard; print(sorted({'matplotlib.pyplot', 'mlx', 'mlflow', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
