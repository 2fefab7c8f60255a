"""Matplotlib figures as inline SVG for a page: small, without ids or links, text as text, and colours that the page's style sets.

Matplotlib's own SVG backend takes its choices from rcParams, writes text as outlines, and names what it refers to in ways that clash
when a page holds several figures.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Transform

from forge.reports.palette import Palette

_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
_ANCHORS = {"left": ("start", 0.0), "center": ("middle", 0.5), "right": ("end", 1.0)}


def inline(figure: Figure, palette: Palette, label: str) -> str:
    """An <svg> element. Each colour of `palette`, in which the figure was drawn, becomes var(--name); `label` is for those who can't see.

    Changes the figure's resolution to 72 dots an inch, so that one unit of the SVG is a point.
    """
    figure.set_dpi(72)
    width, height = figure.get_size_inches() * 72
    renderer = _Renderer(width, height, {colour: f"var(--{name})" for name, colour in palette.named.items()})
    figure.draw(renderer)
    body = "\n".join(renderer.elements)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">\n{body}\n</svg>'


class _Renderer(RendererBase):
    """Takes what a figure draws, with y upwards but for text, and keeps it as SVG elements, with y downwards."""

    def __init__(self, width: float, height: float, colours: Mapping[str, str]):
        super().__init__()
        self._width, self._height, self._colours = width, height, colours
        self.elements: list[str] = []

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self._width, self._height

    def draw_path(self, gc: GraphicsContextBase, path: Path, transform: Transform, rgbFace: Any = None) -> None:
        data, stroke = self._data(path, transform, gc, filled=rgbFace is not None), self._stroke(gc)
        if data and (stroke or rgbFace is not None):
            self.elements.append(f'<path d="{data}"{self._fill(rgbFace)}{stroke}{self._opacity(gc, rgbFace)}/>')

    def draw_text(
        self, gc: GraphicsContextBase, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False, mtext: Text | None = None
    ) -> None:
        """Anchored on the side that the text was aligned to, since the reader's font may be narrower."""
        anchor, share = _ANCHORS[mtext.get_horizontalalignment() if mtext else "left"]
        x += share * self.get_text_width_height_descent(s, prop, ismath)[0]
        bold = ' font-weight="600"' if prop.get_weight() == "bold" else ""
        aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
        colour = self._colour(gc.get_rgb())
        where = f'x="{x:.1f}" y="{y:.1f}" font-size="{prop.get_size_in_points():g}"'
        self.elements.append(f'<text {where} fill="{colour}"{bold}{aligned}>{escape(s)}</text>')

    def _data(self, path: Path, transform: Transform, gc: GraphicsContextBase, filled: bool) -> str:
        """Lines are cut at the clip rectangle; filled shapes are left whole."""
        clip = gc.get_clip_rectangle()
        bounds = None if clip is None or filled else clip.extents
        out = []
        for points, code in path.iter_segments(transform, clip=bounds, simplify=None if not filled else False):
            numbers = (value if i % 2 == 0 else self._height - value for i, value in enumerate(points))
            if code == Path.CLOSEPOLY:
                out.append("Z")
            elif code != Path.STOP:
                out.append(_LETTERS[code] + " ".join(f"{value:.1f}".removesuffix(".0") for value in numbers))
        return "".join(out) if len(out) > 1 else ""

    def _fill(self, face: Any) -> str:
        return ' fill="none"' if face is None else f' fill="{self._colour(face)}"'

    def _stroke(self, gc: GraphicsContextBase) -> str:
        if not gc.get_linewidth() or not gc.get_rgb()[3]:
            return ""
        dashes: Any = gc.get_dashes()[1]
        dashed = "" if dashes is None else f' stroke-dasharray="{" ".join(f"{dash:.3g}" for dash in dashes)}"'
        return f' stroke="{self._colour(gc.get_rgb())}" stroke-width="{gc.get_linewidth():.3g}"{dashed}'

    def _opacity(self, gc: GraphicsContextBase, face: Any) -> str:
        """Of the whole element: where a line with an opacity of its own crosses itself, browsers draw it twice."""
        colour = gc.get_rgb() if face is None or len(face) < 4 else face
        alpha = gc.get_alpha() if gc.get_forced_alpha() else colour[3]
        return f' opacity="{alpha:g}"' if alpha < 1 else ""

    def _colour(self, rgb: Any) -> str:
        colour = to_hex(rgb[:3])
        return self._colours.get(colour, colour)
