"""forge's own training, for scripts/benches/train.py: models.load() and fit(), evaluation and checkpoints outside of the steps' time."""

import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from train_setup import LORA, OPTIMIZER, hand_back, settings

import forge  # before mlx
from forge import models
from forge.models import adapters, loaders
from forge.spec import Batch, Data, Ledger, Plan


class InOrder:
    """A stored batch a step."""

    def __init__(self, rows: np.ndarray):
        self.rows, self.cursor = rows, 0

    def next(self) -> Batch:
        self.cursor += 1
        return whole(self.rows[self.cursor - 1])

    def epochs(self, cursor: int) -> dict[str, float]:
        return {}


def whole(tokens: np.ndarray) -> Batch:
    mask = np.ones(tokens.shape, dtype=bool)
    mask[:, 0] = False
    return Batch(tokens, mask, np.ones(tokens.shape, dtype=np.int32), ("row",) * len(tokens), ("all",) * len(tokens))


def main() -> None:
    asked, rows = settings()
    import mlx.core as mx

    from forge.training.checkpoint import Store
    from forge.training.engine import fit
    from forge.training.objectives import causal_lm
    from forge.training.optim import adamw
    from forge.training.update import Update

    adapter: Any = adapters.full
    if asked["mode"] == "lora":
        adapter = partial(adapters.lora, **LORA, dropout=0.0, targets="linear", layers=None)
    loader = partial(loaders.local, path=asked["folder"])
    model = models.load(loader, adapter, lambda: iter(()), 0, lambda uri: (Path(uri), ""), asked["dtype"]).model
    valid = {"all": (whole(rows[0, :1, :33]),)}
    data = Data(InOrder(rows), valid, Ledger({}, "d", "v", {}), rows.size, float(rows.shape[2] - 1), {}, {"all": 1})
    steps, never = len(rows), 10**9
    plan = Plan(steps, never, never, log_every=1, accumulate=1, clip_norm=1e9, seed=0, lr=lambda step: OPTIMIZER["lr"])
    found: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), "bench", {})
        update = Update(model, partial(adamw, **OPTIMIZER))
        fit(model, data, causal_lm, update, plan, {}, store, lambda metrics, step: found.update({step: dict(metrics)}))
    about = {"forge": f"{forge.__version__} (BLAS {forge.blas.describe()})", "mlx": version("mlx"), "mlx device": str(mx.default_device())}
    seconds, losses = ([found[step][key] for step in range(1, steps + 1)] for key in ("perf/step_s", "train/loss"))
    hand_back(asked, seconds, losses, max(found[step]["memory/peak_gib"] for step in found if step) * 2**30, about)


if __name__ == "__main__":
    main()
