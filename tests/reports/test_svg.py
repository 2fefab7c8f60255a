"""Figures as SVG, on figures so small that the coordinates can be worked out by hand."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from forge.reports.palette import LIGHT
from forge.reports.svg import inline


def axes(**limits):
    """Axes from 0 to 1 without ticks that fill a figure of 100 by 50 points."""
    figure = Figure(figsize=(100 / 72, 50 / 72), dpi=150)
    FigureCanvasAgg(figure)
    figure.patch.set_visible(False)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    return figure, ax


def elements(figure):
    return list(ElementTree.fromstring(inline(figure, LIGHT, "a label")))


def test_a_line_in_points_from_the_upper_left():
    figure, ax = axes()
    ax.plot([0, 0.25, 1], [0, 1, 0.5], color=LIGHT.train, linewidth=2, alpha=0.5)
    (line,) = elements(figure)
    assert line.attrib == {"d": "M0 50L25 0L100 25", "fill": "none", "stroke": "var(--train)", "stroke-width": "2", "opacity": "0.5"}


def test_a_band_is_filled_and_has_no_outline():
    figure, ax = axes()
    ax.axhspan(0.5, 1, color=LIGHT.alarm, alpha=0.1, linewidth=0)
    (band,) = elements(figure)
    assert band.attrib["fill"] == "var(--alarm)" and band.attrib["opacity"] == "0.1" and "stroke" not in band.attrib
    assert set(re.findall(r"[\d.]+ [\d.]+", band.attrib["d"])) == {"0 0", "100 0", "0 25", "100 25"}


def test_lines_end_where_the_axes_do():
    figure, ax = axes()
    ax.plot([0.5, 0.5], [0.5, 1e9], color="#123456")
    (line,) = elements(figure)
    assert line.attrib["stroke"] == "#123456"  # no colour of the palette
    heights = [float(y) for y in re.findall(r" (-?[\d.]+)", line.attrib["d"])]
    assert heights[0] == 25 and -2 < heights[1] <= 0


def test_what_is_not_finite_leaves_a_gap():
    figure, ax = axes()
    ax.plot([0, 0.25, 0.5, 0.75, 1], [0.5, 1, np.nan, 0.5, 1], color=LIGHT.ink)
    (line,) = elements(figure)
    assert line.attrib["d"] == "M0 25L25 0M75 25L100 0"


@pytest.mark.parametrize(("side", "anchor"), [("left", None), ("center", "middle"), ("right", "end")])
def test_text_stays_text_and_is_anchored_where_it_was_aligned(side, anchor):
    """At 0.5 of 100 points whatever its width, on the baseline."""
    figure, ax = axes()
    ax.text(0.5, 0.2, '<a & "b">', ha=side, va="baseline", fontsize=9, color=LIGHT.grey, parse_math=False)
    (text,) = elements(figure)
    assert text.tag == "text" and text.text == '<a & "b">'
    assert float(text.attrib["x"]) == pytest.approx(50, abs=0.6) and float(text.attrib["y"]) == pytest.approx(40, abs=0.6)
    assert text.attrib.get("text-anchor") == anchor and text.attrib["font-size"] == "9" and text.attrib["fill"] == "var(--grey)"


def test_dashes_are_dashed():
    figure, ax = axes()
    ax.axhline(0.5, color=LIGHT.ink, linewidth=2, dashes=(5, 3))
    (line,) = elements(figure)
    assert line.attrib["stroke-dasharray"] == "10 6"  # in widths of the line


def test_the_label_is_escaped():
    figure, _ = axes()
    assert 'aria-label="&lt;b&gt; &quot;x&quot;"' in inline(figure, LIGHT, '<b> "x"')
