"""The pictures of a sweep, checked on what is drawn: what is said, where it lies, that nothing overlaps and nobody is left out."""

import itertools
import math
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.patches import PathPatch, Rectangle

from forge.reports import sweep_grid, sweep_key, sweep_lines, sweep_parallel
from forge.reports.palette import LIGHT
from forge.reports.sweep import Child, pictures
from forge.reports.sweep_children import best, by_influence, explained, places, reach, short
from forge.reports.sweep_page import LOSSES, ink_on

ALL = {"sweep/parallel_coordinates.png", "sweep/heat_map.png", "sweep/validation_curves.png"}


def child(loss, status="finished", curve=None, name=None, **swept):
    known = {key.replace("__", "."): str(value) for key, value in swept.items()}
    if curve is None and loss is not None:
        curve = [(step, loss + 3 * math.exp(-step / 30)) for step in range(0, 101 if status == "finished" else 51, 10)]
    return Child(name or " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in known.items()), known, loss, 100, status, curve or (), 60.0)


def grid(**extra):
    """Four rates by three decays by two seeds; one failed, one was pruned."""
    out = []
    for i, (lr, decay, seed) in enumerate(itertools.product(["1e-4", "3e-4", "1e-3", "3e-3"], ["0", "0.01", "0.1"], "12")):
        loss = 2 + 0.2 * (math.log10(float(lr)) + 3.2) ** 2 + float(decay) + 0.001 * i
        status = "failed" if i == 3 else "pruned" if i == 20 else "finished"
        out.append(child(None if i == 3 else loss, status, optimizer__lr=lr, optimizer__weight_decay=decay, seed=seed, **extra))
    return out


def many(n=200):
    """As a search gives them: nine keys, numbers that never repeat, long words, losses that diverged."""
    rng, out = np.random.default_rng(0), []
    for i in range(n):
        swept = {f"group.of.keys.number_{k}": f"{rng.random():.3g}" for k in range(6)}
        swept |= {"optimizer.lr": f"{10 ** rng.uniform(-5, -1):.2e}", "seed": str(i), "schedule": str(rng.choice(["cosine", "wsd"]))}
        swept["data"] = str(rng.choice(["builtin", "$folder/with/a/very-long/name/" * 3, "日本 \\frac{"]))
        loss = 1e4 if i % 17 == 0 else 2 + 0.2 * (math.log10(float(swept["optimizer.lr"])) + 3) ** 2 + rng.random() / 10
        status = "failed" if i % 23 == 0 else "pruned" if loss > 2.3 else "finished"
        out.append(child(loss, status, name=" ".join(f"{k}={v}" for k, v in swept.items()), **swept))
    return out


CASES = {
    "grid": grid(),
    "many": many(),
    "all failed": [child(None, "failed", lr="1e-3", seed=i, curve=[(0, 5.0), (10, math.nan)]) for i in range(4)],
    "one": [child(2.0, lr="1e-3")],
    "one that failed at once": [child(None, "failed", lr="1e-3")],
    "two of one key": [child(2.0, lr="1e-3"), child(2.1, lr="1e-2")],
    "equal losses": [child(2.0, lr=lr, seed=seed) for lr in ("1e-3", "1e-2") for seed in (1, 2)],
    "one key, numbers": [child(None if i == 3 else 2 + i / 10, "failed" if i == 3 else "finished", lr=f"1e-{i}") for i in range(1, 6)],
    "one key, 200 numbers": [child(2 + (i % 13) / 100, lr=f"{i / 1000}") for i in range(1, 201)],
    "one key, words": [
        child(None if i == 3 else 2 + i, "failed" if i == 3 else "pruned", model="$organisation/a-" * i) for i in range(1, 9)
    ],
    "one key, 200 words": [child(2 + i / 100, model=f"model-{'x' * (i % 40)}-{i}") for i in range(200)],
    "30 words by 30 words": [child(2 + (i * 7 % 30) / 100, model=f"some model {i}", data=f"data of {i * 11 % 30}") for i in range(30)],
    "a value that some don't have": [child(2.0, lr="1e-3"), child(2.1, lr="1e-2", clip="1"), child(2.2, lr="1e-2", clip="null")],
    "a curve of one point": [child(2.0, lr="1", curve=[(0, 2.0)]), child(2.5, "stopped", lr="2", curve=[(0, 2.5)])],
}


def drawn_texts(figure):
    """(text, box in pixels) of all that can be read; axes without axis lines have labels that are never drawn."""
    figure.canvas.draw()
    (ax,) = figure.axes
    return [(text.get_text(), text.get_window_extent()) for text in ax.texts if text.get_text()]


def words(figure):
    return [text for text, _ in drawn_texts(figure)]


def marks(figure, marker):
    return [line for ax in figure.axes for line in ax.lines if line.get_marker() == marker]


@pytest.mark.parametrize("case", CASES)
def test_all_text_lies_inside_and_apart(case):
    children = CASES[case]
    importances = {key: 1 / (2 + i) for i, key in enumerate(children[0].swept)}
    for name, figure in pictures(children, importances).items():
        texts = drawn_texts(figure)
        for text, box in texts:
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            assert inside, f"{name}: {text!r} leaves the figure"
        for (text, box), (other_text, other) in itertools.combinations(texts, 2):
            # Lines of text are 12 points apart; a pixel or two of their boxes may touch where nothing is drawn.
            across, down = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 1 or down <= 2, f"{name}: {text!r} overlaps {other_text!r}"


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("grid", ALL),
        ("many", ALL),
        ("one key, numbers", {"sweep/loss_by_key.png", "sweep/validation_curves.png"}),
        ("one", {"sweep/validation_curves.png"}),
        ("all failed", {"sweep/validation_curves.png"}),
        ("one that failed at once", set()),
    ],
)
def test_only_pictures_that_make_sense_are_drawn(case, names):
    assert set(pictures(CASES[case])) == names
    assert set(pictures(CASES[case], {"lr": 1.0})) == names | {"sweep/importances.png"}


def test_two_hundred_children_take_seconds():
    begun = time.process_time()
    for figure in pictures(many()).values():
        figure.canvas.draw()
    assert time.process_time() - begun < 5


# ---- parallel coordinates ---------------------------------------------------------------------------------------------


def test_each_child_has_a_line_and_each_failed_one_a_cross():
    figure = sweep_parallel.draw(grid())
    lines = [patch for ax in figure.axes for patch in ax.patches if isinstance(patch, PathPatch)]
    assert len(lines) == 24 + 1  # the best one has a casing
    assert len(marks(figure, "x")) == 1
    said = words(figure)
    assert "1 without a loss" in said and any("24 runs, 1 failed, 1 pruned" in text for text in said)
    assert any("nats per" in text for text in said) and any("lower is better" in text for text in said)


def test_lower_losses_end_lower_and_are_darker():
    figure = sweep_parallel.draw([child(loss, lr=lr, seed=lr[-1]) for loss, lr in ((2.0, "1e-3"), (2.5, "1e-2"), (3.0, "1e-1"))])
    lines = [patch for ax in figure.axes for patch in ax.patches if isinstance(patch, PathPatch) and patch.get_edgecolor()[:3] != (1, 1, 1)]
    ends = {tuple(patch.get_edgecolor()[:3]): patch.get_path().vertices[-1][1] for patch in lines}
    ascending = [tuple(LOSSES(share)[:3]) for share in (0.0, 0.5, 1.0)]
    down = [ends[colour] for colour in ascending]  # y runs downwards
    assert down == sorted(down, reverse=True)
    lightness = [sum(colour) for colour in ascending]
    assert lightness == sorted(lightness)


def test_the_best_one_is_told_with_its_values():
    """The thirteenth, at lr 1e-3: 2 + 0.2 · 0.2² + 0.001 · 12 = 2.02."""
    said = words(sweep_parallel.draw(grid()))
    at = said.index("best 2.020")
    assert said[at + 1 : at + 4] == ["lr 1e-3", "weight_decay 0", "seed 1"]


def test_of_many_keys_those_that_matter_are_shown_and_the_others_named():
    children = many()
    importances = {key: 1.0 - i / 20 for i, key in enumerate(children[0].swept)}  # of ten keys the last three matter least
    said = words(sweep_parallel.draw(children, importances))
    assert {"number_0", "lr"} <= set(said) and not {"seed", "schedule", "data"} & set(said)
    assert any("not shown, for they matter least: seed, schedule, data" in text for text in said)


# ---- heat map and one key ---------------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_of_those_that_came_to_their_end():
    found = sweep_grid.cell([child(2.0), child(2.5), child(1.0, "pruned"), child(None, "failed"), child(1.5, "failed")])
    assert (found.loss, found.n, found.failed, found.early) == (2.25, 2, 2, False)
    early = sweep_grid.cell([child(3.0, "pruned"), child(None, "failed")])
    assert (early.loss, early.n, early.failed, early.early) == (3.0, 1, 1, True)
    assert sweep_grid.cell([child(math.inf), child(math.nan)]).loss is None


def test_cells_say_their_means_and_the_lowest_is_framed():
    """Losses by hand: (a, 1): 2.0 and 3.0, mean 2.5; (a, 2): 2.4; (b, 1): failed; (b, 2): none."""
    children = [
        child(2.0, x="a", y="1", s=1),
        child(3.0, x="a", y="1", s=2),
        child(2.4, x="a", y="2", s=1),
        child(None, "failed", x="b", y="1", s=1),
    ]
    figure = sweep_grid.draw(children, {"x": 0.6, "y": 0.3, "s": 0.1})
    texts = drawn_texts(figure)
    assert {"2.500", "n = 2", "2.400", "failed"} <= {text for text, _ in texts}
    assert any("averaged over s" in text for text, _ in texts)
    patches = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    (frame,) = [patch for patch in patches if patch.get_linewidth() > 2]
    inside = [text for text, box in texts if frame.get_window_extent().contains(*np.mean(box.get_points(), axis=0))]
    assert inside == ["2.400"]
    assert sum(patch.get_linestyle() not in ("-", "solid") for patch in patches) == 1  # the cell without a child


def test_numbers_that_never_repeat_become_ranges():
    """From 1e-5 to 1e-1 in six equal steps of the exponent: 4/6 each, so 10^-4.33 = 4.6e-5 is the first edge inside."""
    children = [child(2 + i / 50, lr=f"{10 ** (-5 + 4 * i / 30):.6e}", y=i % 2) for i in range(31)]
    said = words(sweep_grid.draw(children, {"lr": 0.9, "y": 0.1}))
    assert "1e-5 … 4.6e-5" in said and "0.022 … 0.1" in said


@pytest.mark.parametrize("share", np.linspace(0, 1, 21))
def test_numbers_in_cells_can_be_read(share):
    """WCAG asks for a contrast of 3 for text as large and bold as theirs."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    fill, ink = LOSSES(share)[:3], ink_on(LOSSES(share))
    ink = (1.0, 1.0, 1.0) if ink == "white" else tuple(int(LIGHT.ink[i : i + 2], 16) / 255 for i in (1, 3, 5))
    lighter, darker = sorted([luminance(fill), luminance(ink)], reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) > 3


def test_one_key_shows_each_child_and_marks_the_best():
    figure = sweep_key.draw(CASES["one key, numbers"])
    assert len(marks(figure, "x")) == 1 and len(marks(figure, "o")) == 4 + 1  # a ring around the best
    assert {"best 2.100", "failed", "lr, log axis"} <= set(words(figure))


def test_words_are_rows_from_the_lowest_loss_down():
    """200 of them: the 24 lowest, and it says so."""
    texts = drawn_texts(sweep_key.draw(CASES["one key, 200 words"]))
    rows = [(box.y0, text) for text, box in texts if text.startswith("model-")]
    assert [text.rpartition("-")[2] for _, text in sorted(rows, reverse=True)] == [str(i) for i in range(24)]
    assert any("the 24 lowest of 200 values" in text for text, _ in texts)


# ---- curves and importances -------------------------------------------------------------------------------------------


def test_six_curves_are_named_the_best_first_and_the_others_stay_faint():
    children = [child(2 + i / 10, lr=f"1e-{i}") for i in range(10)]
    said = words(sweep_lines.overlay(children))
    assert "best 2.000 lr=1e-0" in said and [f"{2 + i / 10:.3f} lr=1e-{i}" for i in range(1, 6)] == [t for t in said if "lr=1e-" in t][1:]
    assert not any("lr=1e-6" in text for text in said)


def test_what_ended_early_ends_with_a_mark():
    children = [child(2.0, lr="1"), child(2.4, "pruned", lr="2"), child(2.2, "stopped", lr="3"), child(2.3, "failed", lr="4")]
    figure = sweep_lines.overlay(children)
    assert (len(marks(figure, "o")), len(marks(figure, "x"))) == (2, 1)
    assert "×: failed; ○: pruned; ○: stopped" in " ".join(words(figure))


def test_the_untrained_loss_does_not_flatten_the_curves():
    """Ends at 2.0 and 2.1 from 9: the axis reaches to where the best curve is at 0.3 of its steps, 2 + 7 · exp(-30/10) = 2.35."""
    curve = [(step, 7 * math.exp(-step / 10)) for step in range(0, 101, 10)]
    figure = sweep_lines.overlay([child(end, lr=end, curve=[(step, end + value) for step, value in curve]) for end in (2.0, 2.1)])
    ticks = [float(text) for text in words(figure) if text.replace(".", "").isdigit() and float(text) < 10]
    assert max(tick for tick in ticks if tick > 1.5) < 2.5
    assert any("higher losses lie above the picture" in text for text in words(figure))


def test_importances_are_bars_from_the_longest_down():
    texts = drawn_texts(sweep_lines.importance({"a.lr": 0.25, "seed": 0.0, "b.lr": 0.75}))
    assert [text for _, text in sorted((-box.y0, text) for text, box in texts if text in ("a.lr", "b.lr", "seed"))] == [
        "b.lr",
        "a.lr",
        "seed",
    ]
    assert {"0.75", "0.25", "0.00"} <= {text for text, _ in texts}
    assert any("all add up to 1" in text for text, _ in texts)


# ---- what is said of the children -------------------------------------------------------------------------------------


def test_best_is_the_one_that_was_judged_so():
    """Within the noise of the lowest the earlier job wins; where nobody could be judged, nobody is marked."""
    a, b = child(2.1, lr=1), child(2.0, lr=2)
    assert best([replace(a, won=True), replace(b, won=False)]).loss == 2.1
    assert best([replace(a, won=False), replace(b, won=False)]) is None


def test_best_is_the_lowest_that_came_to_its_end():
    a, b, c = child(2.0, "pruned", lr=1), child(2.1, lr=2), child(1.0, "failed", lr=3)
    assert best([a, b, c]) is b
    assert best([a, c]) is a
    assert best([c, child(math.nan, lr=4)]) is None


def test_keys_are_as_short_as_they_can_be_told_apart():
    assert short(["optimizer.lr", "a.seed", "b.seed", "seed.b.seed"]) == {
        "optimizer.lr": "lr",
        "a.seed": "a.seed",
        "b.seed": "b.seed",
        "seed.b.seed": "seed.b.seed",
    }


def test_what_a_key_explains_by_hand():
    """Ranks 0, 1 for x=a and 2, 3 for x=b. Within: 0.5 each, 1 of 5 in all: R² 0.8, adjusted 1 - 0.2 · 3/2 = 0.7. By y: ranks 0, 2 and
    1, 3, within 4 of 5: 1 - 0.8 · 3/2 < 0, so 0. As many values as children explain nothing."""
    children = [child(loss, x=x, y=y, z=loss) for loss, x, y in ((1.0, "a", "s"), (2.0, "a", "t"), (3.0, "b", "s"), (1e9, "b", "t"))]
    assert explained(children, "x") == pytest.approx(0.7)
    assert explained(children, "y") == explained(children, "z") == 0
    assert by_influence(children, ["y", "x"], None) == ["x", "y"]
    assert by_influence(children, ["y", "x"], {"y": 0.9, "x": 0.1}) == ["y", "x"]


def test_a_loss_that_diverged_leaves_the_others_their_colours():
    """The upper quartile of 1, 1.1, 1.2, 1.3, 50 is 1.3, and 1 + 3 · 0.3 = 1.9 is the limit."""
    assert reach([1.0, 1.1, 50.0, 1.2, 1.3]) == (1.0, 1.3)
    assert reach([1.0, 50.0]) == (1.0, 50.0)


@pytest.mark.parametrize(("high", "digits"), [(12.0, 2), (3.0, 2), (2.2, 3), (2.011, 3), (2.0002, 4), (2.0, 3)])
def test_as_many_decimals_as_tell_losses_apart(high, digits):
    assert places(2.0, high) == digits


def test_long_values_keep_their_ends():
    """Rows of paths that differ in their last part."""
    children = [child(2.0 + i, model=f"/a/long/path/to/the/models/of/our/organisation/and/its/friends/model-{i}") for i in range(3)]
    rows = [text for text in words(sweep_key.draw(children)) if "…" in text]
    assert [row[-8:] for row in rows] == ["/model-0", "/model-1", "/model-2"] and all(row.startswith("/a/long/") for row in rows)


def test_needs_no_pyplot_tracker_or_model():
    code = "import sys, forge.reports.sweep; print(sorted({'matplotlib.pyplot', 'mlx', 'mlflow', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
