"""What a checkpoint's run has measured, read from its folder: the curve, and the base on the same validation tokens."""

import json
from dataclasses import dataclass
from pathlib import Path

from forge.spec import History, Metrics
from forge.training import history


@dataclass(frozen=True)
class Past:
    """`base`: val/… of the model before its first step; None where it was measured on other tokens, or not at all. `loss` of the
    checkpoint's own evaluation."""

    history: History
    base: Metrics | None
    step: int
    loss: float | None


def past(saved: Path, data_digest: str) -> Past:
    state = json.loads((saved / "state.json").read_text())
    points = _points(saved.parent / history.NAME)
    same = state["stamp"].get("data") == data_digest
    first = next((metrics for step, metrics in points if step == 0 and "val/loss" in metrics), None)
    return Past(points, first if same else None, state["step"], state["loss"])


def _points(file: Path) -> list[tuple[int, Metrics]]:
    """Also those after the checkpoint. A last line that a kill cut short is left out."""
    found: list[tuple[int, Metrics]] = []
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            step, metrics = json.loads(line)
        except ValueError:
            break
        found.append((step, metrics))
    return found
