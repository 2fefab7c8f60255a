"""What ends a run whose numbers stopped being numbers, and says where that began. Costs two comparisons a step while all is well."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from forge.arrays import flat
from forge.errors import TrainingError


def require_finite(
    step: int, values: Mapping[str, float], where: str, trees: Callable[[], Mapping[str, Any]], last: Callable[[], Path | None]
) -> None:
    """Raises TrainingError where one of `values` (train/loss, train/grad_norm, …) is NaN or infinite.

    `where`: what was computed on, such as the step's rows. `trees`, asked for only then: trees of arrays by what they hold, in the order in
    which one spoils the next ({"frozen weight": …, "gradient": …}). `last` gives the last good checkpoint.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            way_out = "Lower optimizer.lr or trainer.clip_norm, or look at these rows and at the base model"
            raise TrainingError(
                f"step {step}: {name} is {value}; {where}; {culprit(trees(), name)}; the last good checkpoint is {last() or 'none yet'}. "
                + (way_out if step else "Look at the base model")
            )


def culprit(trees: Mapping[str, Any], name: str) -> str:
    """The first array of the first tree that holds a NaN or an infinity, in words; else that `name` alone is not finite."""
    for kind, tree in trees.items():
        arrays = {key: array for key, array in flat(tree).items() if mx.issubdtype(array.dtype, mx.floating)}
        bad = [key for key, array in arrays.items() if not mx.isfinite(array).all().item()]
        if bad:
            what = "NaN" if mx.isnan(arrays[bad[0]]).any().item() else "infinity"
            return f"{kind} {bad[0]} holds {what}, the first of {len(bad)} among {len(arrays)}"
    looked_at = " and ".join(f"every {kind}" for kind in trees)
    return f"{looked_at} is finite, only {name} is not"
