"""The colours of pictures, on light paper and on dark. A colour means the same wherever it is used: training, validation, a source."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours as "#rrggbb", all different, so that a picture drawn in one palette can be recoloured as another.

    `alarm` shades what a curve should stay out of; `plan` is what was meant to happen.
    """

    paper: str
    ink: str
    grey: str
    rule: str
    plan: str
    train: str
    valid: str
    alarm: str
    sources: tuple[str, ...]

    @property
    def named(self) -> dict[str, str]:
        """Each colour by a name."""
        single = {name: value for name, value in vars(self).items() if name != "sources"}
        return single | {f"source-{i}": value for i, value in enumerate(self.sources)}


LIGHT = Palette(
    paper="#ffffff",
    ink="#22272e",
    grey="#6b737e",
    rule="#d9dde2",
    plan="#b9bfc7",
    train="#2f6db3",
    valid="#bf540a",
    alarm="#b8322a",
    sources=("#0f827a", "#7a4fb0", "#b33a6b", "#677a1c", "#8a5a33", "#3f4f9e", "#94690a", "#2f7a96"),
)
DARK = Palette(
    paper="#14181d",
    ink="#e9ecef",
    grey="#9aa4af",
    rule="#323941",
    plan="#56606b",
    train="#6aa8ee",
    valid="#f2984c",
    alarm="#ff8074",
    sources=("#3fbfb4", "#b592ea", "#ef82ab", "#b0c65a", "#d19c70", "#8fa0f2", "#e8bd4a", "#86c8e0"),
)
THEMES = {"light": LIGHT, "dark": DARK}
