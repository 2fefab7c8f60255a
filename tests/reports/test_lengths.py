"""The figure of row lengths, checked on what is drawn: words, bars, ticks, and that nothing overlaps."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from forge.reports.dashboard import SOURCES, VALID
from forge.reports.lengths import bins, draw, percent, sentence, spread


def around(count, median, width=0.8):
    return np.maximum(2, np.random.default_rng(0).lognormal(np.log(median), width, count)).astype(np.int64)


CASES = {
    "one": ({"notes": around(5000, 90)}, 256),
    "one row": ({"notes": np.array([77])}, 256),
    "all equal": ({"notes": np.full(1000, 257)}, 256),
    "all too long": ({"books": around(400, 400_000)}, 1024),
    "all short": ({"notes": np.array([2, 2, 3])}, 131_072),
    "far apart": ({"books": around(400, 400_000), "tweets": around(10_000, 25)}, 1024),
    "smallest": ({"notes": np.array([2, 9, 10, 11])}, 8),
    "without rows": ({"notes": np.array([], dtype=np.int64), "books": around(10, 90)}, 64),
    "eight": (
        {f"source {i} of many, with $x$ in a name that is very {'long ' * 9 * i}": around(10 ** (i % 5 + 1), 30 * 2**i) for i in range(8)},
        512,
    ),
}


def drawn_texts(figure):
    """(text, box in pixels) of all that can be read."""
    figure.canvas.draw()
    found = list(figure.texts)
    for ax in figure.axes:
        low, high = ax.get_xlim()
        found += [*ax.texts, ax.xaxis.label, *(tick.label1 for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high)]
    return [(text.get_text(), Text.get_window_extent(text, figure.canvas.get_renderer())) for text in found if text.get_text()]


def bars(ax):
    """(left, right, height, colour) of each bar."""
    return [(p.get_x(), p.get_x() + p.get_width(), p.get_height(), to_hex(p.get_facecolor())) for p in ax.patches]


@pytest.mark.parametrize("case", CASES)
def test_all_text_lies_inside_and_apart(case):
    figure = draw(*CASES[case])
    texts = drawn_texts(figure)
    for text, box in texts:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, f"{text!r} leaves the figure"
    for (text, box), (other_text, other) in itertools.combinations(texts, 2):
        across = min(box.x1, other.x1) - max(box.x0, other.x0) > 1
        down = min(box.y1, other.y1) - max(box.y0, other.y0) > 1
        assert not (across and down), f"{text!r} overlaps {other_text!r}"


@pytest.mark.parametrize("case", CASES)
def test_bins_hold_every_row_and_the_axis_has_plain_ticks(case):
    lengths, limit = CASES[case]
    edges = bins({name: np.sort(values) for name, values in lengths.items()}, limit)
    assert (np.diff(edges) > 0).all() and limit + 2 in edges
    for values in lengths.values():
        assert np.histogram(values, edges)[0].sum() == len(values)
    ticks = [tick for tick in draw(lengths, limit).axes[-1].get_xticks()]
    assert 3 <= len(ticks) <= 11 and all(tick % 1 == 0 for tick in ticks)


def test_a_row_is_too_long_from_two_above_the_sequence_length():
    """Of the rows with 8 … 11 tokens and a sequence length of 8, one of 9 fits: its last token is a target only. So 2 of 4 don't."""
    lengths = np.array([8, 9, 10, 11])
    assert sentence(lengths, 8) == "50 % too long for 8"
    assert sentence(lengths, 10) == "none too long for 10"
    (ax,) = draw({"notes": lengths}, 8).axes
    fits, too_long = ([bar for bar in bars(ax) if bar[3] == colour] for colour in (SOURCES[0], VALID))
    assert max(right for _, right, _, _ in fits) == 9.5 == min(left for left, _, _, _ in too_long)
    (limit,) = ax.lines
    assert set(limit.get_xdata()) == {9.5}


def test_the_area_of_bars_shows_rows_whatever_their_width():
    """As many rows of each length 10 … 10,000 as make it even on a log axis: no bar stands out, though widths differ by rounding."""
    lengths = np.repeat(np.arange(10, 10_000), np.round(1e6 / np.arange(10, 10_000)).astype(int))
    (ax,) = draw({"notes": lengths}, 20_000).axes
    heights = [height for left, right, height, _ in bars(ax) if left > 11 and right < 9000]
    assert len(heights) > 40 and min(heights) > 0.85


def test_one_row_among_a_million_is_seen():
    (ax,) = draw({"notes": np.array([*[100] * 1_000_000, 5000])}, 2000).axes
    assert [round(height, 3) for _, _, height, colour in bars(ax) if colour == VALID] == [0.025]


def test_sources_have_the_dashboard_s_colours_in_the_order_of_the_configuration():
    figure = draw({"stdlib": np.array([50]), "reference": np.array([60])}, 64)
    assert [ax.get_label() for ax in figure.axes] == ["stdlib", "reference"]
    assert [bars(ax)[0][3] for ax in figure.axes] == [SOURCES[1], SOURCES[0]]  # by name


def test_lengths_in_words():
    assert spread(np.arange(1, 101)) == "100 rows; half have up to 50 tokens, 95 % up to 95, the longest 100"
    assert spread(np.array([7])) == "1 row of 7 tokens" and spread(np.array([3, 3])) == "2 rows of 3 tokens"
    assert spread(np.array([])) == "no rows"


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0 %"), (0.0312, "3.12 %"), (1 / 30_000, "0.00333 %"), (0.99999, "over 99.9 %"), (1, "100 %")]
)
def test_a_share_in_words(share, said):
    assert percent(share) == said
