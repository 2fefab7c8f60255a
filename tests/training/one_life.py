"""A life of a run, for test_resume to kill: `RUN=folder pytest -s one_life.py`. It goes on where the last one was killed.

A line on stdout for each step. With DIE_AT=n it kills itself before the n-th call, from its first step on, that changes the disk.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forge.models.adapters import lora


@dataclass
class Tell:
    def __call__(self, snapshot: Any) -> None:
        os.write(1, b"%d\n" % snapshot.step)


def _dying(calls_left: int) -> None:
    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any, **named: Any) -> Any:
            nonlocal calls_left
            calls_left -= 1
            if calls_left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return called

    for name in ("fsync", "mkdir", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def test_a_life(train: Any, make_model: Any) -> None:
    def with_dropout(model: Any) -> None:
        lora(model, rank=2, alpha=4.0, dropout=0.3, targets="linear", layers=None)

    if "DIE_AT" in os.environ:
        _dying(int(os.environ["DIE_AT"]))
    plan = {"total_steps": 200, "save_every": 2, "eval_every": 15, "accumulate": 2, "lr": lambda step: 1e-2 / step**0.5}
    result, _, _ = train(os.environ["RUN"], model=make_model(with_dropout), callbacks={"tell": Tell()}, keep=1, **plan)
    assert (result.step, result.reason) == (200, "the budget is used up")
