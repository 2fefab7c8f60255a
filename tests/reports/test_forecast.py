import numpy as np
from PIL import Image

from forge.reports import forecast


def test_a_line_of_blocks_by_hand() -> None:
    """Of eight heights, 4 of 8 is the fourth; each of four characters is the mean of two of eight values."""
    assert forecast.spark([0, 4, 8, 4], width=4) == " ▄█▄"
    assert forecast.spark([0, 0, 2, 6, 8, 8, 3, 5], width=4) == " ▄█▄"
    assert forecast.spark([3.0]) == "█"
    assert forecast.spark([0.0, 0.0]) == "  "


def test_the_figure_shows_the_rates() -> None:
    figure = forecast.draw([1e-3, 2e-3, 1e-3], "a run")
    (ax,) = figure.axes
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == [1e-3, 2e-3, 1e-3]
    assert "peak 0.002, last 0.001" in ax.get_title(loc="left")
    figure.canvas.draw()
    assert Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).width > 600  # type: ignore[attr-defined]
