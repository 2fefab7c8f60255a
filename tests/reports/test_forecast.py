import numpy as np
from PIL import Image

from forge.reports import forecast


def test_the_figure_shows_the_rates() -> None:
    figure = forecast.draw([1e-3, 2e-3, 1e-3], "a run")
    (ax,) = figure.axes
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == [1e-3, 2e-3, 1e-3]
    assert "peak 0.002, last 0.001" in ax.get_title(loc="left")
    figure.canvas.draw()
    assert Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).width > 600  # type: ignore[attr-defined]
