"""Callbacks: dataclasses called with a Snapshot after each step; they return None or the reason to stop.

Their fields are both their knobs and the state that a checkpoint saves and resume restores.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from forge.spec import Snapshot


@dataclass
class EarlyStopping:
    """Stops when `patience` evaluations in a row did not lower val/loss by more than `min_delta` (nats a token).

    The first evaluation sets the mark, so patience 3 stops after exactly 3 flat ones.
    """

    patience: Annotated[int, Field(ge=1)]
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    best: float | None = None
    flat: int = 0

    def __call__(self, snapshot: Snapshot) -> str | None:
        loss = snapshot.metrics.get("val/loss")
        if loss is None:
            return None
        if self.best is None or loss < self.best - self.min_delta:
            self.best, self.flat = loss, 0
        else:
            self.flat += 1
        if self.flat < self.patience:
            return None
        return f"early stopping: {self.flat} evaluations without improvement on val/loss {self.best:.4f}"
